"""What runs have reached, from their folders or from a runs.csv, put together by what they share.

Only seeds are averaged: two runs belong together when task, method, data (by checksum), every knob and both step counts
agree. A stage counts from the evaluation at its very end: a run that was stopped never passes for a finished one.
"""
import collections
import csv
import dataclasses
from pathlib import Path
from typing import NamedTuple

import config
import run
from config import UserError
from tools.training.files import EVAL_COLUMNS, read_rows

PAPER = Path(__file__).resolve().parents[2] / "results/paper"
COLUMNS = ("task", "method", "data", "checksum", "setting", "knobs", "seed", "offline_steps", "online_steps", "best_of",
           *EVAL_COLUMNS)
NUMBERS = dict.fromkeys(("seed", "offline_steps", "online_steps", "best_of", "step"), int) | {"success": float}


class Key(NamedTuple):
    """What runs must share to be averaged."""
    task: str
    method: str
    data: str                # official, generated, ...; with a checksum where a task was trained on two different ones
    setting: str             # preset[,knob=value...]: where its knobs depart from the preset as it is today
    offline: int             # steps asked for, not steps reached
    online: int

    @property
    def end(self) -> int:
        return self.offline + self.online

    @property
    def block(self) -> str:
        """What tasks must share to stand in one table: each with the preset's own budget, or all with one other."""
        usual = preset(self.task, self.method, self.setting.split(",")[0])
        own = (self.offline, self.online) == (usual.offline_steps, usual.online_steps)
        return f"{self.setting}, {self.data} data" + ("" if own else f", {self.offline:,} + {self.online:,} steps")


def preset(task: str, method: str, name: str) -> config.Config:
    if task not in config.TASKS:                                 # a task of one's own, registered where it was trained
        config.TASKS.append(task)
    return config.build(dict(task=task, method=method, preset=name))


def knob_texts(c: config.Config) -> dict[str, str]:
    """{name: value as text} of the knobs that may change c's results."""
    return {f.name: run.as_text(getattr(c, f.name)) for f in dataclasses.fields(c)
            if f.metadata["group"] != "run" and f.name not in ("task", "method", "seed")
            and (not f.metadata["only"] or c.method in f.metadata["only"])}


def departures(knobs: dict[str, str], usual: config.Config) -> list[str]:
    """["knob=value", ...], sorted: where the knobs are not as usual."""
    usual_texts = knob_texts(usual)
    return [f"{name}={text}" for name, text in sorted(knobs.items()) if text != usual_texts.get(name)]


def given(departed: str) -> dict[str, str]:
    """'quick,top_k=8,lr=0.1' -> {"top_k": "8", "lr": "0.1"}"""
    return dict(part.split("=") for part in departed.split(",") if "=" in part)


def collect(names) -> list[dict]:
    """Every evaluation in these runs.csv files, and of every run below these folders: eval.csv's and evaluate.csv's."""
    rows = [evaluation(row, name) for name in names if str(name).endswith(".csv") for row in read_csv(name)]
    for folder in sorted({path.resolve().parent for above in names for path in Path(above).rglob("config.json")}):
        c, record = run.read_config(folder)
        knobs = knob_texts(c)
        # Knobs are kept as what departs from the paper's values, which never change, and not from the preset's.
        about = dict(task=c.task, method=c.method, data=record["data"]["kind"], checksum=record["data"]["sha256"][:8],
                     setting=",".join([c.preset, *departures(knobs, preset(c.task, c.method, c.preset))]),
                     knobs=",".join(departures(knobs, preset(c.task, c.method, "paper"))), seed=c.seed,
                     offline_steps=c.offline_steps, online_steps=c.online_steps, best_of=c.best_of, seconds="")
        rows += [evaluation(about | row, folder) for name in ("eval.csv", "evaluate.csv")
                 for row in read_rows(folder / name)]
    return rows


def evaluation(row: dict, where: str | Path) -> dict:
    """A row of runs.csv with numbers in place of text. UserError, which says where, if it is none."""
    try:
        return {name: NUMBERS.get(name, str)(row[name]) for name in COLUMNS}
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{where} holds a row that is no evaluation: a report is made from run folders, or from a "
                        "runs.csv that it wrote before") from None


def read_csv(path: Path) -> list[dict]:
    """Any table by column name, as text: the paper's, or a report's own."""
    with open(path, newline="", errors="replace") as file:
        return list(csv.DictReader(file))


def write_csv(path: Path, rows: list[dict], columns=None) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns or list(rows[0]), extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.10g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def grouped(rows: list[dict], *names: str) -> dict[tuple, list[dict]]:
    """{values of these columns: the rows that have them}, in the rows' order."""
    found = collections.defaultdict(list)
    for row in rows:
        found[tuple(row[name] for name in names)].append(row)
    return found


def groups(rows: list[dict]) -> dict[Key, dict[int, list[dict]]]:
    """{what must agree: {seed: its evaluations}} in the order of config.TASKS and METHODS."""
    sets = {place: {row["checksum"] for row in alike} for place, alike in grouped(rows, "task", "data").items()}
    found = collections.defaultdict(lambda: collections.defaultdict(list))
    for row in rows:
        task, method, name = row["task"], row["method"], row["setting"].split(",")[0]
        data = row["data"] + (f" {row['checksum']}" if len(sets[task, row["data"]]) > 1 else "")
        knobs = knob_texts(preset(task, method, "paper")) | given(row["knobs"])
        setting = ",".join([name, *departures(knobs, preset(task, method, name))])
        series = found[Key(task, method, data, setting, row["offline_steps"], row["online_steps"])][row["seed"]]
        if trained(row) and row["step"] in (other["step"] for other in series if trained(other)):
            raise UserError(f"seed {row['seed']} of {task}, {method}, {setting}, {data} data was given twice: "
                            "name each run once")
        series.append(row)
    order = sorted(found, key=lambda key: (config.TASKS.index(key.task), [*config.METHODS].index(key.method), *key[2:]))
    return {key: dict(sorted(found[key].items())) for key in order}


def trained(row: dict) -> bool:
    """Of eval.csv, written by training; rows of evaluate.csv have no time."""
    return bool(row["seconds"])


def stages(key: Key, seeds: dict) -> list[list[float]]:
    """Success in % at the very end of stage 1 and of stage 2, of the seeds that have come there."""
    rows = [row for series in seeds.values() for row in series if trained(row)]
    return [[100 * row["success"] for row in rows if row["step"] == end]
            for end in (key.offline, key.end if key.online else None)]


def unfinished(found) -> list[str]:
    """A line for each run that has no evaluation at its end."""
    lasts = {(key, seed): max((row["step"] for row in series if trained(row)), default=0)
             for key, seeds in found.items() for seed, series in seeds.items()}
    return [f"{key.task}, {key.method}, {key.setting}, {key.data} data, seed {seed}: evaluated up to step {last:,} of "
            f"{key.end:,}" for (key, seed), last in lasts.items() if last < key.end]


def short(steps: int) -> str:
    """1000000 -> 1M, 8000 -> 8k."""
    for unit, name in ((10**6, "M"), (10**3, "k")):
        if steps >= unit and steps % (unit // 10) == 0:
            return f"{steps / unit:g}{name}"
    return str(steps)
