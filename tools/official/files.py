"""Data files: reading what others wrote, and the records that vouch for it.

    demonstrations(path, task), play(path, task), table(path, task)      a file of robomimic, of OGBench, of one's own
    trusted(path, record, read)      a file's record: made when it has first been read, compared at every later load

A file that does not fit says so here, field by field, and not after a day of training: as a ValueError, or as whatever
the libraries raise for a broken file; one_line() makes a UserError of it. Nothing is unpickled.
"""
import contextlib
import datetime
import fcntl
import hashlib
import json
import os
import zipfile
from pathlib import Path

import h5py
import numpy as np

import envs
from buffer import FIELDS
from config import UserError

TOLERANCE = 1e-3                       # by which an action may lie outside [-1, 1]: rounding, but not another scale
INFO = ("qpos", "button_states")       # what the rewards of OGBench's tasks follow from
RECORD = ("path", "bytes", "mtime", "sha256", "recorded")       # what every record has; the rest is the file's origin


def need(ok, message: str) -> None:
    if not ok:
        raise ValueError(message)


# --------------------------------------------------------------------------------------------------- reading
def checked(file, widths: dict, where: str = "", rows: int | None = None) -> dict[str, np.ndarray]:
    """Arrays of an open npz file or HDF5 group, as float32. widths: {name: shape of a row, None: any length}.
    ValueError unless all have as many rows, finite numbers, actions in [-1, 1] and flags of 0 or 1."""
    found = {}
    for key, width in widths.items():
        name = where + key
        need(key in file, f"it has no {name!r}")
        array = np.asarray(file[key])
        is_numbers = array.dtype.kind in "fiub" and array.ndim and array.size
        need(is_numbers, f"{name} is no array of numbers, or an empty one")
        rows = rows or len(array)
        shape = (rows, *(array.shape[1:2] if width is None else width))
        need(array.shape == shape, f"{name} have shape {array.shape}, not {shape}")
        with np.errstate(over="ignore"):                   # what does not fit becomes infinite
            found[key] = array = array.astype(np.float32, copy=False)
        need(np.isfinite(array).all(), f"{name} contain NaN or infinite values")
        if key == "actions":
            largest = np.abs(array).max()
            need(largest <= 1 + TOLERANCE, f"{name} reach {largest:.3g}, outside [-1, 1]")
        if key in ("dones", "terminals", "masks"):
            need(np.isin(array, (0, 1)).all(), f"{name} are not all 0 or 1")
    return found


def in_order(demos) -> list[str]:
    """The names of a robomimic file's demonstrations by their numbers: demo_10 comes after demo_9."""
    need(len(demos), "it holds no demonstration")
    for name in demos:
        need(name[:5] == "demo_" and name[5:].isdecimal(), f"{name!r} is not named demo_<number>")
    return sorted(demos, key=lambda name: int(name[5:]))


def demonstrations(path: Path, task: envs.Task) -> list[dict[str, np.ndarray]]:
    """robomimic's low-dim HDF5 -> of each demo obs, next_obs [T, O], actions [T, A], rewards and dones (0 or 1) [T]."""
    obs_widths = dict(zip(envs.OBS_KEYS, ((3,), (4,), (2,), (task.obs_dim - 9,))))
    demos, gap, motion = [], 0.0, 0.0
    with h5py.File(path, "r") as file:
        for name in in_order(file["data"]):
            group = file["data"][name]
            demo = checked(group, dict(actions=(task.action_dim,), rewards=(), dones=()), name + "/")
            steps = len(demo["actions"])
            said = group.attrs.get("num_samples", steps)
            need(said == steps, f"{name} says it has {said} steps, but has {steps}")
            need(np.isin(demo["rewards"], (0, 1)).all(), f"{name}/rewards are not all 0 or 1")
            for side in ("obs", "next_obs"):
                parts = checked(group[side], obs_widths, f"{name}/{side}/", steps)
                demo[side] = np.concatenate(list(parts.values()), axis=1)
            gap += np.abs(demo["next_obs"][:-1] - demo["obs"][1:]).sum(dtype=float)
            motion += np.abs(demo["obs"][1:] - demo["obs"][:-1]).sum(dtype=float)
            demos.append(demo)
    need(2 * gap <= motion, "next_obs are not the observations that follow")
    return demos


def checked_file(path: Path, widths: dict) -> dict[str, np.ndarray]:
    is_npz = zipfile.is_zipfile(path)
    need(is_npz or h5py.is_hdf5(path), "it is neither a whole npz file nor HDF5")
    with np.load(path, allow_pickle=False) if is_npz else h5py.File(path, "r") as file:
        return checked(file, widths)


