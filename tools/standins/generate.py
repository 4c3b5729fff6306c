"""Stand-in data made in the simulators, for machines that cannot download the official sets.

    Robomimic   demonstrations by six uneven scripted operators (operators.py), as robomimic-format HDF5
    OGBench     play data from ogbench's own plan oracles (play.py), as official npz; optionally mixed with noisy
                episodes aimed at the task's goal, because small play sets hold hardly any success; beyond 1M
                transitions a folder of several files

One attempt = one episode from one seed, in one of several processes. Every finished attempt is a small file in
<name>.parts/, so an interruption costs at most one episode per process; the set is assembled from the attempts in the
order of their seeds, whichever process made them, so the same name holds the same data.
"""
import concurrent.futures
import contextlib
import functools
import io
import itertools
import json
import multiprocessing
import os
import shutil
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
from tqdm import tqdm

import envs
from config import UserError
from tools.official import files
from tools.simulators import process

VERSION = 4          # part of every name: raise it when operators or oracles change what a seed gives
SHARD = 1_000_000    # transitions in a file of OGBench data
SEEDS = 100_000      # numbers of attempts set aside for each file: more than it can need


def name(task: envs.Task, size: int, goal_share: float) -> str:
    """The name of a generated set, without its ending: says what made it."""
    if task.suite == "robomimic":
        return f"{task.name}-operators-v{VERSION}-{size}"
    goal = f"-goal{task.task_id}x{goal_share:g}" if goal_share else ""
    return f"{task.source}-play-v{VERSION}-{size}{goal}"


