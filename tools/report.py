"""Curves and a table from run folders.

    python -m tools.report runs/lift runs/square --out results/quick        every run below these folders

Writes <out>/curves.png, <out>/table.md and <out>/runs.csv (one row an evaluation, all runs), so that a figure can be
drawn again without the runs. Runs are only averaged over seeds: task, method, preset and knobs, data and steps agree.
"""
import argparse
import collections
import csv
from pathlib import Path

import numpy as np

import config
import run
from config import UserError

COLUMNS = ("task", "method", "data", "setting", "seed", "offline_steps", "best_of", *run.EVAL_COLUMNS)


def collect(folders) -> list[dict]:
    """Every evaluation of every run below the folders: eval.csv (the method's own N') and evaluate.csv (others)."""
    rows = []
    for path in sorted({p for folder in folders for p in Path(folder).rglob("config.json")}):
        c, record = run.read_config(path.parent)
        about = dict(task=c.task, method=c.method, data=record["data"]["kind"], setting=path.parent.parent.name, seed=c.seed,
                     offline_steps=c.offline_steps, best_of=c.best_of)
        for name in ("eval.csv", "evaluate.csv"):
            rows += [about | {k: v for k, v in row.items() if k in COLUMNS} for row in run.read_rows(path.parent / name)]
    return rows


def groups(rows) -> dict:
    """{(task, method, data, setting and steps): {seed: [rows]}} in the order of config.TASKS."""
    runs, found = collections.defaultdict(list), collections.defaultdict(dict)
    for row in rows:
        runs[row["task"], row["method"], row["data"], row["setting"], row["offline_steps"], int(row["seed"])].append(row)
    for (task, method, data, setting, offline, seed), series in runs.items():
        online = max(0, max(int(r["step"]) for r in series) - offline)
        found[task, method, data, f"{setting}, {offline:,} + {online:,} steps"][seed] = series
    return dict(sorted(found.items(), key=lambda item: (config.TASKS.index(item[0][0]), item[0][1:])))


def table(rows) -> str:
    """Markdown: success in % at the end of each stage, mean (each seed), and of the raw policy at the end."""
    lines = ["| task | method | setting | data | seeds | offline | online | raw policy (best of 1) |", "|---|---|---|---|---|---|---|---|"]
    for (task, method, data, setting), seeds in groups(rows).items():
        ends, raw = {"offline": [], "online": []}, []
        for _, series in sorted(seeds.items()):
            own = [r for r in series if r.get("seconds")]                       # rows of training; evaluate.csv has no time
            last = {stage: [r for r in own if r["stage"] == stage] for stage in ends}
            for stage in ends:
                ends[stage] += [100 * float(last[stage][-1]["success"])] if last[stage] else []
            ones = [r for r in series if not r.get("seconds") and r["best_of"] == "1" and r["step"] == own[-1]["step"]]
            raw += [100 * float(ones[-1]["success"])] if ones else []               # the newest, where there are several
        show = lambda values: f"{np.mean(values):.0f} ({', '.join(f'{v:.0f}' for v in values)})" if values else "–"   # noqa: E731
        lines.append(f"| {task} | {method} | {setting} | {data} | {len(seeds)} | {show(ends['offline'])} | {show(ends['online'])} | {show(raw)} |")
    return "\n".join(lines) + "\n"


def curves(rows, path: Path) -> None:
    """One panel a task: success over steps, thin lines seeds, thick their mean; stage 1 grey."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    tasks = [t for t in config.TASKS if any(r["task"] == t for r in rows)]
    figure, panels = plt.subplots(1, len(tasks), figsize=(3.4 * len(tasks), 2.9), squeeze=False, sharey=True, layout="constrained")
    for axes, task in zip(panels[0], tasks):
        for color, ((name, method, data, setting), seeds) in enumerate((g for g in groups(rows).items() if g[0][0] == task)):
            lines = [[(int(r["step"]), 100 * float(r["success"])) for r in series if r.get("seconds")] for series in seeds.values()]
            for line in lines:
                axes.plot(*zip(*line), color=f"C{color}", lw=0.7, alpha=0.5)
            common = sorted(set.intersection(*({s for s, _ in line} for line in lines)))
            mean = [np.mean([dict(line)[s] for line in lines]) for s in common]
            axes.plot(common, mean, "o-", color=f"C{color}", ms=3, label=f"{method}, {setting}, {len(seeds)} seeds")
            axes.axvspan(0, next(iter(seeds.values()))[0]["offline_steps"], color="0.93", lw=0, zorder=0)
        axes.set(title=f"{task} ({data} data)", xlabel="step", ylim=(-3, 103))
        axes.title.set_fontsize(9)
        axes.legend(fontsize=6, loc="upper left")
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel("success %")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = config.OneLineParser(description=__doc__.split("\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", help="run folders, or folders that hold some; and runs.csv files written before")
    parser.add_argument("--out", default="results", help="folder to write to")
    args = parser.parse_args()
    rows = collect(f for f in args.folders if not f.endswith(".csv"))
    for path in (f for f in args.folders if f.endswith(".csv")):
        rows += [row | {"offline_steps": int(row["offline_steps"])} for row in run.read_rows(Path(path))]
    if not rows:
        raise UserError(f"no evaluated runs in {' '.join(args.folders)}")
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "runs.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    (out / "table.md").write_text(table(rows))
    curves(rows, out / "curves.png")
    print(table(rows))


if __name__ == "__main__":
    config.main(main)
