"""The layouts of the paper's Tables 1, 2, 3, 4 and 7, from runs, the paper's numbers below ours, and an aggregate.

A cell is a group of runs that agree in all but the seed (results.Key), so that no number mixes two data sets, budgets
or settings. Columns are tasks, and whole suites where the paper averages over them. Rows:

    1  methods                        2  methods with and without L_topK
    3  lambda of method dfp           4  K of method dfp
    7  methods with preset offline-rl, at the end of stage 1

Within a table, a block holds the tasks that share setting and data source, each with the preset's own budget or all
with one other. The aggregate is rliable's (Agarwal et al., arXiv 2108.13264): the interquartile mean over all seeds and
tasks, with 95 % intervals from a bootstrap stratified by task: seeds are drawn again within each task, tasks never.
"""
import collections
import functools
import itertools
import re
from typing import NamedTuple

import numpy as np
from scipy import stats

import config
from tools.report.results import PAPER, grouped, knob_texts, preset, read_csv, short, stages, write_csv

SUITES = {"robomimic": config.ROBOMIMIC} | {cubes: tuple(task for task in config.OGBENCH if task.startswith(cubes))
                                            for cubes in ("cube-double", "cube-triple", "cube-quadruple")}
SUITES["12 tasks"] = config.ROBOMIMIC + config.OGBENCH
TITLES = {1: "methods", 2: "with and without L_topK", 3: "weight λ of L_topK", 4: "K of N = 16 candidates",
          7: "pure offline RL"}
KNOBS = {3: "topk_weight", 4: "top_k"}
SIBLINGS = {"dfp": "dfp-no-topk", "dfp-no-topk": "dfp", "mvp": "mvp-topk", "mvp-topk": "mvp"}
COLUMNS = ("table", "block", "row", "column", "data", "setting", "offline_steps", "online_steps",
           "offline_mean", "offline_std", "offline_seeds", "online_mean", "online_std", "online_seeds",
           "paper_offline", "paper", "paper_std")
INTRODUCTION = (
    "# Results beside the paper's\n\n"
    "Success in %, mean ± standard deviation over seeds (n − 1), at the end of the offline stage → at the end of "
    "the online stage.\nBelow each number: data, steps of the two stages, seeds. The paper's are from human or "
    "official play data and 1M + 1M steps\n(results/paper/README.md says how they were read): another budget and other "
    "data are another experiment, so compare methods\ndown a column, ours with ours.\n\n![curves](curves.png)\n")
OVER_TASKS = (
    "## Over tasks\n\nInterquartile mean over seeds and tasks at the end of the online stage, 95 % intervals from "
    "10,000 bootstrap samples stratified by task. With few seeds they are too narrow. Every task counts with as many "
    "seeds, its first, as the one with the fewest has.\n")


# ------------------------------------------------------------------------------------------------- cells
class Reported(NamedTuple):
    """What the paper prints in a cell; None where it does not."""
    offline: float | None
    mean: float | None
    std: float | None


@functools.cache
def paper() -> dict[int, dict[tuple, Reported]]:
    """{table: {(row, column): the paper's}} in its order, from results/paper/. Table 1's offline ends: Figure 1's."""
    offline = {(row["method"].lower(), row["task"]): float(row["success_percent"])
               for row in read_csv(PAPER / "curves.csv") if row["step"] == "1000000"}
    reported = collections.defaultdict(dict)
    for row in read_csv(PAPER / "tables.csv"):
        place = row["row"], row["column"]
        mean, std = (float(row[name]) if row[name] else None for name in ("mean", "std"))
        reported[int(row["table"])][place] = Reported(offline.get(place) if row["table"] == "1" else None, mean, std)
    return reported


def split(setting: str, knob: str) -> tuple[str, str | None]:
    """'quick,top_k=8,lr=0.1', 'top_k' -> ('quick,lr=0.1', '8'): a setting without one knob, and what that is set to."""
    given = re.search(f",{knob}=([^,]*)", setting)
    return (setting.replace(given[0], ""), given[1]) if given else (setting, None)


