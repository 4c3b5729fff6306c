"""Data files, read as if a stranger had made them.

    demonstrations(path, ...)   robomimic HDF5, one demonstration after the other
    blocks(path, ...)           OGBench npz, some rows after the others, so that memory does not grow with the file
    table(path, ...)            six arrays of one's own, npz or HDF5
    trusted(path, ...)          the record that vouches for a file: made at first success, compared at every later load

Nothing is unpickled, no link is followed, nothing is allocated before its declared size has been compared with the file's, and
every number is looked at. What is wrong is a ValueError of one line. libhdf5 itself can still crash on a hostile file, so what
has no record is first read in a child process with limits on time and memory. This file needs numpy and h5py alone: the child
starts in a quarter of a second.
"""
import contextlib
import datetime
import hashlib
import json
import os
import re
import resource
import select
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np

BLOCK = 50_000           # rows read at once
TOLERANCE = 1e-3         # by which an action may lie outside [-1, 1]: rounding, but not another scale
SLACK = 64 << 20         # bytes that any file may unpack to; beyond, 20 times its own size (float data shrink to a third or so)
CHILD_MEMORY = 1 << 30   # bytes that reading a file may take on top of the interpreter


def need(ok, message: str) -> None:
    if not ok:
        raise ValueError(message)


def fits(name: str, shape: tuple, wanted: tuple) -> None:
    """None in the wanted shape stands for any length."""
    need(len(shape) == len(wanted) and all(want in (None, have) for want, have in zip(wanted, shape)),
         f"{name} have shape {shape}, not ({', '.join('any' if want is None else str(want) for want in wanted)})")


def check(name: str, array: np.ndarray, shape: tuple) -> np.ndarray:
    """One field of that shape, finite, as float32."""
    fits(name, array.shape, shape)
    with np.errstate(over="ignore", invalid="ignore"):     # what does not fit becomes infinite, or NaN
        array = array.astype(np.float32)
    need(np.isfinite(array).all(), f"{name} contain NaN or infinite values")
    if name == "actions":
        need(np.abs(array).max(initial=0) <= 1 + TOLERANCE, f"actions reach {np.abs(array).max(initial=0):.3g}, outside [-1, 1]")
    if name in ("dones", "terminals", "masks"):
        need(np.isin(array, (0, 1)).all(), f"{name} are not all 0 or 1")
    return array


# ----------------------------------------------------------------------------------------------------------- HDF5
def _item(group, name: str):
    """group[name], if it lies in this very file."""
    import h5py
    link = group.get(name, getlink=True)
    need(link is not None, f"{group.name} has no {name!r}")
    need(isinstance(link, h5py.HardLink), f"{group.name}/{name} is a link to elsewhere")
    return group[name]


def _array(group, name: str) -> np.ndarray:
    import h5py
    dataset = _item(group, name)
    need(isinstance(dataset, h5py.Dataset) and dataset.shape is not None and dataset.dtype.kind in "fiub",
         f"{group.name}/{name} is no array of numbers")
    need(not dataset.is_virtual and dataset.external is None, f"{group.name}/{name} keeps its numbers in another file")
    need(dataset.nbytes <= SLACK + 20 * os.path.getsize(group.file.filename), f"{group.name}/{name} claims {dataset.nbytes:.1e} bytes")
    return dataset[()]


def _group(parent, name: str):
    import h5py
    group = _item(parent, name)
    need(isinstance(group, h5py.Group), f"{group.name} is no group")
    return group


def demonstrations(path, keys, obs_dim: int, action_dim: int):
    """robomimic's low-dim HDF5 -> dicts of obs [T, O], next_obs, actions, rewards, dones, in the order of the demos' numbers."""
    import h5py
    gap = motion = taken = 0.0
    with h5py.File(path, "r") as file:
        data = _group(file, "data")
        numbers = {name: re.fullmatch(r"demo_(\d+)", name) for name in data}
        need(numbers, "it holds no demonstration")
        need(all(numbers.values()), f"{next((n for n, match in numbers.items() if not match), '')!r} is not named demo_<number>")
        for name in sorted(data, key=lambda name: int(numbers[name][1])):                # demo_10 comes after demo_9
            group = _group(data, name)
            demo = {"actions": check("actions", _array(group, "actions"), (None, action_dim))}
            steps = len(demo["actions"])
            need(steps, f"{name} is empty")
            need(group.attrs.get("num_samples", steps) == steps, f"{name} says it has {group.attrs.get('num_samples')} steps, but has {steps}")
            for side in ("obs", "next_obs"):
                parts = [_array(_group(group, side), key) for key in keys]
                need(all(part.ndim == 2 and len(part) == steps for part in parts), f"{name}/{side} does not have {steps} rows of every key")
                demo[side] = check(f"{name}/{side}", np.concatenate(parts, axis=1), (steps, obs_dim))
            for key in ("rewards", "dones"):
                demo[key] = check(key, _array(group, key), (steps,))
            need(np.isin(demo["rewards"], (0, 1)).all(), "rewards are not all 0 or 1")
            gap += np.abs(demo["next_obs"][:-1] - demo["obs"][1:]).sum(dtype=float)
            motion += np.abs(demo["obs"][1:] - demo["obs"][:-1]).sum(dtype=float)
            taken += sum(array.nbytes for array in demo.values())
            need(taken <= SLACK + 20 * os.path.getsize(path), "it unpacks to far more than its size")
            yield demo
    need(2 * gap <= motion, "next_obs are not the observations that follow")


