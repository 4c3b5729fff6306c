"""A run's tables: train.csv, eval.csv and evaluate.csv, one row at a time.

    read_rows(path)              all rows, by column name; UserError of one line for what no run writes
    append_row(path, row)        one more, whole or not at all
    write_rows(path, rows, header)               the table anew
"""
import csv
import errno
import io
import math
import os
import re
from pathlib import Path

from config import UserError
from tools.checkpoints import write

EVAL_COLUMNS = ("step", "stage", "success", "episodes", "length", "return", "seconds")
COLUMNS = {"eval.csv": EVAL_COLUMNS, "evaluate.csv": (*EVAL_COLUMNS[:-1], "best_of")}      # train.csv: step, stage, any others


def read_rows(path: Path) -> list[dict]:
    """A run's table by column name, as text; none where there is no file. A last line that was cut short is left out.
    UserError where it holds what no run writes."""
    rows, before = [], -1
    try:
        header, *lines = [*csv.reader(io.StringIO(whole_lines(path).decode(), newline=""), strict=True)] or [None]
        if header is None:
            return []
        if tuple(header) != COLUMNS.get(path.name, tuple(dict.fromkeys(["step", "stage", *header]))):
            raise ValueError("other columns than a run's")
        for line in lines:
            if len(line) != len(header):
                raise ValueError(f"{len(line)} values for {len(header)} columns after step {before}")
            rows.append(row := dict(zip(header, line)))
            check_row(path, row)
            if path.name != "evaluate.csv" and int(row["step"]) <= before:
                raise ValueError(f"step {row['step']} follows step {before}")
            before = int(row["step"])
    except (csv.Error, ValueError) as error:                     # another encoding is a ValueError too
        raise UserError(f"{path} cannot be read ({str(error)[:100]}); mend it, or delete it to go on without") from None
    return rows


def check_row(path: Path, row: dict) -> None:
    """ValueError for a row of text that no run writes into its table of this name."""
    for name, value in row.items():
        if name == "stage":
            ok = value in ("offline", "online")
        elif name in ("step", "episodes", "best_of"):
            ok = re.fullmatch(r"\d{1,18}", value, re.ASCII)
        elif value == "":
            ok = path.name not in COLUMNS                        # in train.csv: a loss that the other stage has
        else:                                                    # float() alone would read 1_0 too
            ok = re.fullmatch(r"-?[0-9.]+(e[-+]?[0-9]+)?", value) and math.isfinite(float(value))
            ok = ok and (name != "success" or 0 <= float(value) <= 1)
        if not ok:
            raise ValueError(f"{name[:40]!r} is {value[:40]!r} at step {row['step'][:20]!r}")


def whole_lines(path: Path) -> bytes:
    """Without a last line that was cut short; nothing where there is no file."""
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1]


def csv_bytes(table) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(table)
    return text.getvalue().encode()


def write_rows(path: Path, rows: list[dict], header) -> None:
    write(path, csv_bytes([[*header], *([row.get(k, "") for k in header] for row in rows)]))


def append_row(path: Path, row: dict) -> None:
    """One row at the end, whole or not at all; columns that appear later (stage 2 has more losses) are added to the header.
    OSError when the disk is full, and the table is as before; UserError for a row that read_rows would refuse."""
    try:
        check_row(path, {k: str(v) for k, v in row.items()})
    except ValueError as error:
        raise UserError(f"{error}, which does not belong in {path}") from None
    old = whole_lines(path)
    header = next(csv.reader([line.decode() for line in old.splitlines()[:1]]), [])
    if not set(row) <= set(header):
        write_rows(path, read_rows(path), [*header, *(k for k in row if k not in header)])
        return append_row(path, row)
    line = csv_bytes([[row.get(k, "") for k in header]])
    with open(path, "ab", buffering=0) as file:                  # without a buffer: what is refused is refused now
        file.truncate(len(old))
        try:
            if file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            file.truncate(len(old))
            raise OSError(error.errno, error.strerror, str(path)) from None