def play(path: Path, task: envs.Task, *more: str) -> dict[str, np.ndarray]:
    """OGBench's npz -> observations [T, O], actions [T, A], terminals [T], INFO as far as the task has it, and `more`.
    terminals are 1 at the last row of a trajectory, whose action leads nowhere."""
    info = INFO if task.source.startswith(("scene", "puzzle")) else INFO[:1]
    widths = dict(observations=(task.obs_dim,), actions=(task.action_dim,), terminals=())
    rows = checked_file(path, widths | dict.fromkeys((*info, *more)))
    ends = rows["terminals"]
    need(ends[-1], "the last trajectory has no end")
    need(not (ends * np.r_[1, ends[:-1]]).any(), "a trajectory is empty")
    return rows


def table(path: Path, task: envs.Task) -> dict[str, np.ndarray]:
    """An npz or HDF5 file with the arrays of buffer.FIELDS, one row a transition."""
    obs, action = (task.obs_dim,), (task.action_dim,)
    rows = checked_file(path, dict(zip(FIELDS, (obs, action, (), (), (), obs))))
    need(rows["terminals"][-1], "terminals[-1] is not 1: the last episode has no end")
    return rows


def count(terminals: np.ndarray, reached: np.ndarray) -> dict:
    """What a run records of its data; reached: whether the goal is, row by row."""
    starts = np.flatnonzero(np.r_[1, terminals[:-1]])
    successes = int((np.add.reduceat(reached, starts) > 0).sum())
    longest = int(np.diff(starts, append=len(terminals)).max())
    return dict(transitions=len(terminals), episodes=len(starts), successes=successes, longest=longest)


# --------------------------------------------------------------------------------------------------- records
def record_of(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: dict) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1))
    os.replace(temporary, path)


def remember(path: Path, record: Path, **origin) -> dict:
    """Writes down what a file is, now that it is known to be good."""
    stat, now = path.stat(), datetime.datetime.now().isoformat(timespec="seconds")
    values = (os.path.relpath(path, record.parent), stat.st_size, stat.st_mtime_ns, sha256(path), now)
    entry = dict(zip(RECORD, values)) | origin
    record.parent.mkdir(parents=True, exist_ok=True)
    write_json(record, entry)
    return entry


def recorded(path: Path, record: Path) -> dict | None:
    """The record of this very file, whatever has become of the file since."""
    try:
        entry = json.loads(record.read_text())
        is_whole = set(RECORD) <= set(entry)
        return entry if is_whole and entry["path"] == os.path.relpath(path, record.parent) else None
    except (OSError, ValueError, TypeError):
        return None


def trusted(path: Path, record: Path, read) -> dict:
    """A file's record: RECORD and its origin. Before one is made the file is read. Later size and time are compared,
    and where only the time differs the checksum. ValueError where it has changed."""
    entry, stat = recorded(path, record), path.stat()
    if entry is None:
        read(path)
        return remember(path, record)
    if (stat.st_size, stat.st_mtime_ns) == (entry["bytes"], entry["mtime"]):
        return entry
    need(stat.st_size == entry["bytes"] and sha256(path) == entry["sha256"],
         f"it has changed since {entry['recorded']} ({entry['bytes']} bytes then, {stat.st_size} now): "
         f"if that was meant, delete {record}")
    return remember(path, record, **{name: value for name, value in entry.items() if name not in RECORD})


# --------------------------------------------------------------------------------------------------- errors, and a lock
def in_one_line(error: Exception) -> str:
    kind = "" if type(error) is ValueError else type(error).__name__ + ": "
    return " ".join(f"{kind}{error}".split())[:300]


@contextlib.contextmanager
def one_line(path: Path, task: envs.Task):
    """Whatever is wrong with a file becomes a UserError of one line. Only a file whose record says that this project
    fetched or generated it may be deleted: any other may be somebody's only copy."""
    try:
        yield
    except UserError:
        raise
    except (ImportError, MemoryError) as error:
        raise UserError(f"{path} cannot be read: {in_one_line(error)}; see requirements.txt and the memory") from None
    except Exception as error:           # for a broken file the libraries raise OSError, KeyError, BadZipFile, ...
        origin = recorded(path, record_of(path)) or {}
        advice = "; delete it to fetch or generate it again" if {"url", "generator"} & set(origin) else ""
        raise UserError(f"{path} is no usable data of {task.name}: {in_one_line(error)}{advice}") from None


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
