"""Several seeds in one process: independent runs, updated as one.        python train_online.py --task square --seeds 5

Each parameter of S algorithms lies in one tensor, [S, ...], and one vmap of DFP's two losses serves all. Their own
parameters, and Adam's moments, are views into it: acting, saving and evaluating see nothing of it.
"""
import contextlib
import dataclasses
import itertools
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from config import Config, UserError
from dfp import DFP
from run import Run
from tools.simulators.collector import Collector
from tools.speed.fast import compiled, fast_act, recorded
from tools.speed.halves import NETWORKS, Loss
from tools.training.prepare import load_data, prepare, write_config
from tools.training.saving import refuse_complete, save_offline, take_offline
from tools.training.stage import Stage, tell_end


# ------------------------------------------------------------------------------------------------- one update for all
class Stack(nn.Module):
    """One network of all algorithms, with parameters [S, ...]."""

    def __init__(self, networks):
        super().__init__()
        self.names = [name for name, _ in networks[0].named_parameters()]
        each = zip(*(network.parameters() for network in networks))
        self.stacked = nn.ParameterList(torch.stack([p.detach() for p in parameters]) for parameters in each)
        for i, network in enumerate(networks):
            for own, all_of_them in zip(network.parameters(), self.stacked):
                own.data = all_of_them.detach()[i]


