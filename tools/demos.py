"""Stand-in data made in the simulators, for machines that cannot download the official sets.

    Robomimic   demonstrations by six uneven scripted operators (tools/operators.py), as robomimic-format HDF5
    OGBench     play data from ogbench's own plan oracles (tools/play.py), as official npz; optionally mixed with noisy
                episodes aimed at the task's goal, because small play sets hold hardly any success; beyond 1M transitions
                a folder of several files

One attempt = one episode from one seed, in one of several processes. Every finished attempt is a small file in
<name>.parts/, so an interruption costs at most one episode per process; the set is assembled from the attempts in the
order of their seeds, whichever process made them, so the same name holds the same data.

    python -m tools.demos --task cube-double-task2 --size 1000000        OGBench: <name>.npz and <name>-val.npz, a tenth as large
"""
import concurrent.futures
import contextlib
import fcntl
import functools
import io
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
from tools import command_line, files, simulators

VERSION = 4          # part of every name: raise it when operators or oracles change what a seed gives
SHARD = 1_000_000    # transitions in a file of OGBench data
SEEDS = 100_000      # numbers of attempts set aside for each file: more than it can need
VAL = 4_000 * SEEDS  # numbers of the validation sets' attempts


def name(task: envs.Task, size: int, goal_share: float) -> str:
    """The name of a generated set, without its ending: says what made it."""
    if task.suite == "robomimic":
        return f"{task.name}-operators-v{VERSION}-{size}"
    return f"{task.source}-play-v{VERSION}-{size}" + (f"-goal{task.task_id}x{goal_share:g}" if goal_share else "")


@contextlib.contextmanager
def one_at_a_time(folder: Path):
    """Processes started side by side fetch and generate once: the others wait here and then find the file."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "w")
    except OSError as error:
        raise UserError(f"cannot write data to {folder}: {error.strerror}; choose another --data-dir") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def generate(task: envs.Task, size: int, folder: Path, goal_share: float = 0.0, workers: int = 2, val: bool = False, shard: int = SHARD) -> list[Path]:
    """Makes (or finds) the set: `size` demonstrations (Robomimic) or transitions (OGBench) -> its files. val: the validation
    files of OGBench too."""
    path = Path(folder) / name(task, size, goal_share)
    with one_at_a_time(path.parent):
        if task.suite == "robomimic":
            return [_demonstrations(task, size, path.with_name(path.name + ".hdf5"), workers)]
        paths = []
        for i in range(-(-size // shard)):
            rows = min(shard, size - i * shard)
            paths.append(path / f"{task.source}-play-v{VERSION}-{i:03d}.npz" if size > shard else path.with_name(path.name + ".npz"))
            _play_set(task, rows, paths[-1], goal_share, workers, i * SEEDS)
            if val:
                _play_set(task, -(-rows // 10), paths[-1].with_name(paths[-1].name[:-4] + "-val.npz"), goal_share, workers, VAL + i * SEEDS)
        return paths


def _demonstrations(task: envs.Task, size: int, path: Path, workers: int) -> Path:
    if not _finished(path):
        with _parts(path) as parts:                        # only successes are kept, as in the official sets
            chosen, tried = _attempts(functools.partial(_demonstration, task.name), parts, "demo", size, lambda e: 1, workers,
                                      f"demonstrations of {task.name}")
            _assemble(path, lambda temporary: write_robomimic(temporary, task, map(_read_part, chosen)), asked=size, attempts=tried)
    return path


def _play_set(task: envs.Task, size: int, path: Path, goal_share: float, workers: int, first: int) -> None:
    if _finished(path):
        return
    with _parts(path) as parts:
        aimed, chosen, tried = int(size * goal_share), [], {}
        rows = lambda e: len(e["terminals"]) - 1           # noqa: E731  T rows hold T - 1 transitions
        for kind, wanted, make, label in (("play", size - aimed, functools.partial(_play, task.source), f"play data of {task.source}"),
                                          ("goal", aimed, functools.partial(_aimed, task.source, task.task_id), f"episodes aimed at {task.name}'s goal")):
            if wanted:
                episodes, tried[kind] = _attempts(make, parts, kind, wanted, rows, workers, label + ", transitions", first)
                chosen += episodes
        _assemble(path, lambda temporary: write_ogbench(temporary, map(_read_part, chosen)), asked=size, goal_share=goal_share,
                  attempts=tried, first=first)


def _parts_of(path: Path) -> Path:
    return path.with_name(path.name + ".parts")


def _finished(path: Path) -> bool:
    """Whether the set is there, with its record (which a user may delete, but only after the attempts went). What a process
    left that was killed while tidying up goes now."""
    if not path.exists() or _parts_of(path).exists() and not files.record_of(path).exists():
        return False
    shutil.rmtree(_parts_of(path), ignore_errors=True)
    return True


@contextlib.contextmanager
def _parts(path: Path):
    """The folder of a set's finished attempts; it goes when the set is there."""
    parts = _parts_of(path)
    parts.mkdir(parents=True, exist_ok=True)
    yield parts
    shutil.rmtree(parts)


# ------------------------------------------------------------------------------------- one attempt, in a worker process
@functools.lru_cache(maxsize=1)
def _robosuite(task_name):
    return envs.make_robosuite(task_name)


def _demonstration(task_name: str, index: int) -> dict | None:
    from tools.operators import demonstrate
    episode = demonstrate(_robosuite(task_name), task_name, envs.DATA_SEED + index)
    if episode is not None:
        for side in ("obs", "next_obs"):
            episode |= {f"{side}/{key}": value for key, value in episode.pop(side).items()}
    return episode


