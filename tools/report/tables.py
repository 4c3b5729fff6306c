"""The layouts of the paper's Tables 1, 2, 3, 4 and 7, from runs, the paper's numbers below ours, and an aggregate.

A cell is a group of runs that agree in all but the seed (results.Key), so that no number mixes two data sets, budgets
or settings. Columns are tasks, and suites where the paper averages over them; rows are methods (Tables 1, 2; 7: pure
offline RL, at the end of stage 1), or values of lambda (3) and K (4) of method dfp. Within a table, a block holds the
tasks that share setting and data source, each with the preset's own budget or all with one other.

The aggregate is rliable's (Agarwal et al., arXiv 2108.13264): the interquartile mean over all seeds and tasks, with
95 % intervals from a bootstrap stratified by task: seeds are drawn again within each task, tasks never.
"""
import collections
import functools
import itertools
import re

import numpy as np
from scipy import stats

import config
from tools.report.results import PAPER, given, grouped, knob_texts, preset, read_csv, short, stages

TITLES = {1: "methods", 2: "with and without L_topK", 3: "weight λ of L_topK", 4: "K of N = 16 candidates",
          7: "pure offline RL"}
KNOBS = {3: "topk_weight", 4: "top_k"}
SIBLINGS = {"dfp": "dfp-no-topk", "dfp-no-topk": "dfp", "mvp": "mvp-topk", "mvp-topk": "mvp"}
COLUMNS = ("table", "block", "row", "column", "data", "setting", "offline_steps", "online_steps",
           "offline_mean", "offline_std", "offline_seeds", "online_mean", "online_std", "online_seeds",
           "paper_offline", "paper", "paper_std")
AGGREGATE_COLUMNS = ("block", "tasks", "method", "seeds", "iqm", "iqm_low", "iqm_high", "mean", "mean_low", "mean_high",
                     "paper_mean")
INTRODUCTION = (
    "# Results beside the paper's\n\nSuccess in %, mean ± standard deviation over seeds (n − 1), at the end of the "
    "offline stage → at the end of the online stage.\nBelow each number: data, steps of the two stages, seeds. The "
    "paper's are from human or official play data and 1M + 1M steps\n(results/paper/README.md says how they were "
    "read): another budget and other data are another experiment, so compare methods\ndown a column, ours with "
    "ours.\n\n![curves](curves.png)\n")
OVER_TASKS = (
    "## Over tasks\n\nInterquartile mean over seeds and tasks at the end of the online stage, 95 % intervals from "
    "10,000 bootstrap samples stratified by task. With few seeds they are too narrow. Every task counts with as many "
    "seeds, its first, as the one with the fewest has.\n")


@functools.cache
def paper() -> dict[int, dict[tuple, tuple]]:
    """{table: {(row, column): (end of stage 1, mean, std), each None where the paper prints none}} in its order, from
    results/paper/. Table 1's offline ends: Figure 1's."""
    offline = {(row["method"].lower(), row["task"]): float(row["success_percent"])
               for row in read_csv(PAPER / "curves.csv") if row["step"] == "1000000"}
    reported = collections.defaultdict(dict)
    for row in read_csv(PAPER / "tables.csv"):
        place = row["row"], row["column"]
        mean, std = (float(row[name]) if row[name] else None for name in ("mean", "std"))
        reported[int(row["table"])][place] = offline.get(place) if row["table"] == "1" else None, mean, std
    return reported


def places(found):
    """(table, block, row, group) for every place that a group (of results.groups) takes."""
    for key in found:
        if key.setting.startswith("offline-rl"):
            yield 7, key.block, key.method, key
            continue
        if key.method != "dfp" or not given(key.setting).keys() & set(KNOBS.values()):   # those are for Tables 3 and 4
            yield 1, key.block, key.method, key
        if key._replace(method=SIBLINGS.get(key.method)) in found:
            yield 2, key.block, key.method, key
    for table, knob in KNOBS.items():
        usual = {key: key._replace(setting=re.sub(f",{knob}=[^,]*", "", key.setting)) for key in found
                 if key.method == "dfp" and not key.setting.startswith("offline-rl")}
        varied = {without for key, without in usual.items() if key != without}
        for key, without in usual.items():
            if without in varied:
                knobs = knob_texts(preset(key.task, key.method, key.setting.split(",")[0])) | given(key.setting)
                yield table, without.block, knobs[knob], key


def cells(found) -> list[dict]:
    """Every cell that the groups fill, beside the paper's numbers: COLUMNS by name, and each seed's success."""
    rows = []
    for table, block, name, key in sorted(places(found), key=lambda place: place[0]):            # stable
        offline, online = stages(key, found[key])
        if offline or online:
            theirs = paper()[table].get((name, key.task), (None, None, None))
            rows.append(dict(zip(COLUMNS, (table, block, name, key.task, key.data, key.setting, key.offline, key.online,
                                           *spread(offline), *spread(online), *theirs)))
                        | dict(successes=online, budget=f"{short(key.offline)} + {short(key.online)}"))
    return rows


