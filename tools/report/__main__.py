"""Curves and tables from run folders, beside the paper's.

    python -m tools.report runs/lift runs/square --out results/quick        every run below these folders
    python -m tools.report results/quick/runs.csv --out results/quick       the same, drawn again without the runs

Writes into --out:
    runs.csv                            every evaluation of every run; enough to make all the others (results.py)
    table.md                            a line for each task, method, setting, data and budget, each seed's number in it
    curves.png, curves.csv              Figure 1's layout, the paper's curves dashed (curves.py)
    report.md, tables.csv, aggregate.csv     the paper's tables' layouts, and an aggregate over tasks (tables.py)
"""
from pathlib import Path

import numpy as np

from config import UserError
from tools.report import curves, results, tables
from tools.training import command_line


def table(found) -> str:
    """Markdown: success in % at the end of each stage, mean (each seed), and of the raw policy at the end."""
    lines = ["| task | method | setting | data | seeds | offline | online | raw policy (best of 1) |", "|---" * 8 + "|"]
    for key, seeds in found.items():
        offline, online = results.stages(key, seeds)
        raw = {seed: 100 * row["success"] for seed, series in seeds.items() for row in series           # the newest's
               if not results.trained(row) and row["best_of"] == 1 and row["step"] == key.end}
        if offline or online:
            lines.append(f"| {key.task} | {key.method} | {key.setting}, {key.offline:,} + {key.online:,} steps "
                         f"| {key.data} | {max(len(offline), len(online))} "
                         f"| {shown(offline)} | {shown(online)} | {shown(raw.values())} |")
    return "\n".join([*lines, ""])


def shown(values) -> str:
    return f"{np.mean([*values]):.0f} ({', '.join(f'{value:.0f}' for value in values)})" if values else "–"


def main(words=None) -> None:
    """words: of the command line, if not the process's own."""
    parser = command_line.OneLineParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", help="run folders, folders that hold some, runs.csv files written before")
    parser.add_argument("--out", default="results", help="folder to write to")
    args = parser.parse_args(words)
    rows = results.collect(args.runs)
    if not any(map(results.trained, rows)):
        raise UserError(f"no evaluated runs in {' '.join(args.runs)}: train_online.py makes some")
    found, out = results.groups(rows), Path(args.out)
    left = results.unfinished(found)
    out.mkdir(parents=True, exist_ok=True)
    results.write_csv(out / "runs.csv", rows, results.COLUMNS)
    (out / "table.md").write_text(table(found))
    points, cells = curves.curve_points(found), tables.cells(found)
    aggregates = tables.aggregate(cells)
    results.write_csv(out / "curves.csv", points)
    curves.draw(points, out / "curves.png")
    results.write_csv(out / "tables.csv", cells, tables.COLUMNS)
    results.write_csv(out / "aggregate.csv", aggregates, tables.AGGREGATE_COLUMNS)
    (out / "report.md").write_text(tables.markdown(cells, aggregates, left))
    print(table(found), *(f"unfinished: {line}" for line in left), sep="\n")


if __name__ == "__main__":
    command_line.main(main)