def _play(source: str, index: int) -> dict:
    from tools.play import play_episode
    return play_episode(source, envs.DATA_SEED + index)


def _aimed(source: str, task_id: int, index: int) -> dict:
    from tools.play import goal_episode
    return goal_episode(source, task_id, envs.DATA_SEED + 500_000_000 + index)


def _attempt(make, path: Path, index: int) -> int:
    episode = make(index)                                  # None (a failure) is recorded too: it need not be tried again
    buffer = io.BytesIO()
    np.savez(buffer, **(episode or {}))
    _whole(path, lambda temporary: temporary.write_bytes(buffer.getvalue()))
    return index


def _whole(path: Path, write) -> None:
    """write(a temporary file), which then gets its name: never a half file under that. UserError when it cannot be written."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        write(temporary)
    except (OSError, RuntimeError) as error:               # a full disk: h5py reports it as either
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {files.in_one_line(error)}; finished episodes are kept, the same command goes on from them") from None
    os.replace(temporary, path)


def _read_part(path: Path) -> dict:
    with np.load(path) as part:
        return {key: part[key] for key in part.files}


# ------------------------------------------------------------------------------------------------- all attempts
def _attempts(make, parts: Path, kind: str, wanted: int, count, workers: int, label: str, first: int = 0) -> tuple[list[Path], int]:
    """The attempts from number `first` on whose counts add up to `wanted`, and how many were needed; runs those that are missing."""
    file = lambda index: parts / f"{kind}-{index:06d}.npz"                # noqa: E731
    done = {int(part.stem.split("-")[1]) for part in parts.glob(f"{kind}-*.npz")}
    total, chosen, frontier, submitted, pending = 0, [], first, first, set()
    bar = tqdm(total=wanted, desc=f"generating {label}", unit="", dynamic_ncols=True, file=sys.stderr)
    context = multiprocessing.get_context("spawn")         # safe on macOS and beside torch's threads
    threads = contextlib.ExitStack()                       # processes start when work is submitted, so it spans all of it
    threads.enter_context(simulators.single_threaded_children())
    pool = concurrent.futures.ProcessPoolExecutor(workers, context, initializer=simulators.behave_as_worker)
    try:
        while True:
            while total < wanted and frontier in done:     # strictly in order: the set must not depend on who was faster
                episode = _read_part(file(frontier))
                if episode:
                    chosen.append(file(frontier))
                    bar.update(min(count(episode), wanted - total))
                    total += count(episode)
                frontier += 1
            if total >= wanted:
                return chosen, frontier - first
            if frontier >= first + 100 and not chosen:
                raise UserError(f"100 attempts at {label} and no success: the simulator's version does not fit "
                                "(requirements.txt has the versions that work)")
            while len(pending) < 2 * workers:
                if submitted not in done:
                    pending.add(pool.submit(_attempt, make, file(submitted), submitted))
                submitted += 1
            finished, pending = concurrent.futures.wait(pending, return_when=concurrent.futures.FIRST_COMPLETED)
            done |= {future.result() for future in finished}
    except concurrent.futures.process.BrokenProcessPool:
        raise UserError("a generating process died (out of memory?); run the same command again, finished episodes are "
                        "kept, perhaps with --workers 1") from None
    finally:
        pool.shutdown(cancel_futures=True)
        threads.close()
        bar.close()


def _assemble(path: Path, write, **origin) -> None:
    _whole(path, write)
    simulators = {d.name: d.version for d in metadata.distributions() if d.name in ("mujoco", "robosuite", "ogbench", "numpy")}
    files.remember(path, files.record_of(path), generator=VERSION, seed=envs.DATA_SEED, **origin, versions=simulators)


def write_robomimic(path: Path, task: envs.Task, episodes) -> None:
    """robomimic's HDF5 format, v1.5: data/demo_i/{obs/*, next_obs/*, actions, rewards, dones, states}, mask/*."""
    import h5py
    env_args = dict(env_name=task.source, env_version=envs.import_robosuite().__version__, type=1,
                    env_kwargs=envs.robosuite_args(task.name))
    with h5py.File(path, "w", track_order=True) as file:
        data, names, operators, total = file.create_group("data"), [], {}, 0
        for i, episode in enumerate(episodes):
            group = data.create_group(f"demo_{i}")
            names.append(f"demo_{i}")
            operator = str(episode.pop("operator"))
            operators.setdefault(operator, []).append(f"demo_{i}")
            group.attrs.update(num_samples=len(episode["actions"]), operator=operator, model_file=str(episode.pop("model_file")))
            total += len(episode["actions"])
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


def main() -> None:
    parser = command_line.OneLineParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--task", required=True)
    parser.add_argument("--size", type=int, required=True, help="demonstrations (Robomimic) or transitions (OGBench)")
    parser.add_argument("--goal-share", type=float, default=0.0, help="OGBench: share of transitions from episodes aimed at the task's goal")
    parser.add_argument("--folder", type=Path, default="data/generated")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    if args.size < 1 or args.workers < 1 or not 0 <= args.goal_share <= 1:
        raise UserError("--size and --workers must be positive, --goal-share must lie in [0, 1]")
    for path in generate(envs.task(args.task), args.size, args.folder, args.goal_share, args.workers, val=True):
        print(path)


if __name__ == "__main__":
    command_line.main(main)
