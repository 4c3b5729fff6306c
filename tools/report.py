"""Curves and tables from run folders, beside the paper's.

    python -m tools.report runs/lift runs/square --out results/quick        every run below these folders
    python -m tools.report results/quick/runs.csv --out results/quick       the same, drawn again without the runs

Writes into --out:
    runs.csv                            every evaluation of every run; enough to make all the others (results.py)
    table.md                            one line for each task, method, setting, data and budget, with each seed's number
    curves.png, curves.csv              Figure 1's layout, the paper's curves dashed (curves.py)
    report.md, tables.csv, tables.png   the layouts of Tables 1, 2, 3, 4 and 7, and an aggregate over tasks (tables.py),
    aggregate.csv                       which has its own file too
"""
import argparse
from pathlib import Path

import numpy as np

from config import UserError
from tools import command_line, curves, results, tables
from tools.results import stages, trained


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


def main(words=None) -> None:
    parser = command_line.OneLineParser(description=__doc__.split("\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run folders, folders that hold some, and runs.csv files written before")
    parser.add_argument("--out", default="results", help="folder to write to")
    args = parser.parse_args(words)
    missing = [name for name in args.runs if not Path(name).exists()]
    if missing:
        raise UserError(f"{missing[0]} does not exist; name run folders, folders that hold some, or a runs.csv")
    rows, silent = results.collect(name for name in args.runs if not name.endswith(".csv"))
    for name in args.runs:
        rows += results.read_table(Path(name)) if name.endswith(".csv") else []
    if not any(map(trained, rows)):
        raise UserError(f"no evaluated runs in {' '.join(args.runs)}: " + (
            f"{len(silent)} have begun ({silent[0]}), none has been evaluated yet" if silent else "train_online.py makes some"))
    found = results.groups(rows)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    results.write_csv(out / "runs.csv", rows, results.COLUMNS)
    (out / "table.md").write_text(table(found))
    curves.write(found, out)
    left = results.unfinished(found) + [f"{folder}: not evaluated yet" for folder in silent]
    tables.write(found, left, out)
    print(table(found), *(f"unfinished: {line}" for line in left), sep="\n")


if __name__ == "__main__":
    command_line.main(main)
