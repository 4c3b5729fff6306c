"""Curves and tables from run folders, beside the paper's.

    python -m tools.report runs/lift runs/square --out results/quick        every run below these folders
    python -m tools.report results/quick/runs.csv --out results/quick       the same, drawn again without the runs

Writes into --out:
    runs.csv                            every evaluation of every run; enough to make all the others
    table.md                            one line for each task, method, setting, data and budget, with each seed's number
    curves.png, curves.csv              Figure 1's layout: mean and 95 % interval over seeds, the paper's curves dashed
    report.md, tables.csv, tables.png   the layouts of Tables 1, 2, 3, 4 and 7, and an aggregate over tasks (tables.py)

Only seeds are averaged: two runs belong together when task, method, data (by checksum), every knob and both step counts agree. A
stage counts from the evaluation at its very end, so that a run that was stopped early never passes for a finished one.
"""
import argparse
import collections
import csv
import dataclasses
import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

import config
import run
from config import UserError

PAPER = Path(__file__).resolve().parent.parent / "results/paper"
COLUMNS = ("task", "method", "data", "checksum", "setting", "knobs", "seed", "offline_steps", "online_steps", "best_of", *run.EVAL_COLUMNS)
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


# --------------------------------------------------------------------------------------------------------- reading
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
        found = [row for name in ("eval.csv", "evaluate.csv") for row in run.read_rows(path.parent / name)]
        rows += [parsed(about | {k: v for k, v in row.items() if k in COLUMNS}, path.parent) for row in found]
        silent += [] if found else [path.parent]
    return rows, silent


