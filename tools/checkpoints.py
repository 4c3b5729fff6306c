"""Files that survive a killed process, a full disk and a failing one, and that cannot hurt whoever reads them.

    write(path, bytes)           whole or not at all
    save(path, state)            tensors and plain data, with a checksum; the file of before stays as *.previous
    read(path), read_newest(path)                what save() wrote; UserError of one line for everything else
    like(saved, expected)        refuses what has another structure, shape or type, before anything is loaded from it
    fit(saved, algorithm)        the same for an algorithm's state, given back ready to load
"""
import hashlib
import io
import json
import os
import pickletools
import re
import zipfile
from pathlib import Path

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from config import UserError

FORMAT = 3           # of checkpoints; raised when an older one can no longer be read


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


# ------------------------------------------------------------------------------------------------- writing
def write(path: Path, body, keep: bool = False) -> None:
    """The bytes under this name, whole or not at all: they are on the disk before they take the name. keep: what had it
    before stays as *.previous, so that at every moment one of the two is whole. OSError, with nothing lost."""
    temporary = beside(path, ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        temporary.unlink(missing_ok=True)                        # a full disk: give the space back
        raise OSError(error.errno, error.strerror, str(path)) from None
    if keep and path.exists():
        os.replace(path, beside(path, ".previous"))
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)                   # names are the folder's content: without this a power
    try:                                                         # failure may bring the old one back
        os.fsync(folder)
    finally:
        os.close(folder)


def save(path: Path, state: dict) -> None:
    """A state that read() gives back. Everything is put together in memory first: torch, writing to a file itself, hides
    the disk's error behind one of its own."""
    # A view, of one seed among several (tools/seeds.py), would bring the whole tensor with it.
    part = lambda x: isinstance(x, Tensor) and x.untyped_storage().nbytes() > x.nbytes         # noqa: E731
    inner, outer = io.BytesIO(), io.BytesIO()
    torch.save(pytree.tree_map(lambda x: x.clone() if part(x) else x, state), inner)
    body = inner.getbuffer()
    torch.save({"format": FORMAT, "sha256": hashlib.sha256(body).hexdigest(),
                "state": torch.frombuffer(body, dtype=torch.uint8)}, outer)
    write(path, outer.getbuffer(), keep=True)


# ------------------------------------------------------------------------------------------------- reading
# What the pickle of tensors and plain data names. torch's weights_only knows more, bytearray(10**12) for one.
NAMES = re.compile(r"collections OrderedDict|torch\._utils _rebuild_tensor_v2|torch \w+Storage")


