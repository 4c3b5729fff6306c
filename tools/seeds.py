"""Several seeds in one process: as many independent runs as one device can take, updated as one.

A network of 4 x 512 does not fill a large GPU. Here the parameters of S algorithms, which differ by their seed alone, lie in one
tensor each ([S, ...]), and one vmap of DFP's two losses serves all. The algorithms stay what they are, each with its own noise, batches and state: their parameters, and Adam's moments, are views into those tensors,
so that acting, saving and evaluating see nothing of it. Losses equal a single run's up to the order in which floats are added,
or, where candidates pass in bf16, up to its rounding.

    together = Together([DFP(...), DFP(...)]);  infos = together.update([batch, batch])
"""
import contextlib

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from dfp import DFP, compiled
from tools.graph import graphed

NETWORKS = ("actor", "actor_old", "critic", "critic_target")


class Losses(nn.Module):
    """An algorithm's losses as a module, so that functional_call can lend them other parameters."""

    def __init__(self, algorithm):
        super().__init__()
        self.algorithm = algorithm
        for name in NETWORKS:
            setattr(self, name, getattr(algorithm, name))

    def forward(self, loss, batch, noise):
        return getattr(type(self.algorithm), loss)(self.algorithm, batch, noise)                   # as written: compiled it is below


class Stack(nn.Module):
    """One network of all algorithms: parameters [S, ...], in the order of the network's own; those become views of them."""

    def __init__(self, networks):
        super().__init__()
        self.names = [name for name, _ in networks[0].named_parameters()]
        self.stacked = nn.ParameterList(torch.stack([p.detach() for p in same]) for same in zip(*(n.parameters() for n in networks)))
        for i, network in enumerate(networks):
            for own, all_of_them in zip(network.parameters(), self.stacked):
                own.data = all_of_them.detach()[i]


class Together:
    """Algorithms of one kind and one configuration (but for the seed), which have made equally many updates."""
    descend = DFP.descend                            # a stack has the names of what it stacks

    def __init__(self, algorithms):
        self.algorithms, first = algorithms, algorithms[0]
        self.config, self.device = first.config, first.device
        for name in NETWORKS:
            setattr(self, name, Stack([getattr(a, name) for a in algorithms]))
        self.optimizer = torch.optim.Adam([*self.actor.parameters(), *self.critic.parameters()], lr=self.config.lr, fused=True)
        self._share_moments()
        losses, fast = Losses(first), compiled if self.config.compile else lambda f: f
        one = lambda loss: lambda parameters, *batch: functional_call(losses, parameters, (loss, *batch))      # noqa: E731
        self.critic_loss, self.actor_loss = (fast(vmap(one(loss))) for loss in ("critic_loss", "actor_loss"))

    @property
    def improving(self) -> bool:
        return self.algorithms[0].improving

    def _share_moments(self) -> None:
        """Adam's moments of each algorithm, stacked; each keeps a view, for its state_dict()."""
        own = [[a.optimizer.state[p] for p in a.optimizer.param_groups[0]["params"]] for a in self.algorithms]
        for k, stacked in enumerate(self.optimizer.param_groups[0]["params"]):
            states = [state[k] for state in own]
            fresh = not states[0]
            if len({float(s["step"]) if s else 0.0 for s in states}) > 1:
                raise ValueError("algorithms that have made different numbers of updates cannot be stacked")
            shared = {"step": torch.zeros((), device=stacked.device) if fresh else states[0]["step"].clone()} | {
                name: torch.zeros_like(stacked) if fresh else torch.stack([s[name] for s in states]) for name in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[stacked] = shared
            for i, state in enumerate(states):
                state.update(step=shared["step"], exp_avg=shared["exp_avg"][i], exp_avg_sq=shared["exp_avg_sq"][i])

    def update(self, batches: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """DFP.update for each: its batch -> its info."""
        noises = [a.draw_noise(len(batch["rewards"])) for a, batch in zip(self.algorithms, batches)]
        batch, noise = ({name: torch.stack([one[name] for one in several]) for name in several[0]} for several in (batches, noises))
        parameters = {f"{network}.{name}": p for network in NETWORKS for stack in [getattr(self, network)] for name, p in zip(stack.names, stack.stacked)}
        critic_loss, critic_info = self.critic_loss(parameters, batch, noise["next"])                 # [S]
        actor_loss, actor_info = self.actor_loss(parameters, batch, noise)                          # [S]
        self.descend((critic_loss + actor_loss).sum())           # seed by seed: no parameter is shared
        return [{name: value.detach()[i] for name, value in (critic_info | actor_info).items()} for i in range(len(self.algorithms))]


def in_lock_step(ts: list, stages) -> None:
    """Runs the generators stages(t) of train_offline.py side by side: every round each yields where its batch
    begins and is sent its info. They stop, save and end after the same step. One that is complete already does nothing."""
    running = []
    for t in ts:
        steps = stages(t)
        with contextlib.suppress(StopIteration):
            next(steps)                                          # to its first step
            running.append((t, steps))
    last = max((t.step for t, _ in running), default=0)
    for t, steps in running:                                     # runs that were killed may have been saved at different steps
        while t.step < last:
            t.interrupt = ts[0].asked
            steps.send(None if t.starts is None else t.algo.update(t.buffer.chunks(t.starts)))
    if running:
        together, buffers = Together([t.algo for t, _ in running]), [t.buffer for t, _ in running]
        update = graphed(together, buffers, lambda starts: [b.chunks(at) for b, at in zip(buffers, starts)])
    while running:
        asked = ts[0].asked                                      # once a round: whatever comes meanwhile is for the next
        for t in ts:
            t.interrupt = asked
        starts, stopped = [t.starts for t, _ in running], None
        infos = starts if starts[0] is None else update(starts)  # equally far, they all only collect, or none does
        for (t, steps), info in zip(running, infos):
            try:
                steps.send(info)
            except StopIteration:
                running = []                                     # the last step, for all of them
            except BaseException as error:                       # Interrupted comes from each, after the same step
                stopped = error
        if stopped:
            raise stopped
