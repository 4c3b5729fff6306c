"""Curves and tables from run folders, beside the paper's.

    python -m tools.report runs/lift runs/square --out results/quick        every run below these folders
    python -m tools.report results/quick/runs.csv --out results/quick       the same, drawn again without the runs

Writes runs.csv, from which the rest can be made again (results.py); table.md, a line for each kind of run; curves.png
(curves.py); report.md, tables.csv and aggregate.csv (tables.py).
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
        raw = [reached.raw for reached in seeds.values() if reached.raw is not None]
        if offline or online:
            lines.append(f"| {key.task} | {key.method} | {key.setting}, {key.offline:,} + {key.online:,} steps "
                         f"| {key.data} | {max(len(offline), len(online))} "
                         f"| {shown(offline)} | {shown(online)} | {shown(raw)} |")
    return "\n".join([*lines, ""])


def shown(values) -> str:
    return f"{np.mean(values):.0f} ({', '.join(f'{value:.0f}' for value in values)})" if values else "–"


def main(words=None) -> None:
    parser = command_line.OneLineParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", help="run folders, folders that hold some, runs.csv files written before")
    parser.add_argument("--out", default="results", help="folder to write to")
    args = parser.parse_args(words)
    rows, out = results.collect(args.runs), Path(args.out)
    if not rows:
        raise UserError(f"no evaluated runs in {' '.join(args.runs)}: train_online.py makes some")
    found = results.groups(rows)
    cells = tables.cells(found)
    aggregates = tables.aggregate(cells)
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(table(found))
    (out / "report.md").write_text(tables.markdown(cells, aggregates))
    curves.draw(found, out / "curves.png")
    results.write_csv(out / "runs.csv", rows, results.COLUMNS)
    results.write_csv(out / "tables.csv", cells, tables.COLUMNS)
    results.write_csv(out / "aggregate.csv", aggregates, tables.AGGREGATE_COLUMNS)
    print(table(found), *(f"unfinished: {line}" for line in results.unfinished(found)), sep="\n")


if __name__ == "__main__":
    command_line.main(main)
