"""A run is a folder: what was asked for, what happened, and what is needed to go on. (train_online.py makes one.)

    runs/<task>/<method>/<data>/<preset>[,knob=value...]/seed<k>/
        config.json      every knob, versions, git commit, data source and checksum, machine
        train.csv        step, stage, then losses and diagnostics, as update() names them
        eval.csv         step, stage, success, episodes, length, return, seconds
        evaluate.csv     by evaluate.py: these columns without seconds, and best_of
        offline.pt       the end of stage 1; runs that differ in stage 2 alone start from it too
        checkpoint.pt    the newest state of an unfinished or finished run; checkpoint.pt.previous the one before
        online.f32       the transitions seen online; a checkpoint tells which of them are its own
        curve.png        eval.csv, drawn

    policy = run.load("runs/lift/dfp/generated/quick/seed0"); policy.act(obs)          from Python, after `import run`
    python -m tools.export runs/lift/dfp/generated/quick/seed0 policies/lift           the policy alone, to give away
"""
import dataclasses
import importlib
import time
from pathlib import Path

import torch

import envs
from buffer import ReplayBuffer
from config import METHODS, Config, UserError
from dfp import DFP
from tools.speed.fast import bf16_pays
from tools.training.files import load_networks, read_config, read_newest


@dataclasses.dataclass
class Run:
    """One run, made by tools/training/prepare.py, saved and brought back by tools/training/saving.py."""
    config: Config
    folder: Path
    data: dict                       # where its data come from, as data.load tells
    buffer: ReplayBuffer
    algo: DFP                        # or a baseline
    # One generator per purpose, so that no purpose disturbs another. Those of initial weights and of training noise are
    # in dfp.py.
    batch_rng: torch.Generator       # seed + 1, in stage 2 seed + 3: where the chunks of a batch begin, line 3
    acting_rng: torch.Generator      # seed + 2: the noise of line 1
    step: int = 0                    # the last one that is complete
    stage: str = "offline"
    # Of no interest to the algorithm:
    tracker: object = None           # called with each row of a table, for --log
    started: float = dataclasses.field(default_factory=time.time)
    world_state: dict | None = None        # the Collector's state, where a resumed run is in the middle of an episode
    stored: tuple[int, int] = (0, 0)       # how many online transitions online.f32 holds, and their checksum

    def start_online(self) -> None:
        """Between the stages: what the algorithm changes, and other batches."""
        self.algo.start_online()
        # Seeded anew: stage 2 draws the same batches whether stage 1 was trained here or taken from another run.
        self.batch_rng.manual_seed(self.config.seed + 3)


def algorithm(config: Config, obs_dim: int, action_dim: int, device) -> DFP:
    """The object of config.method, of the class that METHODS names: a run of DFP does not import its rivals."""
    module, name = METHODS[config.method].path.rsplit(".", 1)
    bf16 = config.precision == "auto" and bf16_pays(torch.device(device))
    return getattr(importlib.import_module(module), name)(obs_dim, action_dim, config, device, bf16)


# ------------------------------------------------------------------------------------------------- what it left behind
def load(folder: str | Path, device: str = "cpu") -> DFP:
    """A saved policy, ready to act: load(RUN).act(obs [n, O]) -> chunks [n, H, A]. Its .step and .stage say where the
    run stood. UserError when there is none."""
    folder = Path(folder).expanduser()
    config, _ = read_config(folder)
    state = newest(folder)
    task = envs.find_task(config.task)
    policy = algorithm(config, task.obs_dim, task.action_dim, device)
    # An exported policy holds what acts alone; here the other networks, which only training needs, stay untrained.
    load_networks(policy, state, folder, acting(config) if is_exported(folder) else None)
    policy.step, policy.stage = state["step"], state.get("stage", "offline")       # offline.pt has no stage
    return policy


def acting(config: Config) -> tuple[str, str]:
    """The networks that choose an action."""
    return "actor_average" if config.acting_ema_rate < 1 else "actor", "critic"


def newest(folder: Path) -> dict:
    """The state that is farthest in training, or the exported one. UserError when there is none."""
    for name in ("checkpoint.pt", "offline.pt", "policy.pt"):
        if state := read_newest(folder / name):
            return state
    raise UserError(f"{folder} holds no checkpoint yet")


def is_exported(folder: Path) -> bool:
    return (folder / "policy.pt").exists()