def cells(found) -> list[dict]:
    """Every cell that the groups (results.groups) fill, beside the paper's numbers: COLUMNS by name, and each seed's
    success at the end."""
    made = []

    def add(table, row, key, block=None):
        offline, online = stages(key, found[key])
        reported = paper()[table].get((row, key.task), (None, None, None))
        if offline or online:
            made.append(dict(zip(COLUMNS, (
                table, block or key.block, row, key.task, key.data, key.setting, key.offline, key.online,
                *spread(offline), *spread(online), *reported))) | dict(successes=online))

    for key in found:
        varied = any(split(key.setting, knob)[1] for knob in KNOBS.values())
        if key.setting.startswith("offline-rl"):
            add(7, f"{key.method}, {key.setting}" if varied else key.method, key)
            continue
        # DFP alone with another lambda or K is for Tables 3 and 4.
        if not varied or any(other.method != "dfp" and other.block == key.block for other in found):
            add(1, key.method, key)
        if key.method in SIBLINGS and key._replace(method=SIBLINGS[key.method]) in found:
            add(2, key.method, key)
    for table, knob in KNOBS.items():
        variants = collections.defaultdict(list)                 # {the group without the knob: all that differ in it}
        for key in found:
            if key.method == "dfp" and not key.setting.startswith("offline-rl"):
                setting, value = split(key.setting, knob)
                variants[key._replace(setting=setting)].append((key, value))
        for usual, alike in variants.items():
            if any(value for _, value in alike):
                usual_value = knob_texts(preset(usual.task, usual.method, usual.setting.split(",")[0]))[knob]
                for key, value in alike:
                    add(table, value or usual_value, key, usual.block)
    return sorted(made, key=lambda cell: cell["table"])          # stable: tasks and methods stay in order


def spread(values) -> tuple:
    """(mean, std, seeds); std with n - 1, None for fewer than two seeds."""
    std = np.std(values, ddof=1) if len(values) > 1 else None
    return (np.mean(values), std, len(values)) if values else (None, None, 0)


def filled(found) -> list[dict]:
    """cells(), and the averages of suites of which every task is there."""
    rows = cells(found)
    for (table, block, name), alike in grouped(rows, "table", "block", "row").items():
        finished = {row["column"]: row for row in alike if row["successes"]}
        for suite, tasks in SUITES.items():
            if (name, suite) in paper()[table] and set(tasks) <= set(finished):
                parts = [finished[task] for task in tasks]
                rows.append(dict.fromkeys((*COLUMNS, "successes")) | dict(
                    table=table, block=block, row=name, column=suite,
                    data=parts[0]["data"], setting=parts[0]["setting"], paper=paper()[table][name, suite].mean,
                    online_mean=np.mean([part["online_mean"] for part in parts]),
                    online_seeds=min(part["online_seeds"] for part in parts)))
    return rows


# ------------------------------------------------------------------------------------------------- aggregate
def iqm(scores: np.ndarray) -> np.ndarray:
    """Interquartile mean of [..., seeds, tasks] -> [...]: a quarter of all scores, rounded down, is cut at each end."""
    return stats.trim_mean(scores.reshape(*scores.shape[:-2], -1), 0.25, axis=-1)


def resamples(scores: np.ndarray, count: int) -> np.ndarray:
    """[seeds, tasks] -> [count, seeds, tasks]: each task's seeds drawn again with replacement, for itself."""
    index = np.random.default_rng(0).integers(len(scores), size=(count, *scores.shape))
    return np.take_along_axis(scores[None], index, axis=1)


def aggregate(rows: list[dict]) -> list[dict]:
    """For each block of Table 1 and each set of two tasks or more that some method has finished: every method that has
    them all."""
    aggregates = []
    for (table, block), alike in grouped(rows, "table", "block").items():
        finished = {method: {row["column"]: row for row in of_method if row["successes"]}
                    for (method,), of_method in grouped(alike, "row").items() if table == 1}
        sets = dict.fromkeys(tuple(task for task in config.TASKS if task in by_task) for by_task in finished.values())
        for tasks, method in itertools.product(sorted(sets, key=len, reverse=True), finished):
            if len(tasks) > 1 and set(tasks) <= set(finished[method]):
                parts = [finished[method][task] for task in tasks]
                theirs = [part["paper"] for part in parts]
                aggregates.append(dict(block=block, tasks=" ".join(tasks), method=method)
                                  | over_tasks([part["successes"] for part in parts])
                                  | dict(paper_mean="" if None in theirs else np.mean(theirs)))
    return aggregates


