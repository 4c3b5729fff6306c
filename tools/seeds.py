"""Several seeds in one process: as many independent runs as one device can take, updated as one.

A network of 4 x 512 leaves a large GPU idle: the time of an update is that of launching it. Here the parameters of S algorithms,
which differ by their seed alone, lie in one tensor each ([S, ...]), and one vmap of DFP.losses serves all. The algorithms stay
what they are, each with its own noise, batches and state: their parameters, and Adam's averages, are views into those tensors,
so that acting, saving and evaluating see nothing of it. Losses equal a single run's up to the order in which floats are added.

    together = Together([DFP(...), DFP(...)]);  infos = together.update([batch, batch])
"""
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from critic import move_towards
from dfp import compiled

NETWORKS = ("actor", "actor_old", "critic", "critic_target")


class Losses(nn.Module):
    """algorithm._losses as a module, so that functional_call can lend it other parameters."""

    def __init__(self, algorithm):
        super().__init__()
        self.losses = algorithm._losses
        for name in NETWORKS:
            setattr(self, name, getattr(algorithm, name))

    def forward(self, batch, noise):
        return self.losses(batch, noise)


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

    def __init__(self, algorithms):
        self.algorithms, first = algorithms, algorithms[0]
        self.networks = {name: Stack([getattr(a, name) for a in algorithms]) for name in NETWORKS}
        self.optimizer = torch.optim.Adam([*self.networks["actor"].parameters(), *self.networks["critic"].parameters()],
                                          lr=first.config.lr, fused=True)
        self._share_averages()
        losses = Losses(first)
        one = lambda parameters, batch, noise: functional_call(losses, parameters, (batch, noise))      # noqa: E731
        self.losses = (compiled if first.config.compile else lambda f: f)(vmap(one))

    def _share_averages(self) -> None:
        """Adam's averages of each algorithm, stacked; each keeps a view, for its state_dict()."""
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
        parameters = {f"{network}.{name}": p for network, stack in self.networks.items() for name, p in zip(stack.names, stack.stacked)}
        critic_loss, actor_loss, info = self.losses(parameters, batch, noise)                       # [S] each
        self.optimizer.zero_grad(set_to_none=True)
        (critic_loss + actor_loss).sum().backward()              # seed by seed: no parameter is shared

        config, networks = self.algorithms[0].config, self.networks
        move_towards(networks["critic_target"], networks["critic"], config.target_rate)
        if self.algorithms[0].improving:
            move_towards(networks["actor_old"], networks["actor"], config.ema_rate)
        self.optimizer.step()
        return [{name: value.detach()[i] for name, value in info.items()} for i in range(len(self.algorithms))]


def in_lock_step(ts: list, stages) -> None:
    """Runs the generators stages(t) of train_offline.py side by side: every round each yields a batch and is sent its info. They
    stop, save and end after the same step."""
    steps = [stages(t) for t in ts]
    for one in steps:
        next(one, None)                                          # to its first batch
    last = max(t.step for t in ts)
    for t, one in zip(ts, steps):                                # runs that were killed may have been saved at different steps
        while t.step < last:
            t.interrupt = ts[0].asked
            one.send(t.algo.update(t.batch))
    together, running = Together([t.algo for t in ts]), True
    while running:
        asked = ts[0].asked                                      # once a round: whatever comes meanwhile is for the next
        for t in ts:
            t.interrupt = asked
        infos, running, stopped = together.update([t.batch for t in ts]), False, None
        for one, info in zip(steps, infos):
            try:
                one.send(info)
                running = True
            except StopIteration:
                pass
            except BaseException as error:                       # Interrupted comes from each, after the same step
                stopped = error
        if stopped:
            raise stopped