def unpacked(content: bytes):
    """torch.load of what torch.save wrote, and of nothing that would run code or unpack to more than it takes on the disk."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        if any(e.compress_type for e in entries) or sum(e.file_size for e in entries) > len(content):
            raise ValueError("a bomb")
        for entry in entries:
            if entry.filename.endswith(".pkl"):
                for operation, word, _ in pickletools.genops(archive.read(entry)):
                    if "GLOBAL" in operation.name and not NAMES.fullmatch(word or ""):
                        raise ValueError("not plain data")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def read(path: Path) -> dict:
    """A saved state, on the CPU (whoever loads it moves it): a dict with a step. UserError if it is broken."""
    try:
        content = path.read_bytes()
        outer = unpacked(content)
        found = outer["format"]
        if found == FORMAT:
            if outer["state"].numel() > len(content):            # one stored byte may call itself a trillion
                raise ValueError("a bomb")
            body = outer["state"].numpy().tobytes()
            if hashlib.sha256(body).hexdigest() != outer["sha256"]:
                raise ValueError("checksum")
            state = unpacked(body)
            if not (isinstance(state, dict) and natural(state["step"])):
                raise ValueError("no step")
            return state
    except Exception as error:                                   # for a broken file zipfile and torch raise almost anything
        raise UserError(f"{path} is not a readable checkpoint ({type(error).__name__}); delete it to start over") from None
    raise UserError(f"{path} has checkpoint format {str(found)[:20]}, this version reads format {FORMAT}: train again, or take the "
                    "version of this code that wrote it (config.json names its commit)")


def read_newest(path: Path, set_aside: bool = False) -> dict | None:
    """The newest state that is whole: `path`, or the one kept before it. None when there is neither; UserError when all
    there is is broken. set_aside: a broken one becomes *.broken, or the next save would keep it in place of the good one."""
    problem = None
    for candidate in (path, beside(path, ".previous")):
        if candidate.exists():
            try:
                state = read(candidate)
            except UserError as error:
                problem = error
                continue
            if problem:
                print(f"{problem}; going on from the one before it, at step {state['step']}")
                if set_aside:
                    os.replace(path, beside(path, ".broken"))
            return state
    if problem:
        raise problem
    return None


# ------------------------------------------------------------------------------------------------- is it what we expect?
def natural(value) -> bool:
    return type(value) is int and 0 <= value < 2**63


def same(saved, value) -> bool:
    """Whether two pieces of plain data are equal; with a tensor in them they are not."""
    try:
        return json.dumps(saved, sort_keys=True) == json.dumps(value, sort_keys=True)
    except (TypeError, ValueError, RecursionError):
        return False


def tensors(state, name: str = ""):
    """(dotted name, tensor) of every tensor in nested dicts and lists."""
    if isinstance(state, Tensor):
        yield name, state
    elif isinstance(state, (dict, list)):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            yield from tensors(value, f"{name}.{key}".lstrip("."))


def like(saved, expected, name: str = "its state") -> None:
    """ValueError, saying where, unless `saved` has the structure of `expected`: the same keys, the same type of everything,
    tensors finite and of the same shape and dtype. In `expected`, a type stands for its values, a list of one thing for any
    number of such things, and a function decides for itself."""
    if isinstance(expected, type):
        ok = type(saved) is expected
    elif isinstance(expected, Tensor):
        ok = isinstance(saved, Tensor) and (saved.shape, saved.dtype) == (expected.shape, expected.dtype) and saved.is_contiguous()
        if ok and not saved.isfinite().all():
            raise ValueError(f"{name} is not finite")
    elif isinstance(expected, dict):
        ok = isinstance(saved, dict) and saved.keys() == expected.keys()
        for key in expected if ok else ():
            like(saved[key], expected[key], f"{name}.{key}")
    elif isinstance(expected, list):
        ok = type(saved) is list
        for i, part in enumerate(saved if ok else ()):
            like(part, expected[0], f"{name}.{i}")
    elif callable(expected):
        ok = expected(saved)
    else:
        ok = type(saved) is type(expected)
    if not ok:
        raise ValueError(f"{name} is of another kind or size")


def like_generator(saved, generator: torch.Generator, name: str) -> None:
    """ValueError unless `saved` is a state that this generator takes."""
    like(saved, generator.get_state(), name)
    try:
        torch.Generator(generator.device).set_state(saved)
    except RuntimeError:
        raise ValueError(f"{name} is no state of a generator") from None


def fit(saved, algorithm, trained: bool = False) -> dict:
    """An algorithm's saved state, ready for load_state_dict(). ValueError, saying where, if it is another one's. trained: Adam
    has made a step, so its averages must be there."""
    live, device = algorithm.state_dict(), algorithm.device.type
    like(saved, live | dict(optimizer=dict, generator=dict), "algorithm")
    like(saved["optimizer"], dict(state=dict, param_groups=list), "optimizer")
    weights = [p for group in algorithm.optimizer.param_groups for p in group["params"]]
    moments = {i: dict(step=torch.tensor(0.0), exp_avg=w, exp_avg_sq=w) for i, w in enumerate(weights)}
    like(saved["optimizer"]["state"], moments if trained or saved["optimizer"]["state"] else {}, "optimizer.state")
    like(saved["generator"], {"cuda" if "cuda" in saved["generator"] else "cpu": Tensor}, "generator")
    if device in saved["generator"]:                             # a generator's state only fits the device it came from
        like_generator(saved["generator"][device], algorithm.generator, "generator")
    # What Adam is told is config's to say; and another version of torch has other names for it.
    return saved | dict(optimizer=saved["optimizer"] | dict(param_groups=live["optimizer"]["param_groups"]))