def spread(values) -> tuple:
    """(mean, std, seeds); std with n - 1, None for fewer than two seeds."""
    std = np.std(values, ddof=1) if len(values) > 1 else None
    return (np.mean(values), std, len(values)) if values else (None, None, 0)


def iqm(scores: np.ndarray) -> np.ndarray:
    """Interquartile mean of [..., seeds, tasks] -> [...]: a quarter of all scores, rounded down, is cut at each end."""
    return stats.trim_mean(scores.reshape(*scores.shape[:-2], -1), 0.25, axis=-1)


def resamples(scores: np.ndarray, count: int) -> np.ndarray:
    """[seeds, tasks] -> [count, seeds, tasks]: each task's seeds drawn again with replacement, for itself."""
    index = np.random.default_rng(0).integers(len(scores), size=(count, *scores.shape))
    return np.take_along_axis(scores[None], index, axis=1)


def aggregate(rows: list[dict]) -> list[dict]:
    """For each set of two tasks or more that some method has finished in a block: every method that has them all."""
    finished = collections.defaultdict(lambda: collections.defaultdict(dict))        # {block: {method: {task: cell}}}
    for row in rows:
        if row["table"] == 1 and row["successes"]:
            finished[row["block"]][row["row"]][row["column"]] = row
    aggregates = []
    for block, methods in finished.items():
        sets = dict.fromkeys(tuple(task for task in config.TASKS if task in by_task) for by_task in methods.values())
        for tasks, method in itertools.product(sorted(sets, key=len, reverse=True), methods):
            if len(tasks) > 1 and set(tasks) <= set(methods[method]):
                parts = [methods[method][task] for task in tasks]
                theirs = [part["paper"] for part in parts]
                aggregates.append(dict(
                    block=block, tasks=" ".join(tasks), method=method, budgets=[part["budget"] for part in parts],
                    paper_mean=None if None in theirs else np.mean(theirs),
                    **over_tasks([part["successes"] for part in parts])))
    return aggregates


def over_tasks(successes: list[list]) -> dict:
    """One method's aggregates over its seeds' successes in each task. Seeds may be missing: each task counts with as
    many as the one with the fewest has, its first, or it would count more."""
    seeds = min(map(len, successes))
    scores = np.array([of_task[:seeds] for of_task in successes]).T                           # [seeds, tasks]
    drawn, row = resamples(scores, 10_000), dict(seeds=seeds)
    for name, value, values in (("iqm", iqm(scores), iqm(drawn)), ("mean", scores.mean(), drawn.mean((1, 2)))):
        low, high = np.percentile(values, (2.5, 97.5)) if seeds > 1 else ("", "")             # one seed: no interval
        row |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return row


def plus_minus(mean, std) -> str:
    return "–" if mean is None else f"{mean:.1f}" + (f" ± {std:.1f}" if std is not None else "")


def between(row, name: str) -> str:
    """A mean and its interval, where there are seeds for one."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:.1f}" + (f" [{low:.1f}, {high:.1f}]" if row["seeds"] > 1 else "")


def shown_here(row: dict) -> str:
    """One cell: success, then what it rests on."""
    offline, online = (plus_minus(row[f"{stage}_mean"], row[f"{stage}_std"]) for stage in ("offline", "online"))
    counts = list(dict.fromkeys(filter(None, (row["offline_seeds"], row["online_seeds"]))))   # two: one is not done yet
    seeds = f"{' → '.join(map(str, counts))} seed{'s' * (counts != [1])}"
    return f"{offline} → {online}<br>{row['data']}, {row['budget']}, {seeds}"


def shown_paper(table: int, offline, mean, std) -> str:
    before, steps = "" if offline is None else f"{offline:.1f} → ", "" if table == 7 else ", 1M + 1M"
    return f"{before}{plus_minus(mean, std)}<br>official{steps}{', 5 seeds' * (table == 1)}"


def pivot(table: int, block: list[dict]) -> list[str]:
    """Rows by columns, each row ours and then the paper's; of Table 1 only the tasks that have runs."""
    here = {(row["row"], row["column"]): shown_here(row) for row in block}
    theirs = {place: shown_paper(table, *reported) for place, reported in paper()[table].items()}
    there = dict.fromkeys(column for _, column in (here if table == 1 and here else here | theirs))
    columns = sorted(there, key=[*config.TASKS, *there].index)           # tasks, then the paper's suites
    first = {3: "λ", 4: "K"}.get(table, "method")
    lines = [f"| {first} | | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    order = float if table in KNOBS else list(config.METHODS).index
    for name in sorted({row for row, _ in theirs | here}, key=order):
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
        budgets = ", ".join(f"{task} ({steps})" for task, steps in zip(tasks.split(), methods[0]["budgets"]))
        text += [f"{block}: {budgets}", "", "| method | seeds | IQM | mean | the paper's mean |", "|---" * 5 + "|"]
        text += [f"| {row['method']} | {row['seeds']} | {between(row, 'iqm')} | {between(row, 'mean')} "
                 f"| {plus_minus(row['paper_mean'], None)} |" for row in methods] + [""]
    text += ["## Left out, because unfinished", "", *(f"- {line}" for line in left), ""] if left else []
    return "\n".join(text)