def over_tasks(successes: list[list]) -> dict:
    """One method's aggregates over its seeds' successes in each task.

    Seeds may be missing: each task counts with as many as the one with the fewest has, its first, or it would count
    more."""
    seeds = min(map(len, successes))
    scores = np.array([of_task[:seeds] for of_task in successes]).T                           # [seeds, tasks]
    drawn, row = resamples(scores, 10_000), dict(seeds=seeds)
    for name, value, values in (("iqm", iqm(scores), iqm(drawn)), ("mean", scores.mean(), drawn.mean((1, 2)))):
        low, high = np.percentile(values, (2.5, 97.5)) if seeds > 1 else ("", "")             # one seed: no interval
        row |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return row


# ------------------------------------------------------------------------------------------------- Markdown
def plus_minus(mean, std) -> str:
    return "–" if mean is None else f"{mean:.1f}" + (f" ± {std:.1f}" if std is not None else "")


def budget(row: dict) -> str:
    return f"{short(row['offline_steps'])} + {short(row['online_steps'])}"


def shown_here(row: dict) -> str:
    """One cell: success, then what it rests on."""
    offline, online = (plus_minus(row[f"{stage}_mean"], row[f"{stage}_std"]) for stage in ("offline", "online"))
    counts = list(dict.fromkeys(filter(None, (row["offline_seeds"], row["online_seeds"]))))   # two: one is not done yet
    seeds = f"{' → '.join(map(str, counts))} seed{'s' * (counts != [1])}"
    if row["column"] in SUITES:
        return f"{online}<br>{row['data']}, {seeds}"
    return f"{offline if row['table'] == 7 else f'{offline} → {online}'}<br>{row['data']}, {budget(row)}, {seeds}"


def shown_paper(table: int, reported: Reported) -> str:
    offline = "" if reported.offline is None else f"{reported.offline:.1f} → "
    steps = {1: ", 1M + 1M, 5 seeds", 7: ""}.get(table, ", 1M + 1M")
    return f"{offline}{plus_minus(reported.mean, reported.std)}<br>official{steps}"


def row_names(table: int | None, places) -> list[str]:
    """The rows among these (row, column), by the knob's value, or as config.METHODS has them."""
    names, methods = dict.fromkeys(row for row, _ in places), list(config.METHODS)
    return sorted(names, key=float if table in KNOBS else lambda name: methods.index(name.split(",")[0]))