class Together:
    """Algorithms that differ by their seed alone and have made equally many updates."""
    gradient_step = DFP.gradient_step                # a stack has the names of what it stacks

    def __init__(self, algorithms):
        self.algorithms, first = algorithms, algorithms[0]
        for name in ("update", "gradient_step"):
            if getattr(type(first), name) is not getattr(DFP, name):
                raise UserError(f"--seeds: {type(first).__name__} has its own {name}(), which an update of several "
                                "seeds at once would leave out; run one seed at a time")
        self.config, self.device = first.config, first.device
        for name in NETWORKS:
            setattr(self, name, Stack([getattr(a, name) for a in algorithms]))
        self.averaged = first.averaged
        if self.averaged:
            self.actor_average = Stack([a.actor_average for a in algorithms])
        weights = [*self.actor.parameters(), *self.critic.parameters()]
        self.optimizer = torch.optim.Adam(weights, lr=self.config.lr, fused=True)
        self.share_moments()
        self.critic_loss, self.actor_loss = self.vectorised("critic_loss"), self.vectorised("actor_loss")

    @property
    def improving(self) -> bool:
        return self.algorithms[0].improving

    def vectorised(self, name: str):
        loss = Loss(self.algorithms[0], name)

        def of_all(parameters, batch, noise):
            return vmap(lambda *each: functional_call(loss, each[0], each[1:]))(parameters, batch, noise)
        return compiled(of_all) if self.config.compile else of_all

    def share_moments(self) -> None:
        """Adam's moments, stacked; each algorithm keeps a view, for its state_dict()."""
        own = [[a.optimizer.state[p] for p in a.optimizer.param_groups[0]["params"]] for a in self.algorithms]
        for weight, states in zip(self.optimizer.param_groups[0]["params"], zip(*own)):
            if len({float(s.get("step", 0.0)) for s in states}) > 1:
                raise ValueError("algorithms that have made different numbers of updates cannot be stacked")
            shared = {"step": torch.zeros((), device=weight.device), "exp_avg": torch.zeros_like(weight),
                      "exp_avg_sq": torch.zeros_like(weight)}
            if states[0]:
                shared = {"step": states[0]["step"].clone(), "exp_avg": torch.stack([s["exp_avg"] for s in states]),
                          "exp_avg_sq": torch.stack([s["exp_avg_sq"] for s in states])}
            self.optimizer.state[weight] = shared
            for i, state in enumerate(states):
                state.update(step=shared["step"], exp_avg=shared["exp_avg"][i], exp_avg_sq=shared["exp_avg_sq"][i])

    def update(self, batches: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """DFP.update for each: its batch -> its info."""
        batch = stacked(batches)
        noise = stacked([a.draw_noise(len(b["rewards"])) for a, b in zip(self.algorithms, batches)])
        parameters = {}
        for network in NETWORKS:
            stack = getattr(self, network)
            parameters |= {f"{network}.{name}": p for name, p in zip(stack.names, stack.stacked)}
        critic_loss, critic_info = self.critic_loss(parameters, batch, noise)                       # [S]
        actor_loss, actor_info = self.actor_loss(parameters, batch, noise)                          # [S]
        self.gradient_step((critic_loss + actor_loss).sum())           # seed by seed: no parameter is shared
        info = {name: value.detach() for name, value in (critic_info | actor_info).items()}
        return [{name: value[i] for name, value in info.items()} for i in range(len(self.algorithms))]


def stacked(dicts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([d[name] for d in dicts]) for name in dicts[0]}


def fast_updates(runs: list[Run]):
    """[starts of each run] -> [info of each run]: tools.speed.fast.fast_update for all of them."""
    buffers = [run.buffer for run in runs]
    return recorded(Together([run.algo for run in runs]), buffers,
                    lambda starts: [buffer.chunks(s) for buffer, s in zip(buffers, starts)])


# ------------------------------------------------------------------------------------------------- the loops
class Stages:
    """The Stage of each run as one: they stop, save and end after the same step."""

    def __init__(self, runs: list[Run], name: str, last: int, worlds=()):
        self.stages = [Stage(run, name, last, world) for run, world in zip(runs, worlds or [None] * len(runs))]
        for stage in self.stages:
            stage.stop, stage.evaluator = self.stages[0].stop, self.stages[0].evaluator

    def __enter__(self):
        for stage in self.stages:
            stage.open()
        self.stages[0].stop.listen()
        return self

    @property
    def steps(self):
        for numbers in itertools.zip_longest(*(stage.steps for stage in self.stages)):       # all are equally far
            yield numbers[0]

    def end_step(self, infos: list | None = None) -> None:
        for stage, info in zip(self.stages, infos or [None] * len(self.stages)):
            stage.end_step(info)

    def __exit__(self, *error) -> None:
        with contextlib.ExitStack() as each:                     # whatever the first raises, the others save too
            for stage in reversed(self.stages):
                each.callback(stage.__exit__, *error)


def loop(runs: list[Run], name: str, last: int) -> None:
    """The loop of train_online.py, or of train_offline.py where there is no world, up to step `last`."""
    c, update = runs[0].config, fast_updates(runs)
    worlds = [Collector(c.task, run.config.seed, run.world_state) for run in runs] if name == "online" else []
    only_collecting = c.offline_steps + c.warmup if worlds else 0
    acts = [fast_act(run.algo) for run in runs]
    with contextlib.ExitStack() as opened:
        for world in worlds:
            opened.enter_context(world)
        stages = opened.enter_context(Stages(runs, name, last, worlds))
        for step in stages.steps:
            for run, act, world in zip(runs, acts, worlds):
                while not collect(run, act, world):                                                 # lines 1-2
                    run.buffer.end_episode()
            infos = None
            if step > only_collecting:
                starts = [run.buffer.starts(c.batch_size, run.batch_rng) for run in runs]             # line 3
                infos = update(starts)                                                              # lines 4-7
            stages.end_step(infos)
    for run, world in zip(runs, worlds):
        run.world_state = world.state_dict()


def collect(run: Run, act, world: Collector) -> bool:
    """One environment step into the buffer; False where its episode was lost with its simulator."""
    if not world.playing:
        world.play(act(world.obs[None], run.acting_rng)[0])
    transition = world.outcome()
    if transition:
        run.buffer.add(*transition)
    return transition is not None


def in_lock_step(runs: list[Run], name: str, last: int) -> None:
    """loop(), after those that lag behind have caught up: killed runs may stand at different steps."""
    for group in ([run for run in runs if run.step == last], [run for run in runs if run.step < last]):
        farthest = max((run.step for run in group), default=0)
        for run in group:
            if run.step < farthest:
                loop([run], name, farthest)
        if group:
            loop(group, name, last)


def train(config: Config, given: set[str], online: bool) -> list[Path]:
    """train_online.py, or train_offline.py, for the seeds from --seed on -> the runs' folders."""
    loaded = load_data(config, given)
    with contextlib.ExitStack() as opened:
        runs = [opened.enter_context(prepare(dataclasses.replace(config, seed=seed), given, loaded))
                for seed in range(config.seed, config.seed + config.seeds)]
        for run in runs if not online else ():
            refuse_complete(run)
        for run in runs:
            write_config(run)
        first = [run for run in runs if run.stage == "offline" and not (online and take_offline(run))]
        in_lock_step(first, "offline", config.offline_steps)
        for run in first:
            save_offline(run)
        if online:
            for run in runs:
                if run.stage == "offline":
                    run.start_online()
            in_lock_step(runs, "online", config.offline_steps + config.online_steps)
        for run in runs:
            tell_end(run)
        return [run.folder for run in runs]
