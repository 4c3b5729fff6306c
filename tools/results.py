"""What runs have reached, from their folders or from a runs.csv, put together by what they share. Figures and tables start here.

Only seeds are averaged: two runs belong together when task, method, data (by checksum), every knob and both step counts agree. A
stage counts from the evaluation at its very end, so that a run that was stopped early never passes for a finished one.
"""
import collections
import csv
import dataclasses
import functools
from pathlib import Path
from typing import NamedTuple

import config
import run
from config import UserError
from tools.rows import EVAL_COLUMNS, read_rows

PAPER = Path(__file__).resolve().parent.parent / "results/paper"
COLUMNS = ("task", "method", "data", "checksum", "setting", "knobs", "seed", "offline_steps", "online_steps", "best_of", *EVAL_COLUMNS)
NEWER = ("checksum", "knobs", "online_steps")                    # columns that a runs.csv of an earlier version lacks


class Key(NamedTuple):
    """What runs must share to be averaged."""
    task: str
    method: str
    data: str                # official, generated, ...; with a checksum where a task has been trained on two different ones
    setting: str             # preset[,knob=value...], as in the run's folder, from the values themselves
    offline: int             # steps asked for, not steps reached
    online: int

    @property
    def steps(self) -> str:
        return f"{self.offline:,} + {self.online:,} steps"

    @property
    def block(self) -> str:
        """What tasks must share to stand in one table: each with the preset's own budget, or all with the same other one."""
        usual = preset(self.task, self.method, self.setting.split(",")[0])
        own = (self.offline, self.online) == (usual.offline_steps, usual.online_steps)
        return f"{self.setting}, {self.data} data" + ("" if own else f", {self.steps}")


@functools.cache
def preset(task: str, method: str, name: str) -> config.Config:
    return config.build(dict(task=task, method=method, preset=name))


def plain(c: config.Config) -> dict[str, str]:
    """The knobs that may change c's results, as text."""
    return {f.name: run._plain(getattr(c, f.name)) for f in sorted(dataclasses.fields(c), key=lambda f: f.name)
            if f.metadata["group"] != "run" and f.name not in ("task", "method", "seed")
            and (not f.metadata["only"] or c.method in f.metadata["only"])}


def less(values: dict, usual: dict) -> str:
    return ",".join(f"{k}={v}" for k, v in values.items() if v != usual.get(k))


def know(task: str) -> None:
    if task not in config.TASKS:                                 # a task of one's own, registered where it was trained
        config.TASKS.append(task)


def collect(folders) -> tuple[list[dict], list[Path]]:
    """Every evaluation of every run below the folders: eval.csv (the method's own N') and evaluate.csv (others); and the runs
    that have none yet."""
    rows, silent = [], []
    for path in sorted({p.resolve() for folder in folders for p in Path(folder).rglob("config.json")}):
        c, record = run.read_config(path.parent)
        know(c.task)
        # Knobs are kept as what departs from the paper's values, which never change, and not from the preset's, which may.
        about = dict(task=c.task, method=c.method, data=record["data"]["kind"], checksum=record["data"]["sha256"][:8],
                     setting=",".join(filter(None, [c.preset, less(plain(c), plain(preset(c.task, c.method, c.preset)))])),
                     knobs=less(plain(c), plain(preset(c.task, c.method, "paper"))), seed=c.seed,
                     offline_steps=c.offline_steps, online_steps=c.online_steps, best_of=c.best_of)
        found = [row for name in ("eval.csv", "evaluate.csv") for row in read_rows(path.parent / name)]
        rows += [parsed(about | {k: v for k, v in row.items() if k in COLUMNS}, path.parent) for row in found]
        silent += [] if found else [path.parent]
    return rows, silent


