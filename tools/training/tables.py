"""A run's tables: train.csv, eval.csv and evaluate.csv, one row at a time.

    read_rows(path)              all rows, by column name, as text
    append_row(path, row)        one more, whole or not at all
    write_rows(path, rows, header)               the table anew
"""
import csv
import errno
import io
import os
from pathlib import Path

from config import UserError
from run import write_whole

EVAL_COLUMNS = ("step", "stage", "success", "episodes", "length", "return", "seconds")
EVALUATE_COLUMNS = (*EVAL_COLUMNS[:-1], "best_of")
COLUMNS = {"eval.csv": EVAL_COLUMNS, "evaluate.csv": EVALUATE_COLUMNS}           # train.csv: step, stage, any others


def read_rows(path: Path) -> list[dict]:
    """A table's rows; none where there is no file. A last line that was cut short by a kill is left out. UserError
    where it is no such table."""
    try:
        reader = csv.DictReader(io.StringIO(whole_lines(path).decode(), newline=""), strict=True)
        rows = [*reader]
        header = tuple(reader.fieldnames or ())
        if rows and header != COLUMNS.get(path.name, ("step", "stage", *header[2:])):
            raise ValueError("other columns than a run's")
        for row in rows:
            if None in row or None in row.values():
                raise ValueError(f"the row of step {row['step']} is not as long as the header")
            for name, value in row.items():
                if name != "stage" and (value or name in EVALUATE_COLUMNS):      # empty: a loss of the other stage
                    (int if name in ("step", "episodes", "best_of") else float)(value)
    except (csv.Error, ValueError) as error:         # another encoding is a ValueError too
        raise UserError(f"{path} cannot be read ({str(error)[:100]}); mend it, or move it away") from None
    return rows


def whole_lines(path: Path) -> bytes:
    """Without a last line that was cut short; nothing where there is no file."""
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1]


def csv_bytes(table) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(table)
    return text.getvalue().encode()


def write_rows(path: Path, rows: list[dict], header) -> None:
    write_whole(path, csv_bytes([[*header], *([row.get(k, "") for k in header] for row in rows)]))


def append_row(path: Path, row: dict) -> None:
    """One row at the end, whole or not at all; columns that appear later (stage 2 has more losses) are added to the
    header. OSError when the disk is full, and the table is as before."""
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
    """A resumed run repeats what followed its checkpoint: forget those rows. Both are read before one is written."""
    for path, rows in [(folder / name, read_rows(folder / name)) for name in ("train.csv", "eval.csv")]:
        if rows:
            write_rows(path, [row for row in rows if int(row["step"]) <= step], rows[0])


def take_rows(sibling: Path, folder: Path, last: int, episodes: int) -> None:
    """Stage 1's rows of the sibling it was taken from: the curve of a run begins at its step 0. The last evaluation
    only if it had as many episodes as this run's would."""
    for name in ("train.csv", "eval.csv"):
        rows = [row for row in read_rows(sibling / name) if row["stage"] == "offline"
                and (int(row["step"]) < last or int(row.get("episodes", episodes)) == episodes)]
        if rows:
            write_rows(folder / name, rows, rows[0])
