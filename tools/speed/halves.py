"""An update on the CPU: a function of C++ for each half, the critic's on a second core.

    a second thread    the K best for one half of the states; the critic's loss and gradient
    this thread        the K best for the other half; the actor's loss and gradient; then Adam and the averages

Both read the networks as they are before the step: the numbers are those of one after the other, bit for bit. A half is
compiled with its gradient, in one piece and in C++ alone (cpp_wrapper): networks of a width of 64 take as long to call
as to run, and Python's lock would let one thread run at a time.
"""
import copy
from concurrent.futures import ThreadPoolExecutor, wait

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from tools.simulators.process import cores

NETWORKS = ("actor", "actor_old", "critic", "critic_target")
ALONE = 3       # updates one after the other before: compiling reads Python objects that must not change meanwhile
HOW = dict(fullgraph=True, options={"cpp_wrapper": True, "cpp.enable_floating_point_contract_flag": "fast"})


class Halves:
    """DFP.update of one algorithm. Where torch has several threads of its own, or there is one core, nothing runs
    beside something else."""

    def __init__(self, algo):
        self.algo, self.kind, self.alone = algo, None, ALONE
        self.two = torch.get_num_threads() == 1 and cores() > 1
        self.second = ThreadPoolExecutor(1)
        self.given = copy.copy(algo)                             # in place of candidates it is given the K best
        self.given.positives = lambda obs, best: best
        self.positives = in_cpp(algo.positives)
        self.critic, self.actor = with_gradient(algo, "critic"), with_gradient(self.given, "actor")

    def update(self, batch: dict[str, Tensor], noise: dict[str, Tensor]) -> dict[str, Tensor]:
        algo = self.algo
        if self.kind != algo.improving:                          # another update is compiled
            self.kind = self.given.improving = algo.improving
            self.alone = ALONE
        if "candidates" in noise:
            mine, others = zip(batch["observations"].tensor_split(2), noise["candidates"].tensor_split(2))
            theirs, mine = self.aside(self.positives, *others), self.positives(*mine)
        critic = self.aside(self.critic, batch, noise)
        try:
            if "candidates" in noise:
                noise = noise | {"candidates": torch.cat([mine, theirs.result()])}
            actor_info = self.actor(batch, noise)
        finally:
            critic_info = critic.result()
        self.alone = max(0, self.alone - 1)
        algo.move()
        return critic_info | actor_info

    def aside(self, function, *args):
        """A Future of function(*args), on the second core."""
        future = self.second.submit(function, *args)
        if self.alone or not self.two:
            wait([future])
        return future


def in_cpp(function):
    """torch.compile(function). Torch compiles a Python function for at most eight callers; this one counts alone."""
    def call(*args):
        return function(*args)
    call.__code__ = call.__code__.replace()
    return torch.compile(call, **HOW)


class Loss(nn.Module):
    """A loss of an algorithm as a module, so that functional_call can lend it other parameters."""

    def __init__(self, algorithm, name: str):
        super().__init__()
        self.forward = getattr(algorithm, name)
        for network in NETWORKS:
            setattr(self, network, getattr(algorithm, network))


def with_gradient(algo, name: str):
    """(batch, noise) -> info: a loss of the algorithm, whose gradient it leaves in its network's parameters."""
    loss = Loss(algo, f"{name}_loss")
    parameters = dict(getattr(algo, name).named_parameters(prefix=name))
    values = {name: parameter.detach() for name, parameter in parameters.items()}
    both = in_cpp(lambda values, *given: grad(lambda v: functional_call(loss, v, given), has_aux=True)(values))

    def call(batch, noise):
        gradients, info = both(values, batch, noise)
        for name, parameter in parameters.items():
            parameter.grad = gradients[name]
        return info
    return call