def generate(task: envs.Task, size: int, folder: Path, goal_share=0.0, workers=2, shard=SHARD) -> list[Path]:
    """Makes (or finds) the set: `size` demonstrations (Robomimic) or transitions (OGBench) -> its files. UserError."""
    path = Path(folder) / name(task, size, goal_share)
    with files.one_at_a_time(path.parent):
        if task.suite == "robomimic":                      # only successes are kept, as in the official sets
            path = path.with_name(path.name + ".hdf5")
            kind = ("demo", size, functools.partial(_demonstration, task.name), f"demonstrations of {task.name}")
            _make(path, [kind], functools.partial(write_robomimic, task), workers, asked=size)
            return [path]
        paths = [path.with_name(path.name + ".npz")]
        if size > shard:
            paths = [path / f"{task.source}-play-v{VERSION}-{i:03d}.npz" for i in range(-(-size // shard))]
        for i, path in enumerate(paths):
            rows = min(shard, size - i * shard)
            aimed = int(rows * goal_share)
            kinds = [("play", rows - aimed, functools.partial(_play, task.source),
                      f"play data of {task.source}, transitions"),
                     ("goal", aimed, functools.partial(_aimed, task.source, task.task_id),
                      f"episodes aimed at {task.name}'s goal, transitions")]
            _make(path, kinds, write_ogbench, workers, asked=rows, goal_share=goal_share, first=i * SEEDS)
        return paths


def _make(path: Path, kinds: list, write, workers: int, **origin) -> None:
    """One file, unless it is there. kinds: (name, how much of it, make(index) -> episode, what it is called)."""
    parts = path.with_name(path.name + ".parts")           # the finished attempts
    # A user may delete a set's record. Where the attempts are there too, it had not been written yet.
    if not path.exists() or parts.exists() and not files.record_of(path).exists():
        parts.mkdir(parents=True, exist_ok=True)
        chosen, tried = [], {}
        for kind, wanted, make, label in kinds:
            if wanted:
                found, tried[kind] = _attempts(make, parts, kind, wanted, workers, label, origin.get("first", 0))
                chosen += found
        _assemble(path, lambda temporary: write(temporary, map(_read_part, chosen)),
                  attempts=tried.get("demo", tried), **origin)
    shutil.rmtree(parts, ignore_errors=True)               # also of a process that was killed while it tidied up


def _count(episode: dict) -> int:
    """What sizes count: demonstrations, or transitions (the last row only says where the one before it led)."""
    return len(episode["terminals"]) - 1 if "terminals" in episode else 1


# ------------------------------------------------------------------------------------ one attempt, in a worker process
_robosuite = functools.lru_cache(maxsize=1)(envs.make_robosuite)


def _demonstration(task_name: str, index: int) -> dict | None:
    from tools.standins.operators import demonstrate
    return demonstrate(_robosuite(task_name), task_name, envs.DATA_SEED + index)


def _play(source: str, index: int) -> dict:
    from tools.standins.play import play_episode
    return play_episode(source, envs.DATA_SEED + index)


def _aimed(source: str, task_id: int, index: int) -> dict:
    from tools.standins.play import goal_episode
    return goal_episode(source, task_id, envs.DATA_SEED + 500_000_000 + index)


def _attempt(make, path: Path, index: int) -> int:
    episode = make(index)                                  # None, a failure, is recorded too: it need not be retried
    buffer = io.BytesIO()
    np.savez(buffer, **(episode or {}))
    _whole(path, lambda temporary: temporary.write_bytes(buffer.getvalue()))
    return index


def _whole(path: Path, write) -> None:
    """write(a temporary file), which then gets its name: that is never half a file's. UserError where it fails."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        write(temporary)
    except (OSError, RuntimeError) as error:               # a full disk: h5py reports it as either
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {files.in_one_line(error)}; finished episodes are kept, "
                        "the same command goes on from them") from None
    os.replace(temporary, path)


def _read_part(path: Path) -> dict:
    with np.load(path) as part:
        return {key: part[key] for key in part.files}


# ------------------------------------------------------------------------------------------------------- all attempts
def _attempts(make, parts: Path, kind: str, wanted: int, workers: int, label: str, first: int):
    """Attempts from number `first` on that make up `wanted` -> (files of the successful ones, how many were tried)."""
    total, chosen = 0, []
    with (tqdm(total=wanted, desc=f"generating {label}", unit="", dynamic_ncols=True, file=sys.stderr) as bar,
          contextlib.closing(_in_order(make, parts, kind, workers, first)) as attempts):
        for tried, path in enumerate(attempts, 1):
            episode = _read_part(path)
            if episode:
                chosen.append(path)
                bar.update(min(_count(episode), wanted - total))
                total += _count(episode)
            if total >= wanted:
                return chosen, tried
            if tried >= 100 and not chosen:
                raise UserError(f"100 attempts at {label} and no success: the simulator's version does not fit "
                                "(requirements.txt has the versions that work)")


def _in_order(make, parts: Path, kind: str, workers: int, first: int):
    """Yields the files of attempt after attempt from number `first` on, and makes those that are missing. Strictly in
    order, because a set must not depend on who was faster."""
    def file(index):
        return parts / f"{kind}-{index:06d}.npz"

    done = {int(part.stem.split("-")[1]) for part in parts.glob(f"{kind}-*.npz")}
    pending, submitted = set(), first
    context = multiprocessing.get_context("spawn")         # safe on macOS and beside torch's threads
    with process.single_threaded_children():               # they start when work is submitted, so it spans all of it
        pool = concurrent.futures.ProcessPoolExecutor(workers, context, initializer=process.behave_as_worker)
        try:
            for index in itertools.count(first):
                while index not in done:
                    while len(pending) < 2 * workers:
                        if submitted not in done:
                            pending.add(pool.submit(_attempt, make, file(submitted), submitted))
                        submitted += 1
                    finished, pending = concurrent.futures.wait(pending, return_when="FIRST_COMPLETED")
                    done |= {future.result() for future in finished}
                yield file(index)
        except concurrent.futures.process.BrokenProcessPool:
            raise UserError("a generating process died (out of memory?); run the same command again, finished episodes "
                            "are kept, perhaps with --workers 1") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _assemble(path: Path, write, **origin) -> None:
    _whole(path, write)
    versions = {d.name: d.version for d in metadata.distributions()
                if d.name in ("mujoco", "robosuite", "ogbench", "numpy")}
    files.remember(path, files.record_of(path), generator=VERSION, seed=envs.DATA_SEED, **origin, versions=versions)


def write_robomimic(task: envs.Task, path: Path, episodes) -> None:
    """robomimic's HDF5 format, v1.5: data/demo_i/{obs/*, next_obs/*, actions, rewards, dones, states}, mask/*."""
    import h5py
    env_args = dict(env_name=task.source, env_version=envs.import_robosuite().__version__, type=1,
                    env_kwargs=envs.robosuite_args(task.name))
    with h5py.File(path, "w", track_order=True) as file:
        data, names, operators, total = file.create_group("data"), [], {}, 0
        for i, episode in enumerate(episodes):
            names.append(f"demo_{i}")
            operator, model, steps = str(episode.pop("operator")), str(episode.pop("model_file")), len(episode["dones"])
            operators.setdefault(operator, []).append(names[i])
            total += steps
            group = data.create_group(names[i])
            group.attrs.update(num_samples=steps, operator=operator, model_file=model)
            for key, value in episode.items():
                group.create_dataset(key, data=value)
        data.attrs.update(total=total, env_args=json.dumps(env_args))
        held_out = names[10::11]                           # 11 and 6 share no factor: every operator gets its turn
        masks = {"valid": held_out, "train": [n for n in names if n not in held_out]} | operators
        for key, members in masks.items():
            file[f"mask/{key}"] = np.array(members, dtype="S")


def write_ogbench(path: Path, episodes) -> None:
    """OGBench's npz format: rows of all episodes one after the other, terminals true at each episode's last row."""
    episodes = list(episodes)
    with open(path, "wb") as file:
        np.savez_compressed(file, **{key: np.concatenate([e[key] for e in episodes]) for key in episodes[0]})
