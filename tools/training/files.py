"""The files of a run, whole or not at all: config.json, checkpoints, the tables train.csv, eval.csv, evaluate.csv."""
import contextlib
import csv
import errno
import fcntl
import functools
import io
import json
import os
import zipfile
from pathlib import Path

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from config import Config, UserError, from_plain

say_once = functools.cache(print)
FORMAT = 5           # of checkpoints; raised when an older one can no longer be read


def write_whole(path: Path, body, keep: bool = False) -> None:
    """The bytes are on the disk before they take this name. keep: what had it before stays as *.previous. OSError
    where the disk is full, and nothing is lost."""
    temporary = Path(f"{path}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        temporary.unlink(missing_ok=True)                        # gives the space back
        raise OSError(error.errno, error.strerror, str(path)) from None
    if keep and path.exists():
        os.replace(path, Path(f"{path}.previous"))
    os.replace(temporary, path)


def write_json(path: Path, content: dict) -> None:
    write_whole(path, json.dumps(content, indent=1).encode())


def read_config(folder: str | Path) -> tuple[Config, dict]:
    """config.json -> (Config, the whole record). UserError where there is none."""
    try:
        record = json.loads((Path(folder) / "config.json").read_text())
        if not all(isinstance(record["data"][k], str) for k in ("kind", "sha256")):      # which reports go by
            raise TypeError
        return from_plain(record["config"]), record
    except UserError as error:
        raise UserError(f"{folder}/config.json: {error}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} is not a run's folder: its config.json cannot be read "
                        f"({type(error).__name__})") from None


def save_state(path: Path, state: dict) -> None:
    """Tensors and plain data, by torch.save; what was there before stays as *.previous."""
    body = io.BytesIO()                  # torch, writing to a file itself, hides the disk's error behind one of its own
    torch.save({"format": FORMAT} | pytree.tree_map(_without_surroundings, state), body)
    write_whole(path, body.getbuffer(), keep=True)


def _without_surroundings(x):
    """A view, of one seed among several, would bring the whole tensor with it."""
    return x.clone() if isinstance(x, Tensor) and x.untyped_storage().nbytes() > x.nbytes else x


def read_state(path: Path) -> dict:
    """What save_state() wrote, on the CPU (whoever loads it moves it). UserError if it is broken."""
    try:
        with zipfile.ZipFile(path) as parts:         # which is torch's format; torch does not look at its checksums
            if damaged := parts.testzip():
                raise ValueError(f"a wrong checksum in {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["format"] != FORMAT:
            raise ValueError(f"checkpoint format {state['format']}, this version reads format {FORMAT}")
        return state
    except Exception as error:                                   # for a broken file torch raises almost anything
        reason = error if type(error) is ValueError else type(error).__name__        # torch's own text says little
        raise UserError(f"{path} is not a readable checkpoint ({reason}); move it away to start over") from None


def read_newest(path: Path, set_aside: bool = False) -> dict | None:
    """The newest state that is whole: `path`, or the one before it. None when there is neither, UserError when all
    are broken. set_aside: a broken one becomes *.broken, or the next save would keep it in place of the good one."""
    problem = None
    for candidate in (path, Path(f"{path}.previous")):
        if not candidate.exists():
            continue
        try:
            state = read_state(candidate)
        except UserError as error:
            problem = error
            continue
        if problem:
            print(f"{problem}; going on from the one before it, at step {state['step']}")
            if set_aside:
                os.replace(path, Path(f"{path}.broken"))
        return state
    if problem:
        raise problem
    return None


def load_networks(algo, state: dict, where: Path, only: tuple[str, ...] | None = None) -> None:
    """A checkpoint's state, or these parts of it, into an algorithm. UserError where it is another one's, or not
    finite."""
    try:
        saved = state["algorithm"]
        algo.load_state_dict(algo.state_dict() | {name: saved[name] for name in only} if only else saved)
        for weight, adam in algo.optimizer.state.items():        # strict=True looks at weights alone
            if adam["exp_avg"].shape != weight.shape or adam["exp_avg_sq"].shape != weight.shape:
                raise ValueError("Adam's moments are of another size")
        for name, values in tensors(algo.state_dict()):
            if not values.isfinite().all():
                raise ValueError(f"{name} is not finite")
    except Exception as error:       # of the wrong kind of thing torch complains in many ways
        raise UserError(f"the checkpoint in {where} does not fit the networks that its config.json describes "
                        f"({in_one_line(error)})") from None


def tensors(state, name: str = ""):
    """(dotted name, tensor) of every tensor in nested dicts and lists."""
    if isinstance(state, Tensor):
        yield name, state
    elif isinstance(state, (dict, list)):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            yield from tensors(value, f"{name}.{key}".lstrip("."))


def in_one_line(error: Exception) -> str:
    kind = "" if type(error) is ValueError else f"{type(error).__name__}: "          # ours say enough
    return " ".join(f"{kind}{error}".split())[:300]


READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def one_at_a_time(folder: Path, wait: bool = True):
    """Processes started side by side take turns in a folder. Without `wait` the second is refused, and so is a folder
    where nobody can write: with it, what is there may still be read. UserError."""
    lock = contextlib.nullcontext()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise UserError(f"another process is running in {folder}") from None
            print(f"waiting: another process fetches, makes or reads data in {folder}", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno in NO_LOCKS:
            say_once(f"warning: the file system of {folder} knows no locks: start nothing else there meanwhile")
        elif not wait or error.errno not in READ_ONLY:
            option = "--data-dir" if wait else "--out"
            raise UserError(f"cannot write to {folder}: {error.strerror}; choose another {option}") from None
    with lock:
        yield


# ------------------------------------------------------------------------------------------------------------- tables
EVAL_COLUMNS = ("step", "stage", "success", "episodes", "length", "return", "seconds")
EVALUATE_COLUMNS = (*EVAL_COLUMNS[:-1], "best_of")
COLUMNS = {"eval.csv": EVAL_COLUMNS, "evaluate.csv": EVALUATE_COLUMNS}           # train.csv: step, stage, any others


def read_rows(path: Path) -> list[dict]:
    """A table's rows, as text; none where there is no file. UserError where it is no such table."""
    try:
        rows = [*csv.DictReader(io.StringIO(whole_lines(path).decode(), newline=""), strict=True)]
        header = tuple(rows[0]) if rows else ()
        if rows and header != COLUMNS.get(path.name, ("step", "stage", *header[2:])):
            raise ValueError("other columns than a run's")
        for row in rows:
            if None in row or None in row.values():
                raise ValueError(f"the row of step {row['step']} is not as long as the header")
            for name, value in row.items():
                if name != "stage" and (value or name in EVALUATE_COLUMNS):      # empty: a loss of the other stage
                    (int if name in ("step", "episodes", "best_of") else float)(value)
    except (csv.Error, ValueError) as error:
        raise UserError(f"{path} cannot be read ({str(error)[:100]}); mend it, or move it away") from None
    return rows


def whole_lines(path: Path) -> bytes:
    """Without a last line that a kill has cut short."""
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1]


def csv_bytes(table) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(table)
    return text.getvalue().encode()


def write_rows(path: Path, rows: list[dict], header) -> None:
    write_whole(path, csv_bytes([[*header], *([row.get(k, "") for k in header] for row in rows)]))


def append_row(path: Path, row: dict) -> None:
    """One row at the end, whole or not at all; the header grows, as stage 2 has more losses. OSError on a full disk."""
    old = whole_lines(path)
    header = next(csv.reader([line.decode() for line in old.splitlines()[:1]]), [])
    if not set(row) <= set(header):
        write_rows(path, read_rows(path), [*header, *(k for k in row if k not in header)])
        return append_row(path, row)
    line = csv_bytes([[row.get(k, "") for k in header]])
    with open(path, "ab", buffering=0) as file:      # without a buffer: what is refused is refused now
        file.truncate(len(old))
        try:
            if file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            file.truncate(len(old))
            raise OSError(error.errno, error.strerror, str(path)) from None


def cut_rows_after(folder: Path, step: int) -> None:
    """A resumed run repeats what followed its checkpoint. Both tables are read before one is written."""
    for path, rows in [(folder / name, read_rows(folder / name)) for name in ("train.csv", "eval.csv")]:
        if rows:
            write_rows(path, [row for row in rows if int(row["step"]) <= step], rows[0])


def take_rows(sibling: Path, folder: Path, last: int, episodes: int) -> None:
    """Stage 1's rows of a sibling; the last evaluation only if it had as many episodes as this run's would."""
    for name in ("train.csv", "eval.csv"):
        rows = [row for row in read_rows(sibling / name) if row["stage"] == "offline"
                and (int(row["step"]) < last or int(row.get("episodes", episodes)) == episodes)]
        if rows:
            write_rows(folder / name, rows, rows[0])
