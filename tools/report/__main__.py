"""Curves and tables from run folders, beside the paper's.

    python -m tools.report runs/lift runs/square --out results/quick        every run below these folders
    python -m tools.report results/quick/runs.csv --out results/quick       the same, drawn again without the runs

Writes into --out:
    runs.csv                            every evaluation of every run; enough to make all the others (results.py)
    table.md                            a line for each task, method, setting, data and budget, each seed's number in it
    curves.png, curves.csv              Figure 1's layout, the paper's curves dashed (curves.py)
    report.md, tables.csv, tables.png   the layouts of Tables 1, 2, 3, 4 and 7, and an aggregate over tasks (tables.py),
    aggregate.csv                       which has its own file too
"""
from pathlib import Path

import numpy as np

from config import UserError
from tools.report import curves, results, tables
from tools.report.results import stages, trained
from tools.training import command_line

HEADER = "| task | method | setting | data | seeds | offline | online | raw policy (best of 1) |\n" + "|---" * 8 + "|\n"


def table(found) -> str:
    """Markdown: success in % at the end of each stage, mean (each seed), and of the raw policy at the end."""
    text = HEADER
    for key, seeds in found.items():
        offline, online = stages(key, seeds)
        if offline or online:
            count, raw = max(len(offline), len(online)), raw_policy(key, seeds)
            text += (f"| {key.task} | {key.method} | {key.setting}, {key.steps} | {key.data} | {count} "
                     f"| {shown(offline)} | {shown(online)} | {shown(raw)} |\n")
    return text


def raw_policy(key, seeds) -> list[float]:
    """Success in % at the very end without best of N', of the seeds that have it; the newest if there are several."""
    newest = {seed: 100 * row["success"] for seed, series in seeds.items() for row in series
              if not trained(row) and row["best_of"] == 1 and row["step"] == key.end}
    return list(newest.values())


def shown(values) -> str:
    return f"{np.mean(values):.0f} ({', '.join(f'{value:.0f}' for value in values)})" if values else "–"


def main(words=None) -> None:
    """words: of the command line, if not the process's own."""
    parser = command_line.OneLineParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", help="run folders, folders that hold some, runs.csv files written before")
    parser.add_argument("--out", default="results", help="folder to write to")
    args = parser.parse_args(words)
    missing = [name for name in args.runs if not Path(name).exists()]
    if missing:
        raise UserError(f"{missing[0]} does not exist; name run folders, folders that hold some, or a runs.csv")
    files = [name for name in args.runs if name.endswith(".csv")]
    rows, silent = results.collect(name for name in args.runs if name not in files)
    rows += [results.evaluation(row, name) for name in files for row in results.read_csv(name)]
    if not any(map(trained, rows)):
        begun = silent and f"{len(silent)} have begun ({silent[0]}), none has been evaluated yet"
        raise UserError(f"no evaluated runs in {' '.join(args.runs)}: {begun or 'train_online.py makes some'}")
    found = results.groups(rows)
    left = results.unfinished(found) + [f"{folder}: not evaluated yet" for folder in silent]
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    results.write_csv(out / "runs.csv", rows, results.COLUMNS)
    (out / "table.md").write_text(table(found))
    curves.write(found, out)
    tables.write(found, left, out)
    print(table(found), *(f"unfinished: {line}" for line in left), sep="\n")


if __name__ == "__main__":
    command_line.main(main)
