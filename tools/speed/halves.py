"""DFP.update on a CPU: each loss with its gradient as one C++ function, the critic's on a second core.

    DFP.update calls     this thread                                     a second thread
    critic_loss(...)     hands the work over                             the K best for half of the states
    actor_loss(...)      the K best for the others, the actor's loss     the critic's loss and gradient
                         and gradient; then it waits
    backward()           puts both gradients in place

Neither loss reads what the other changes, so the numbers are those of one after the other, bit for bit. With networks
of a width of 64 a call takes as long as the work. So each loss is compiled with its gradient in one piece, and in C++
alone: Python's lock would let only one thread run.
"""
import copy
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from tools.simulators.process import cores
from tools.speed.graph import attributes

NETWORKS = ("actor", "actor_old", "critic", "critic_target")
ALIKE = 0.2     # of a gradient: 0.1 was seen, as bf16 may choose another next chunk that is nearly as good
ALONE = 3       # updates without a second thread: compiling reads Python objects that must not change meanwhile
HOW = dict(fullgraph=True, options={"cpp_wrapper": True, "cpp.enable_floating_point_contract_flag": "fast"})


class Halves:
    """critic_loss and actor_loss of an algorithm, to be called in this order. On one core one follows the other."""

    def __init__(self, algo):
        self.algo, self.stage, self.alone = algo, None, 0
        self.two = cores() > 1
        self.second = ThreadPoolExecutor(1)
        self.given, self.positives = copy.copy(algo), in_cpp(algo.positives)
        # The actor's loss gets the K best in place of noise["candidates"], and its positives() hands them on.
        self.given.positives = lambda obs, best: best
        self.critic, self.actor = Half(algo, "critic"), Half(self.given, "actor")

    def update(self, batch: dict, noise: dict) -> dict:
        if self.stage != self.algo.improving:                    # other losses, which are compiled first
            self.stage, self.taken, self.alone = self.algo.improving, attributes(self.algo), ALONE
            self.compare(batch, noise)
        if changed := dict(attributes(self.algo).items() - self.taken.items()):
            raise ValueError(f"{type(self.algo).__name__}.{min(changed)} changes from update to update")
        return self.algo.update(batch, noise, losses=(self.critic_loss, self.actor_loss))

    def compare(self, batch: dict, noise: dict) -> None:
        """ValueError where a gradient is another than that of the losses as written, as where a method of your own has
        a third network, or reads noise["candidates"] itself."""
        weights = [weight for group in self.algo.optimizer.param_groups for weight in group["params"]]
        written = copy.copy(self.algo)
        if self.has_topk(noise):
            # The same K best for both: of candidates that are nearly as good, bf16 prefers now one, now the other.
            best = torch.cat([self.positives(half(batch["observations"]), half(noise["candidates"]))
                              for half in (first_half, second_half)])
            written.positives = lambda obs, candidates: best

        def gradients(*losses):
            total = sum(loss(batch, noise)[0] for loss in losses)
            return torch.autograd.grad(total, weights, allow_unused=True, materialize_grads=True)
        right_ones = gradients(written.critic_loss, written.actor_loss)
        for mine, right in zip(gradients(self.critic_loss, self.actor_loss), right_ones):
            if (mine - right).norm() > ALIKE * right.norm():
                raise ValueError("a gradient of the compiled halves is not that of the losses as written")

    def has_topk(self, noise: dict) -> bool:
        """Whether the actor's loss asks for the K best. dfp-no-topk draws candidates too, and leaves them."""
        return "candidates" in noise and self.algo.config.topk_weight > 0

    def critic_loss(self, batch: dict, noise: dict) -> tuple[Tensor, dict]:
        vars(self.given).update(vars(self.algo))                 # what update() has changed
        result = Result(self.critic.parameters)
        if self.has_topk(noise):
            self.best = self.aside(self.positives, *map(second_half, (batch["observations"], noise["candidates"])))
        self.job = self.aside(self.critic, batch, noise, result)
        return result.loss, result.info

    def actor_loss(self, batch: dict, noise: dict) -> tuple[Tensor, dict]:
        result = Result(self.actor.parameters)
        try:
            if self.has_topk(noise):
                best = self.positives(*map(first_half, (batch["observations"], noise["candidates"])))
                noise = noise | {"candidates": torch.cat([best, self.best.result()])}
            self.actor(batch, noise, result)
        finally:
            self.job.result()
        self.alone = max(0, self.alone - 1)
        return result.loss, result.info

    def aside(self, function, *arguments) -> Future:
        """function(*arguments) on the second core."""
        job = self.second.submit(function, *arguments)
        if self.alone or not self.two:
            wait([job])
        return job


def first_half(x: Tensor) -> Tensor:
    return x[: len(x) // 2]


def second_half(x: Tensor) -> Tensor:
    return x[len(x) // 2 :]


def in_cpp(function):
    """torch.compile(function). Torch compiles one Python code for at most eight callers, so this one is a copy."""
    def call(*args):
        return function(*args)
    call.__code__ = call.__code__.replace()
    return torch.compile(call, **HOW)


class Half:
    """The loss of one network, and its gradient, as one C++ function, which fills in a Result."""

    def __init__(self, algo, name: str):
        loss = Loss(algo, f"{name}_loss")
        parameters = dict(getattr(algo, name).named_parameters(prefix=name))
        self.parameters, self.values = [*parameters.values()], {name: p.detach() for name, p in parameters.items()}

        def both(values, *given):
            return grad_and_value(lambda v: functional_call(loss, v, given), has_aux=True)(values)
        self.both = in_cpp(both)

    def __call__(self, batch, noise, result) -> None:
        gradients, (value, info) = self.both(self.values, batch, noise)
        result.gradients += gradients.values()
        result.info.update(info)
        result.loss.data.copy_(value)


class Result:
    """What a half will have computed: a loss to call backward() on, and what DFP logs."""

    def __init__(self, parameters):
        self.gradients, self.info = [], {}
        self.loss = Given.apply(self.gradients, *parameters)


class Given(torch.autograd.Function):
    """A number whose gradient by the parameters comes from elsewhere."""

    @staticmethod
    def forward(ctx, gradients, *parameters):
        ctx.gradients = gradients
        return torch.zeros(())

    @staticmethod
    def backward(ctx, factor):
        return None, *torch._foreach_mul(ctx.gradients, factor)


class Loss(nn.Module):
    """A loss of an algorithm as a module, so that functional_call can lend it other parameters."""

    def __init__(self, algorithm, name: str):
        super().__init__()
        self.forward = getattr(algorithm, name)
        for network in NETWORKS:
            setattr(self, network, getattr(algorithm, network))
