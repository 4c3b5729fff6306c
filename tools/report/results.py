"""What runs have reached, from their folders or from a runs.csv. Only seeds are averaged, and a stage counts from the
evaluation at its very end: a run that was stopped never passes for a finished one."""
import collections
import csv
import dataclasses
from pathlib import Path
from typing import NamedTuple

import config
from config import UserError
from tools.checks import MAY_DIFFER, reads
from tools.training.files import EVAL_COLUMNS, read_config, read_rows
from tools.training.saving import as_text

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
        usual = preset(self.task, self.method, self.setting)
        own = (self.offline, self.online) == (usual.offline_steps, usual.online_steps)
        return f"{self.setting}, {self.data} data" + ("" if own else f", {self.offline:,} + {self.online:,} steps")


@dataclasses.dataclass
class Reached:
    """Success of one run in %."""
    curve: dict[int, float] = dataclasses.field(default_factory=dict)        # {step: at this evaluation of training}
    raw: float | None = None                                                 # of one sample, by evaluate.py at the end


def preset(task: str, method: str, setting: str) -> config.Config:
    """The preset that a setting begins with."""
    if task not in config.TASKS:                                 # a task of one's own, registered where it was trained
        config.TASKS.append(task)
    return config.build(dict(task=task, method=method, preset=setting.split(",")[0]))


def knob_texts(c: config.Config) -> dict[str, str]:
    """{name: value as text} of the knobs that may change c's results."""
    return {f.name: as_text(getattr(c, f.name)) for f in dataclasses.fields(c)
            if f.name not in (*MAY_DIFFER, "task", "method", "seed") and reads(c.method, f.name)}


def departures(knobs: dict[str, str], usual: config.Config) -> list[str]:
    """["knob=value", ...], sorted: where the knobs are not as usual."""
    return [f"{name}={text}" for name, text in sorted(knobs.items() - knob_texts(usual).items())]


def given(departed: str) -> dict[str, str]:
    """'quick,top_k=8,lr=0.1' -> {"top_k": "8", "lr": "0.1"}"""
    return dict(part.split("=") for part in departed.split(",") if "=" in part)


def collect(names) -> list[dict]:
    """Every evaluation in these runs.csv files, and of every run below these folders: rows of runs.csv."""
    for name in names:
        if not Path(name).exists():
            raise UserError(f"{name}: no such file or folder")
    rows = [row for name in names if str(name).endswith(".csv") for row in read_csv(name)]
    for folder in sorted({path.resolve().parent for above in names for path in Path(above).rglob("config.json")}):
        try:
            c, record = read_config(folder)
        except UserError as error:                               # another program's config.json, a method of one's own
            print(f"left out: {error}")
            continue
        # Knobs are kept as what departs from the paper's values, which never change, and not from the preset's.
        knobs = ",".join(departures(knob_texts(c), preset(c.task, c.method, "paper")))
        about = vars(c) | dict(data=record["data"]["kind"], checksum=record["data"]["sha256"][:8], setting=c.preset,
                               knobs=knobs, seconds="")
        if trained := read_rows(folder / "eval.csv"):
            rows += [about | row for row in trained + read_rows(folder / "evaluate.csv")]
    try:
        for row in rows:                                         # whose setting is named from the preset as it is today
            usual = preset(row["task"], row["method"], row["setting"])
            knobs = knob_texts(preset(row["task"], row["method"], "paper")) | given(row["knobs"])
            row["setting"] = ",".join([usual.preset, *departures(knobs, usual)])
        return [{name: NUMBERS.get(name, str)(row[name]) for name in COLUMNS} for row in rows]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"a row of {' '.join(map(str, names))} is no evaluation: a report is made from run folders, "
                        "or from a runs.csv that it wrote before") from None


def read_csv(path: Path) -> list[dict]:
    """Any table by column name, as text: the paper's, or a report's own."""
    return list(csv.DictReader(Path(path).read_text(errors="replace").splitlines()))


def write_csv(path: Path, rows: list[dict], columns) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.10g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def grouped(rows: list[dict], *names: str) -> dict[tuple, list[dict]]:
    """{values of these columns: the rows that have them}, in the rows' order."""
    found = collections.defaultdict(list)
    for row in rows:
        found[tuple(row[name] for name in names)].append(row)
    return found


def groups(rows: list[dict]) -> dict[Key, dict[int, Reached]]:
    """{what must agree: {seed: what it reached}} in the order of config.TASKS and METHODS."""
    sets = {place: {row["checksum"] for row in alike} for place, alike in grouped(rows, "task", "data").items()}
    found = collections.defaultdict(lambda: collections.defaultdict(Reached))
    for row in rows:
        step, success = row["step"], 100 * row["success"]
        data = row["data"] + (f" {row['checksum']}" if len(sets[row["task"], row["data"]]) > 1 else "")
        key = Key(row["task"], row["method"], data, row["setting"], row["offline_steps"], row["online_steps"])
        reached = found[key][row["seed"]]
        if not row["seconds"]:                                   # evaluate.py's rows have no time; the newest counts
            reached.raw = success if row["best_of"] == 1 and step == key.end else reached.raw
        elif step not in reached.curve:
            reached.curve[step] = success
        else:
            raise UserError(f"seed {row['seed']} of {key.task}, {key.method}, {key.setting}, {data} data was given "
                            "twice: name each run once")
    order = sorted(found, key=lambda key: (config.TASKS.index(key.task), [*config.METHODS].index(key.method), *key[2:]))
    return {key: dict(sorted(found[key].items())) for key in order}


def stages(key: Key, seeds: dict) -> tuple[list[float], list[float]]:
    """Success at the very end of stage 1 and of stage 2, of the seeds that have come there."""
    curves = [reached.curve for reached in seeds.values()]
    return ([curve[key.offline] for curve in curves if key.offline in curve],
            [curve[key.end] for curve in curves if key.online and key.end in curve])


def unfinished(found) -> list[str]:
    """A line for each run that has no evaluation at its end."""
    return [f"{key.task}, {key.method}, {key.setting}, {key.data} data, seed {seed}: "
            f"evaluated up to step {max(reached.curve):,} of {key.end:,}"
            for key, seeds in found.items() for seed, reached in seeds.items() if key.end not in reached.curve]