def parsed(row: dict, path: Path) -> dict:
    """One evaluation with numbers in place of text. UserError where it is none."""
    try:
        numbers = {k: int(row[k]) for k in ("seed", "offline_steps", "online_steps", "best_of", "step") if row.get(k) or k not in NEWER}
        return {k: row[k] for k in COLUMNS if k in row} | numbers | dict(success=share(row["success"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} holds a row that is no evaluation ({type(error).__name__}: {error}); a report is made from run folders, "
                        "or from a runs.csv that it wrote before") from None


def share(text: str) -> float:
    if not 0 <= float(text) <= 1:
        raise ValueError(f"success {text}")
    return float(text)


def read_csv(path: Path) -> list[dict]:
    """Any table by column name, as text: the paper's, or a report's own. (Of runs: rows.read_rows, which knows what to expect.)"""
    with open(path, newline="", errors="replace") as file:
        return list(csv.DictReader(file))


def read_table(path: Path) -> list[dict]:
    """A runs.csv. One of an earlier version knows neither checksums nor budgets asked for: a setting's name and the last
    step of any seed stand in."""
    rows = [parsed(row, path) for row in read_csv(path)]
    last = collections.Counter()
    shared = lambda row: tuple(row[k] for k in ("task", "method", "data", "setting", "offline_steps"))            # noqa: E731
    for row in rows:
        know(row["task"])
        last[shared(row)] = max(last[shared(row)], row["step"])
    for row in rows:
        if row.get("online_steps") in (None, ""):
            row |= dict(checksum="?", knobs="?", online_steps=max(0, last[shared(row)] - row["offline_steps"]))
    return rows


def groups(rows) -> dict[Key, dict[int, list[dict]]]:
    """{what must agree: {seed: its evaluations}} in the order of config.TASKS and METHODS."""
    sums, found = collections.defaultdict(set), collections.defaultdict(lambda: collections.defaultdict(list))
    for row in rows:
        sums[row["task"], row["data"]].add(row["checksum"])
    for row in rows:
        task, method, name = row["task"], row["method"], row["setting"].split(",")[0]
        data = row["data"] if len(sums[task, row["data"]]) == 1 else f"{row['data']} {row['checksum']}"
        usual, setting = plain(preset(task, method, name)), row["setting"]
        if row["knobs"] != "?":
            knobs = plain(preset(task, method, "paper")) | dict(part.split("=") for part in row["knobs"].split(",") if part)
            setting = ",".join(filter(None, [name, less(knobs, usual)]))
        key = Key(task, method, data, setting, row["offline_steps"], row["online_steps"])
        if trained(row) and any(trained(r) and r["step"] == row["step"] for r in found[key][row["seed"]]):
            raise UserError(f"seed {row['seed']} of {task}, {method}, {setting}, {data} data was given twice: name each run once")
        found[key][row["seed"]].append(row)
    order = list(config.METHODS)
    place = lambda key: (config.TASKS.index(key.task), order.index(key.method), *key[2:])                       # noqa: E731
    return {key: dict(sorted(found[key].items())) for key in sorted(found, key=place)}


def trained(row) -> bool:
    """Of eval.csv, written by training; rows of evaluate.csv have no time."""
    return bool(row.get("seconds"))


def at(seeds: dict, step: int) -> list[float]:
    """Success in % at exactly that step, of the seeds that have it."""
    return [100 * row["success"] for series in seeds.values() for row in series if trained(row) and row["step"] == step]


def stages(key: Key, seeds: dict) -> tuple[list, list]:
    """Success in % at the very end of stage 1 and of stage 2, by seed."""
    return at(seeds, key.offline), at(seeds, key.offline + key.online) if key.online else []


def unfinished(found) -> list[str]:
    last = lambda series: max((row["step"] for row in series if trained(row)), default=0)                      # noqa: E731
    return [f"{key.task}, {key.method}, {key.setting}, {key.data} data, seed {seed}: evaluated up to step {last(series):,} of {end:,}"
            for key, seeds in found.items() for seed, series in seeds.items() if last(series) < (end := key.offline + key.online)]


def short(steps: int) -> str:
    """1000000 -> 1M, 8000 -> 8k."""
    for unit, name in ((10**6, "M"), (10**3, "k")):
        if steps >= unit and steps % (unit // 10) == 0:
            return f"{steps / unit:g}{name}"
    return str(steps)


def write_csv(path: Path, rows: list[dict], columns=None) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns or list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.10g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
