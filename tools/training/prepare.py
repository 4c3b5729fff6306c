"""Everything a run works with, checked before anything of it is written: prepare(config, given) -> run.Run."""
import contextlib
import dataclasses
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

import envs
from buffer import ReplayBuffer
from config import Config, UserError
from run import Run, algorithm
from tools.report.tracker import tracker
from tools.speed.fast import set_precision
from tools.training.files import one_at_a_time, write_json
from tools.training.saving import folder_of, kind_begun, restore

ENOUGH_WHOLE = 0.5       # of the chunks
PACKAGES = ("torch", "numpy", "gymnasium", "mujoco", "robosuite", "robomimic", "ogbench")


def require_updates(config: Config) -> None:
    """UserError where the online stage would end before its first update."""
    instead = "; the pure offline setting is python train_offline.py" if config.preset == "offline-rl" else ""
    if config.online_steps <= config.warmup:
        raise UserError(f"--online-steps {config.online_steps} do not exceed --warmup {config.warmup}: nothing would "
                        f"be trained online{instead}")


def load_data(config: Config, given: set[str]) -> tuple[dict, dict]:
    """data.load, for a new run or one that goes on."""
    if config.resume and config.data == "auto":      # means the data it began with, whichever hosts answer by now
        config = dataclasses.replace(config, data=kind_begun(config, given) or "auto")
    from data import load                            # late: one that only reads a run needs no readers of data files
    from tools.official.files import lengths
    dataset, facts = load(config, given)
    if facts["longest"] < config.chunk:
        raise UserError(f"--chunk {config.chunk} is longer than every episode of the data (the longest has "
                        f"{facts['longest']} steps)")
    # The critic learns from chunks that lie within one episode (buffer.chunks).
    whole = np.maximum(lengths(dataset) - config.chunk + 1, 0).sum() / (facts["transitions"] - config.chunk + 1)
    text = f"{whole:.1%} of the data's chunks of {config.chunk} lie within one episode"
    print(text if whole > ENOUGH_WHOLE else f"warning: only {text}, and the critic learns from no others; a smaller "
                                            "--chunk or longer episodes help")
    return dataset, facts


@contextlib.contextmanager
def prepare(config: Config, given: set[str], loaded: tuple[dict, dict] | None = None):
    """A run, brought back to where it was if it is unfinished; its folder is locked meanwhile. loaded: what load_data()
    gave. UserError for what cannot work, before anything is written."""
    device = choose_device(config)
    set_precision(config)
    task = envs.find_task(config.task)
    dataset, facts = loaded or load_data(config, given)
    folder = folder_of(config, given, facts["kind"])
    with threads(config.threads), one_at_a_time(folder, wait=False), tracker(config.log, folder) as log:
        buffer = make_buffer(config, dataset, device)
        run = Run(config, folder, facts, buffer, algorithm(config, task.obs_dim, task.action_dim, device),
                  batch_rng=torch.Generator(buffer.device).manual_seed(config.seed + 1),
                  acting_rng=torch.Generator().manual_seed(config.seed + 2), tracker=log)
        restore(run)
        tell_start(run, task)
        yield run


@contextlib.contextmanager
def threads(count: int):
    """So many threads of torch; 0 leaves them as they are. Afterwards they are as before, as the next run of the same
    script may want others."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def tell_start(run: Run, task: envs.Task) -> None:
    """What is about to happen. How long it takes, the bar tells as soon as it is known."""
    c, cuda = run.config, run.algo.device.type == "cuda"
    where = torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} CPU thread(s)"
    print(f"run: {c.task}, {c.method}, preset {c.preset}, seed {c.seed}, on {where}\n"
          f"     {c.offline_steps:,} offline and {c.online_steps:,} online steps, {c.layers} layers of {c.hidden}\n"
          f"     observations of {task.obs_dim} numbers, chunks of {c.chunk} actions of {task.action_dim}\n"
          f"     folder {run.folder}")


def make_buffer(config: Config, dataset: dict, device: torch.device) -> ReplayBuffer:
    """D lies where training happens, unless it comes in shards or --data-device says otherwise: shards stay on disk."""
    in_shards = "records" in dataset
    where = config.data_device if config.data_device != "auto" else "cpu" if in_shards else device
    arguments = (dataset, config.online_steps, config.chunk, config.discount, where, device)
    try:
        if in_shards:
            from tools.official.shards import ShardBuffer
            return ShardBuffer(*arguments, mix_size=config.mix_size)
        return ReplayBuffer(*arguments)
    except torch.OutOfMemoryError:
        raise UserError("the GPU has no room for the data; --data-device cpu leaves them where they are") from None


def choose_device(config: Config) -> torch.device:
    """UserError where a GPU was asked for and there is none."""
    gpu = torch.cuda.is_available()
    if "cuda" in (config.device, config.data_device) and not gpu:
        raise UserError("--device cuda and --data-device cuda: this torch sees no GPU; auto takes what there is")
    return torch.device("cuda" if gpu and config.device != "cpu" else "cpu")


def write_config(run: Run) -> None:
    """config.json: what makes a run repeatable."""
    versions = {d.name: d.version for d in metadata.distributions() if d.name in PACKAGES}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    record = dict(config=dataclasses.asdict(run.config), data=run.data, command=sys.argv,
                  versions=versions | {"python": platform.python_version()}, git=git_commit(),
                  machine=dict(system=platform.platform(), cores=os.cpu_count(), gpu=gpu))
    write_json(run.folder / "config.json", record)


def git_commit() -> str:
    try:
        return subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True,
                              cwd=Path(__file__).parent).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