# ----------------------------------------------------------------------------------------------------------- npz
def _members(path, names, stack: contextlib.ExitStack) -> dict:
    """{name: (stream at its first number, dtype, shape)} of an npz file, headers compared with what the archive declares."""
    archive = stack.enter_context(zipfile.ZipFile(path))
    declared = sum(info.file_size for info in archive.infolist())
    need(declared <= SLACK + 20 * os.path.getsize(path), f"it would unpack to {declared:.1e} bytes")
    members = {}
    for name in names:
        need(name + ".npy" in archive.namelist(), f"it has no {name!r}")
        info = archive.getinfo(name + ".npy")
        stream = stack.enter_context(archive.open(info))
        version = np.lib.format.read_magic(stream)
        need(version in ((1, 0), (2, 0)), f"{name} is in npy format {version}")
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = header(stream)
        need(dtype.kind in "fiub", f"{name} is no array of numbers")       # pickled objects end here
        need(not by_columns or len(shape) == 1, f"{name} is stored by columns")
        need(stream.tell() + dtype.itemsize * int(np.prod(shape, dtype=object)) == info.file_size, f"{name} does not have the size of its shape {shape}")
        members[name] = stream, dtype, shape
    need(len({shape[:1] for _, _, shape in members.values()}) == 1, f"{', '.join(names)} differ in length")
    need(all(shape and shape[0] for _, _, shape in members.values()), "it holds no rows")
    return members


def _read(member, rows: int) -> np.ndarray:
    stream, dtype, shape = member
    size = rows * dtype.itemsize * int(np.prod(shape[1:], dtype=object))
    data = stream.read(size)
    need(len(data) == size, "it ends too early")
    return np.frombuffer(data, dtype).reshape(rows, *shape[1:])


def _at_end(members) -> None:
    need(not any(stream.read(1) for stream, _, _ in members.values()), "an array is longer than declared")     # and its checksum fits


def blocks(path, obs_dim: int, action_dim: int, extra=(), rows: int = BLOCK):
    """OGBench's npz -> dicts of observations, actions, terminals, qpos and `extra`, up to `rows` rows each. terminals are 1 at
    the last row of a trajectory, whose action leads nowhere."""
    with contextlib.ExitStack() as stack:
        members = _members(path, ("observations", "actions", "terminals", "qpos", *extra), stack)
        widths = dict(observations=(obs_dim,), actions=(action_dim,), terminals=(), qpos=(None,), qvel=(None,), button_states=(None,))
        for name, (_, _, shape) in members.items():        # before anything of that width is read
            fits(name, shape, (None, *widths[name]))
        left, before = members["actions"][2][0], 1.0
        while left:
            count = min(rows, left)
            block = {name: check(name, _read(member, count), (count, *widths[name])) for name, member in members.items()}
            ends = np.r_[before, block["terminals"]]
            need(not (ends[1:] * ends[:-1]).any(), "a trajectory is empty")
            left, before = left - count, ends[-1]
            yield block
        need(before == 1, "the last trajectory has no end")
        _at_end(members)


def table(path, names, obs_dim: int, action_dim: int) -> dict[str, np.ndarray]:
    """Arrays of one's own, one row a transition, from an npz or HDF5 file."""
    path = Path(path)
    with contextlib.ExitStack() as stack:
        if path.suffix == ".npz":
            members = _members(path, names, stack)
            arrays = {name: _read(member, member[2][0]) for name, member in members.items()}
            _at_end(members)
        else:
            import h5py
            file = stack.enter_context(h5py.File(path, "r"))
            arrays = {name: _array(file, name) for name in names}
    rows = len(np.atleast_1d(arrays["actions"]))
    need(rows, "it holds no rows")
    for name in names:
        width = (obs_dim,) if name.endswith("observations") else (action_dim,) if name == "actions" else ()
        arrays[name] = check(name, arrays[name], (rows, *width))
    need(arrays["terminals"][-1] == 1, "terminals[-1] is not 1: the last episode has no end")
    return arrays


