"""Stand-in data made in the simulators, for machines that cannot download the official sets.

Robomimic's are demonstrations (operators.py), OGBench's play (play.py), in the official formats. One attempt is one
episode from one seed, and a small file in <name>.parts/, so an interruption costs little. A set takes the attempts in
the order of their seeds, whichever process made them: the same name holds the same data.
"""
import contextlib
import functools
import io
import itertools
import json
import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib import metadata
from pathlib import Path

import numpy as np
from tqdm import tqdm

import envs
from config import UserError
from tools.official import files
from tools.simulators import process, robosuite_setup
from tools.training.files import in_one_line, one_at_a_time

VERSION = 4          # part of every name: raise it when operators or oracles change what a seed gives
SHARD = 1_000_000    # transitions in a file of OGBench data
SEEDS = 100_000      # numbers of attempts set aside for each file: more than it can need


def generate(task: envs.Task, size: int, folder: Path, goal_share=0.0, workers=0, shard=SHARD) -> list[Path]:
    """Makes (or finds) the set: `size` demonstrations (Robomimic) or transitions (OGBench) -> its files. UserError.
    workers: processes; 0 = one a core."""
    robomimic, folder = task.suite == "robomimic", Path(folder)
    workers = workers or process.cores()
    if goal_share and not task.source.startswith("cube"):
        raise UserError("--goal-share: episodes are aimed at a goal for cubes only")
    with one_at_a_time(folder):
        if robomimic:                                      # only successes are kept, as in the official sets
            path = folder / f"{task.name}-operators-v{VERSION}-{size}.hdf5"
            demos = ("demo", size, functools.partial(_demonstration, task.name))
            _make(path, [demos], functools.partial(write_robomimic, task), workers, asked=size)
            return [path]
        stem, goal = f"{task.source}-play-v{VERSION}", f"-goal{task.task_id}x{goal_share:g}" if goal_share else ""
        paths = [folder / f"{stem}-{size}{goal}.npz"]
        if size > shard:
            paths = [folder / f"{stem}-{size}{goal}" / f"{stem}-{i:03d}.npz" for i in range(-(-size // shard))]
        for i, path in enumerate(paths):
            rows = min(shard, size - i * shard)
            aimed = int(rows * goal_share)
            kinds = [("play", rows - aimed, functools.partial(_play, task.source)),
                     ("goal", aimed, functools.partial(_aimed, task.source, task.task_id))]
            _make(path, kinds, write_ogbench, workers, asked=rows, goal_share=goal_share, first=i * SEEDS)
        return paths


def _make(path: Path, kinds: list, write, workers: int, **origin) -> None:
    """One file, unless it is there. kinds: (name, how much of it, make(index) -> episode)."""
    parts = path.with_name(path.name + ".parts")           # the finished attempts
    # A user may delete a set's record. Where the attempts are there too, it had not been written yet.
    if not path.exists() or parts.exists() and not files.record_path(path).exists():
        parts.mkdir(parents=True, exist_ok=True)
        tqdm.write(f"generating {path.name} in {workers} processes: it may take hours, the bar tells how many")
        chosen, tried = [], {}
        for kind, wanted, make in kinds:
            if wanted:
                found, tried[kind] = _attempts(make, parts, kind, wanted, workers, origin.get("first", 0))
                chosen += found
        _assemble(path, lambda temporary: write(temporary, map(_read_part, chosen)),
                  attempts=tried.get("demo", tried), **origin)
    shutil.rmtree(parts, ignore_errors=True)               # also of a process that was killed while it tidied up


_robosuite = functools.lru_cache(maxsize=1)(robosuite_setup.make)


def _demonstration(task_name: str, index: int) -> dict | None:
    from tools.standins.operators import demonstrate
    return demonstrate(_robosuite(envs.find_task(task_name).source), task_name, envs.DATA_SEED + index)


def _play(source: str, index: int) -> dict:
    from tools.standins.play import play_episode
    return play_episode(source, envs.DATA_SEED + index)


def _aimed(source: str, task_id: int, index: int) -> dict:
    from tools.standins.play import goal_episode
    return goal_episode(source, task_id, envs.DATA_SEED + 500_000_000 + index)


def _attempt(make, path: Path, index: int) -> None:
    episode = make(index)                                  # None, a failure, is recorded too: it need not be retried
    buffer = io.BytesIO()
    np.savez(buffer, **(episode or {}))
    _whole(path, lambda temporary: temporary.write_bytes(buffer.getvalue()))


def _whole(path: Path, write) -> None:
    """write(a temporary file), which then gets its name: that is never half a file's. UserError where it fails."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        write(temporary)
    except (OSError, RuntimeError) as error:               # a full disk: h5py reports it as either
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {in_one_line(error)}; finished episodes are kept, "
                        "the same command goes on from them") from None
    os.replace(temporary, path)


def _read_part(path: Path) -> dict:
    with np.load(path) as part:
        return {key: part[key] for key in part.files}


def _attempts(make, parts: Path, kind: str, wanted: int, workers: int, first: int):
    """Attempts from number `first` on, strictly in order -> (files of the successful ones, how many were tried)."""
    def file(index):
        return parts / f"{kind}-{index:06d}.npz"
    chosen, total, submitted = [], 0, {}
    with tqdm(total=wanted, desc=f"generating {parts.stem}, {kind}", unit="") as bar, _processes(workers) as pool:
        for index in itertools.count(first):
            if not file(index).exists():
                for ahead in range(index, index + 3 * workers):        # enough for all to do while this one is awaited
                    if ahead not in submitted and not file(ahead).exists():
                        submitted[ahead] = pool.submit(_attempt, make, file(ahead), ahead)
                submitted[index].result()
            if episode := _read_part(file(index)):
                chosen.append(file(index))
                # A size counts demonstrations, or transitions: the last row only says where the one before it led.
                count = len(episode["terminals"]) - 1 if "terminals" in episode else 1
                bar.update(min(count, wanted - total))
                total += count
            if total >= wanted:
                return chosen, index - first + 1
            if index - first >= 99 and not chosen:
                raise UserError(f"100 attempts at {parts.stem} and no success: the simulator's version does not fit "
                                "(requirements.txt has the versions that work)")


@contextlib.contextmanager
def _processes(workers: int):
    """A pool, which at its end drops what no process has begun. UserError where one dies."""
    context = multiprocessing.get_context("spawn")         # safe on macOS and beside torch's threads
    pool = ProcessPoolExecutor(workers, context, initializer=process.behave_as_worker)
    with process.children():               # they start when work is submitted, so it spans all of it
        try:
            yield pool
        except BrokenProcessPool:
            raise UserError("a generating process died (out of memory?); run the same command again, finished episodes "
                            "are kept, perhaps with --workers 1") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _assemble(path: Path, write, **origin) -> None:
    _whole(path, write)
    versions = {d.name: d.version for d in metadata.distributions()
                if d.name in ("mujoco", "robosuite", "ogbench", "numpy")}
    files.remember(path, generator=VERSION, seed=envs.DATA_SEED, **origin, versions=versions)


def write_robomimic(task: envs.Task, path: Path, episodes) -> None:
    """robomimic's HDF5 v1.5, in float32, without what follows from the rest: no next_obs, of an episode's states the
    first, of its model the lines in which it differs from the first episode's."""
    import h5py
    env_args = dict(env_name=task.source, env_version=robosuite_setup.import_robosuite().__version__, type=1,
                    env_kwargs=robosuite_setup.arguments(task.source))
    with h5py.File(path, "w", track_order=True, libver="latest") as file:        # an older layout takes twice the room
        data, masks, total, first = file.create_group("data"), {"valid": [], "train": []}, 0, None
        for i, episode in enumerate(episodes):
            operator, model, steps = str(episode.pop("operator")), str(episode.pop("model_file")), len(episode["dones"])
            first = first or model
            lines = enumerate(zip(model.split("\n"), first.split("\n"), strict=True))
            changed = {number: line for number, (line, other) in lines if line != other}
            group = data.create_group(f"demo_{i}")
            group.attrs.update(num_samples=steps, operator=operator, model_lines=json.dumps(changed))
            group["states"] = episode.pop("states")
            for key, value in episode.items():
                group.create_dataset(key, data=value, chunks=value.shape, shuffle=True, compression=9)
            for mask in ("valid" if i % 11 == 10 else "train", operator):  # 11 and 6 share no factor: all get a turn
                masks.setdefault(mask, []).append(f"demo_{i}")
            total += steps
        data.attrs.update(total=total, env_args=json.dumps(env_args), model_file=first)
        group = file.create_group("mask")                  # made without a word, it would hold the time
        for mask, names in masks.items():
            group[mask] = np.array(names, dtype="S")


def write_ogbench(path: Path, episodes) -> None:
    """OGBench's npz format: rows of all episodes, terminals true at each one's last row."""
    episodes = list(episodes)
    with open(path, "wb") as file:
        np.savez_compressed(file, **{key: np.concatenate([e[key] for e in episodes]) for key in episodes[0]})