def pivot(table: int, block: list[dict]) -> list[str]:
    """Rows by columns, each row ours and then the paper's. Table 1 shows the tasks that have runs, the others the
    paper's too."""
    here = {(row["row"], row["column"]): shown_here(row) for row in block}
    theirs = {place: shown_paper(table, reported) for place, reported in paper()[table].items()}
    there = {column for _, column in (here if table == 1 and here else here | theirs)}
    columns = [column for column in (*config.TASKS, *SUITES) if column in there]
    first = {3: "λ", 4: "K"}.get(table, "method")
    lines = [f"| {first} | | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for name in row_names(table, theirs | here):
        for who, texts in (("here", here), ("paper", theirs)):
            line = [texts.get((name, column), "–") for column in columns]
            lines += [f"| {name} | {who} | {' | '.join(line)} |"] if set(line) != {"–"} else []
    return lines


def markdown(rows, aggregates, left) -> str:
    """report.md; left: a line for each run that is not finished."""
    text, blocks = [INTRODUCTION], grouped(rows, "table", "block")
    for table, title in TITLES.items():
        for block in [block for of, block in blocks if of == table] or ["the paper's; no runs yet"]:
            text += [f"## Table {table}: {title} ({block})", "", *pivot(table, blocks.get((table, block), [])), ""]
    text += [OVER_TASKS] if aggregates else [OVER_TASKS, "No method has finished two tasks of one block yet.", ""]
    for (block, tasks), methods in grouped(aggregates, "block", "tasks").items():
        budgets = {row["column"]: f"{row['column']} ({budget(row)})" for row in blocks[1, block]
                   if row["column"] in tasks.split()}
        text += [f"{block}: {', '.join(budgets[task] for task in tasks.split())}", "",
                 "| method | seeds | IQM | mean | the paper's mean |", "|---|---|---|---|---|",
                 *map(aggregate_line, methods), ""]
    text += ["## Left out, because unfinished", "", *(f"- {line}" for line in left), ""] if left else []
    return "\n".join(text)


def aggregate_line(row: dict) -> str:
    ours = [f"{row[name]:.1f}" + (f" [{row[name + '_low']:.1f}, {row[name + '_high']:.1f}]" if row["seeds"] > 1 else "")
            for name in ("iqm", "mean")]
    theirs = "–" if row["paper_mean"] == "" else f"{row['paper_mean']:.1f}"
    return f"| {row['method']} | {row['seeds']} | {' | '.join(ours)} | {theirs} |"


# ------------------------------------------------------------------------------------------------- picture
def picture(rows, aggregates, path) -> None:
    """A panel for each block of each table and each aggregate: filled dots are ours (bars: std, or the 95 % interval),
    open ones the paper's. All but Table 1 show those too that nothing of ours stands beside."""
    from matplotlib.figure import Figure
    blocks, sets = grouped(rows, "table", "block"), grouped(aggregates, "block", "tasks")
    count = max(1, len(blocks) + len(sets))
    figure = Figure(figsize=(7.5, 3 * count), layout="constrained")
    panels = iter(figure.subplots(count, 1, squeeze=False)[:, 0])
    for (table, block), alike in blocks.items():
        stage = "offline" if table == 7 else "online"
        here = {(row["row"], row["column"]): (row[f"{stage}_mean"], row[f"{stage}_std"] or 0, row[f"{stage}_std"] or 0)
                for row in alike}
        theirs = {place: reported.mean for place, reported in paper()[table].items() if table != 1 or place in here}
        labels = {row["column"]: f"{row['column']}, {budget(row)}" for row in alike if row["column"] not in SUITES}
        draw_panel(next(panels), f"Table {table}: {TITLES[table]} ({block})", table, here, theirs, labels)
    for (block, tasks), methods in sets.items():
        here = {(row["method"], "IQM"): (row["iqm"], *interval_bar(row)) for row in methods}
        draw_panel(next(panels), f"Over {tasks.replace(' ', ', ')} ({block})", None, here, {}, {})
    figure.supxlabel("filled: here; open: the paper's, official data, 1M + 1M steps (another budget is another "
                     "experiment)", fontsize=7)
    figure.savefig(path, dpi=110)


def interval_bar(row: dict) -> tuple:
    return (row["iqm"] - row["iqm_low"], row["iqm_high"] - row["iqm"]) if row["seeds"] > 1 else (0, 0)


def draw_panel(axes, title, table, here, theirs, labels) -> None:
    """Rows along the axis, each with its columns side by side. here: {(row, column): (mean, lengths of its bar down and
    up)}, theirs: {(row, column): mean}, labels: of columns, but for those that are their own."""
    names, columns = row_names(table, here | theirs), list(dict.fromkeys(column for _, column in here | theirs))
    for i, column in enumerate(columns):
        color, offset = f"C{i % 10}", 0.6 * ((i + 0.5) / len(columns) - 0.5)
        for x, name in enumerate(names):
            mean, down, up = here.get((name, column), (None, 0, 0))
            if mean is not None:
                axes.errorbar(x + offset, mean, [[down], [up]], fmt="o", ms=4, lw=1, capsize=2, color=color)
            if theirs.get((name, column)) is not None:
                axes.plot(x + offset, theirs[name, column], "D", ms=4, mfc="none", color=color, alpha=0.7)
        axes.plot([], [], "s", ms=4, color=color, label=labels.get(column, column))
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_title(title, fontsize=8)
    axes.set(ylim=(-3, 103), xlim=(-0.5, len(names) - 0.5), ylabel="success %")
    axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes.grid(axis="y", alpha=0.3)


def write(found, left, out) -> None:
    """report.md, tables.csv, aggregate.csv and tables.png into the folder `out`. left: see markdown."""
    rows = filled(found)
    aggregates = aggregate(rows)
    (out / "report.md").write_text(markdown(rows, aggregates, left))
    write_csv(out / "tables.csv", rows, COLUMNS)
    write_csv(out / "aggregate.csv", aggregates, ("block", "tasks", "method", "seeds", "iqm", "iqm_low", "iqm_high",
                                                  "mean", "mean_low", "mean_high", "paper_mean"))
    picture(rows, aggregates, out / "tables.png")