def parsed(row: dict, path: Path) -> dict:
    """One evaluation with numbers in place of text. UserError where it is none."""
    try:
        numbers = {k: int(row[k]) for k in ("seed", "offline_steps", "online_steps", "best_of", "step") if row.get(k) or k not in NEWER}
        return {k: row[k] for k in COLUMNS if k in row} | numbers | dict(success=float(row["success"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} holds a row that is no evaluation ({type(error).__name__}: {error}); a report is made from run folders, "
                        "or from a runs.csv that it wrote before") from None


def read_table(path: Path) -> list[dict]:
    """A runs.csv. One of an earlier version knows neither checksums nor budgets asked for: a setting's name and the last step stand in."""
    rows = [parsed(row, path) for row in run.read_rows(path)]
    last = collections.Counter()
    for row in rows:
        know(row["task"])
        of_run = tuple(row[k] for k in ("task", "method", "data", "setting", "offline_steps", "seed"))
        last[of_run] = max(last[of_run], row["step"])
    for row in rows:
        of_run = tuple(row[k] for k in ("task", "method", "data", "setting", "offline_steps", "seed"))
        if row.get("online_steps") in (None, ""):
            row |= dict(checksum="?", knobs="?", online_steps=max(0, last[of_run] - row["offline_steps"]))
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
    last = lambda series: max(row["step"] for row in series)                                                   # noqa: E731
    return [f"{key.task}, {key.method}, {key.setting}, {key.data} data, seed {seed}: evaluated up to step {last(series):,} of {end:,}"
            for key, seeds in found.items() for seed, series in seeds.items() if last(series) < (end := key.offline + key.online)]


# ---------------------------------------------------------------------------------------------------------- table.md
def table(found) -> str:
    """Markdown: success in % at the end of each stage, mean (each seed), and of the raw policy at the end."""
    lines = ["| task | method | setting | data | seeds | offline | online | raw policy (best of 1) |", "|---|---|---|---|---|---|---|---|"]
    show = lambda values: f"{np.mean(values):.0f} ({', '.join(f'{v:.0f}' for v in values)})" if values else "–"   # noqa: E731
    for key, seeds in found.items():
        offline, online = stages(key, seeds)
        raw = []
        for series in seeds.values():
            ones = [row for row in series if not trained(row) and row["best_of"] == 1 and row["step"] == key.offline + key.online]
            raw += [100 * ones[-1]["success"]] if ones else []                      # the newest, where there are several
        if offline or online:
            lines.append(f"| {key.task} | {key.method} | {key.setting}, {key.steps} | {key.data} | {max(len(offline), len(online))} "
                         f"| {show(offline)} | {show(online)} | {show(raw)} |")
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------------------------ curves
def interval(values) -> tuple[float, float] | None:
    """95 % for the mean over seeds (Student's t, so two seeds say little, as they should), within 0 and 100; None for one seed."""
    if len(values) < 2:
        return None
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return max(0.0, np.mean(values) - half), min(100.0, np.mean(values) + half)


def share(step: int, offline: int, online: int) -> float:
    """0 to 1 along stage 1, 1 to 2 along stage 2: where budgets differ a hundredfold, steps cannot share an axis."""
    return step / max(offline, 1) if step <= offline else 1 + (step - offline) / online


def lines(found) -> list[dict]:
    """Figure 1's lines, ours and the paper's: one row a point. Seeds that lag behind the group's farthest are left out, so that
    no curve changes its seeds on the way."""
    rows = []
    for key, seeds in found.items():
        series = {seed: {row["step"]: row for row in rows if trained(row)} for seed, rows in seeds.items()}
        far = max(max(s, default=0) for s in series.values())
        whole = [s for s in series.values() if max(s, default=0) == far]
        for step in sorted(set.intersection(*map(set, whole))) if whole else []:
            values = [100 * s[step]["success"] for s in whole]
            low, high = interval(values) or ("", "")
            rows.append(key._asdict() | dict(source="here", seeds=len(values), step=step, share=share(step, key.offline, key.online),
                                             mean=np.mean(values), low=low, high=high, each=" ".join(f"{v:g}" for v in values)))
    shown = {(row["task"], row["method"].upper()) for row in rows}
    for row in run.read_rows(PAPER / "curves.csv"):
        if (row["task"], row["method"]) in shown:
            rows.append(dict(task=row["task"], method=row["method"].lower(), data="official", setting="paper", offline=10**6, online=10**6,
                             source="Koo et al. 2026, Figure 1", seeds=5, step=int(row["step"]), share=int(row["step"]) / 1e6,
                             mean=float(row["success_percent"]), low="", high="", each=""))
    return rows


def short(steps: int) -> str:
    """1000000 -> 1M, 8000 -> 8k."""
    for unit, name in ((10**6, "M"), (10**3, "k")):
        if steps >= unit and steps % (unit // 10) == 0:
            return f"{steps / unit:g}{name}"
    return str(steps)


def curves(points, path: Path) -> None:
    """A panel for each task, data, setting and budget: never two of them in one. Offline grey, online white; the paper's dashed."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    ours = [p for p in points if p["source"] == "here"]
    condition = lambda p: (p["task"], p["data"], p["setting"], p["offline"], p["online"])                       # noqa: E731
    panels = list(dict.fromkeys(map(condition, ours)))
    columns = min(4, len(panels))
    figure, grid = plt.subplots(-(-len(panels) // columns), columns, squeeze=False, sharey=True, layout="constrained",
                                figsize=(max(3.6 * columns, 5.4), 3.6 * -(-len(panels) // columns)))
    for axes, (task, data, setting, offline, online) in zip(grid.flat, panels):
        here = [p for p in ours if condition(p) == (task, data, setting, offline, online)]
        comparable = not setting.startswith("offline-rl")        # Figure 1 has no pure offline RL
        for method in dict.fromkeys(p["method"] for p in here):
            color = f"C{list(config.METHODS).index(method)}"
            mine = [p for p in here if p["method"] == method]
            x, mean = [p["share"] for p in mine], [p["mean"] for p in mine]
            axes.plot(x, mean, "o-", color=color, ms=3, label=f"{method}, {mine[0]['seeds']} seed{'s' * (mine[0]['seeds'] > 1)}")
            if mine[0]["seeds"] > 2:
                axes.fill_between(x, [p["low"] for p in mine], [p["high"] for p in mine], color=color, alpha=0.12, lw=0)
            if mine[0]["seeds"] == 2:                            # their interval would hide the panel; curves.csv has it
                axes.plot(x, [[float(v) for v in p["each"].split()] for p in mine], color=color, lw=0.6, alpha=0.5)
            paper = [p for p in points if p["source"] != "here" and (p["task"], p["method"]) == (task, method) and comparable]
            axes.plot([p["share"] for p in paper], [p["mean"] for p in paper], "--", color=color, lw=1, alpha=0.6)
        axes.axvspan(0, 1, color="0.92", lw=0, zorder=0)
        paper_ticks = ("\n(paper 1M)", "\n(paper 2M)") if comparable else ("", "")
        axes.set_xticks((0, 1, 2) if online else (0, 1), ["0", short(offline) + paper_ticks[0], short(offline + online) + paper_ticks[1]][: 3 if online else 2])
        axes.set_title(f"{task}\n{setting}, {data} data, {short(offline)} + {short(online)}", fontsize=8)
        axes.set(ylim=(-3, 103), xlim=(0, 2 if online else 1))
        axes.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncol=3, frameon=False)
        axes.grid(alpha=0.3)
    for axes in list(grid.flat)[len(panels):]:
        axes.remove()
    grid[0][0].set_ylabel("success %")
    figure.supxlabel("share of each stage (grey: offline, white: online). Solid: here; band: 95 % over seeds; thin: each of two seeds.\n"
                     "Dashed: the paper's, official data, 1M + 1M steps", fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


# -------------------------------------------------------------------------------------------------------------- main
def write_csv(path: Path, rows: list[dict], columns=None) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns or list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def main() -> None:
    from tools import tables
    parser = config.OneLineParser(description=__doc__.split("\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run folders, folders that hold some, or a runs.csv written before")
    parser.add_argument("--out", default="results", help="folder to write to")
    args = parser.parse_args()
    missing = [name for name in args.runs if not Path(name).exists()]
    if missing:
        raise UserError(f"{missing[0]} does not exist; name run folders, folders that hold some, or a runs.csv")
    rows, silent = collect(name for name in args.runs if not name.endswith(".csv"))
    for name in args.runs:
        rows += read_table(Path(name)) if name.endswith(".csv") else []
    if not rows:
        raise UserError(f"no evaluated runs in {' '.join(args.runs)}: " + (
            f"{len(silent)} have begun ({silent[0]}), none has been evaluated yet" if silent else "train_online.py makes some"))
    found = groups(rows)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / "runs.csv", rows, COLUMNS)
    (out / "table.md").write_text(table(found))
    points = lines(found)
    write_csv(out / "curves.csv", points)
    curves(points, out / "curves.png")
    left = unfinished(found) + [f"{folder}: not evaluated yet" for folder in silent]
    tables.write(found, left, out)
    print(table(found), *(f"unfinished: {line}" for line in left), sep="\n")


if __name__ == "__main__":
    config.main(main)