# --------------------------------------------------------------------------------------------------- in a child process
READERS = {"robomimic": demonstrations, "ogbench": blocks, "own": table}


def _serve() -> None:
    """The child: reads the files named on its standard input, one JSON line each, and answers what is wrong with each."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)                                          # whatever a library prints must not be taken for an answer
    with contextlib.suppress(OSError, ValueError, resource.error):      # macOS has no such limit, and no /proc
        own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (own + CHILD_MEMORY, resource.RLIM_INFINITY))
    for line in sys.stdin:
        path, suite, words, seconds = json.loads(line)
        used = resource.getrusage(resource.RUSAGE_SELF)
        with contextlib.suppress(OSError, ValueError):     # a child whose parent has gone must end by itself
            resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + seconds) + 2, resource.RLIM_INFINITY))
        answers.write(json.dumps(complaint(path, suite, words)) + "\n")


def complaint(path, suite: str, words) -> str:
    """What is wrong with a file, in one line; empty if nothing is."""
    try:
        for _ in READERS[suite](path, *words):
            pass
        return ""
    except Exception as error:       # for a broken file the libraries raise almost anything: OSError, KeyError, BadZipFile
        return in_one_line(error)


def in_one_line(error: Exception) -> str:
    kind = "" if type(error) is ValueError else type(error).__name__ + ": "
    return " ".join(f"{kind}{error}".split())[:300]


class Checker:
    """checker(path, suite, words) -> complaint(...), asked of a child process: a crash, a hang or a flood of memory ends nothing
    but the child, and the next file gets another one."""
    child = None

    def __call__(self, path, suite: str, words, seconds: float | None = None) -> str:
        seconds = seconds or 60 + os.path.getsize(path) / 5e6
        if self.child is None:
            start = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); from tools import files; files._serve()"
            self.child = subprocess.Popen([sys.executable, "-c", start], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                          stderr=subprocess.DEVNULL, bufsize=0, start_new_session=True)
        with contextlib.suppress(BrokenPipeError):
            self.child.stdin.write((json.dumps([str(path), suite, words, seconds]) + "\n").encode())
        in_time = select.select([self.child.stdout], [], [], seconds)[0]
        answer = self.child.stdout.readline() if in_time else b""
        if answer:
            return json.loads(answer)
        code = self.close()
        return f"reading it ended the process that tried (code {code})" if in_time else f"reading it takes longer than {seconds:.0f} s"

    def close(self) -> int:
        code = 0
        if self.child is not None:
            self.child.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.child.wait(0.2)
            self.child.kill()
            code = self.child.wait()
            self.child.stdout.close()
        self.child = None
        return code

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


# ------------------------------------------------------------------------------------------------------------- records
RECORD = ("path", "bytes", "mtime", "sha256", "recorded")        # what every record has; the rest is the file's origin


def sha256(path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_of(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def remember(path: Path, record: Path, **origin) -> dict:
    """Writes down what a file is, now that it is known to be good."""
    stat = path.stat()
    entry = dict(path=os.path.relpath(path, record.parent), bytes=stat.st_size, mtime=stat.st_mtime_ns, sha256=sha256(path),
                 recorded=datetime.datetime.now().isoformat(timespec="seconds"), **origin)
    temporary = record.with_name(record.name + ".tmp")
    temporary.write_text(json.dumps(entry, indent=1))
    os.replace(temporary, record)
    return entry


def recorded(path: Path, record: Path) -> dict | None:
    """The record of this very file, whatever has become of the file since."""
    try:
        entry = json.loads(record.read_text())
        return entry if entry["path"] == os.path.relpath(path, record.parent) and entry["bytes"] >= 0 and entry["mtime"] and len(entry["sha256"]) == 64 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def trusted(path: Path, record: Path, checker: Checker, suite: str, words, **origin) -> dict:
    """A file's record: RECORD and its origin. The first time, the file is read in a child process
    before. Later size and time are compared, and only if the time differs the checksum. ValueError of one line."""
    entry, stat = recorded(path, record), path.stat()
    if entry is None:
        wrong = checker(path, suite, words)
        need(not wrong, wrong)
        record.parent.mkdir(parents=True, exist_ok=True)
        return remember(path, record, **origin)
    if (stat.st_size, stat.st_mtime_ns) == (entry["bytes"], entry["mtime"]):
        return entry
    need(stat.st_size == entry["bytes"] and sha256(path) == entry["sha256"],
         f"it has changed since {entry['recorded']} ({entry['bytes']} bytes then, {stat.st_size} now): if that was meant, delete {record}")
    return remember(path, record, **{k: v for k, v in entry.items() if k not in RECORD})
