"""The layouts of the paper's Tables 1, 2, 3, 4 and 7, from runs, the paper's numbers below ours, and an aggregate.

A cell is a group of runs that agree in all but the seed. The aggregate is rliable's (Agarwal et al., arXiv 2108.13264).
"""
import collections
import functools
import itertools
import re

import numpy as np
from scipy import stats

import config
from tools.report.curves import paper_curves, short
from tools.report.results import PAPER, given, grouped, knob_texts, preset, read_csv, stages

TITLES = {1: "methods", 2: "with and without L_topK", 3: "weight λ of L_topK", 4: "K of N = 16 candidates",
          7: "pure offline RL"}
KNOBS = {3: "topk_weight", 4: "top_k"}
SIBLINGS = {"dfp": "dfp-no-topk", "dfp-no-topk": "dfp", "mvp": "mvp-topk", "mvp-topk": "mvp"}
COLUMNS = ("table", "block", "row", "column", "data", "setting", "offline_steps", "online_steps",
           "offline_mean", "offline_std", "offline_seeds", "online_mean", "online_std", "online_seeds",
           "paper_offline", "paper", "paper_std")
AGGREGATE_COLUMNS = ("block", "tasks", "method", "seeds", "iqm", "iqm_low", "iqm_high", "mean", "mean_low", "mean_high",
                     "paper_mean")
INTRODUCTION = """# Results beside the paper's

Success in %, mean ± standard deviation (n − 1) and number of seeds, at the end of the offline stage → at the end of the
online stage; below it the steps of both. The paper's are from human or official play data and 1M + 1M steps
(results/paper/README.md says how they were read): another budget and other data are another experiment, so compare
methods down a column, ours with ours.

![curves](curves.png)
"""
OVER_TASKS = """## Over tasks

Interquartile mean over seeds and tasks at the end of the online stage, 95 % intervals from 10,000 bootstrap samples
stratified by task. With few seeds they are too narrow. Every task counts with as many seeds, its first, as the one with
the fewest has. Two tasks at least that some method of a block has finished make an aggregate.
"""


@functools.cache
def paper() -> dict[int, dict[tuple, tuple]]:
    """{table: {(row, column): (end of stage 1, mean, std), each None where the paper prints none}}, in its order."""
    offline = {(method, task): dict(points)[1] for (task, method), points in paper_curves().items()}
    reported = collections.defaultdict(dict)
    for row in read_csv(PAPER / "tables.csv"):
        place = row["row"], row["column"]
        mean, std = (float(row[name]) if row[name] else None for name in ("mean", "std"))
        reported[int(row["table"])][place] = offline.get(place) if row["table"] == "1" else None, mean, std
    return reported


def places(found):
    """(table, row, block, key) for every place that a group of results.groups takes."""
    online = [key for key in found if not key.setting.startswith("offline-rl")]
    for key in found:
        if key not in online:
            yield 7, key.method, key.block, key
        elif key.method != "dfp" or not given(key.setting).keys() & set(KNOBS.values()):     # else for Tables 3 and 4
            yield 1, key.method, key.block, key
        if key in online and key._replace(method=SIBLINGS.get(key.method)) in found:
            yield 2, key.method, key.block, key
    for table, knob in KNOBS.items():
        alike = collections.defaultdict(list)                                # {key without the knob: keys}
        for key in online:
            if key.method == "dfp":
                alike[key._replace(setting=re.sub(f",{knob}=[^,]*", "", key.setting))].append(key)
        for usual, keys in alike.items():
            if keys != [usual]:
                for key in keys:
                    knobs = knob_texts(preset(key.task, key.method, key.setting)) | given(key.setting)
                    yield table, knobs[knob], usual.block, key


def cells(found) -> list[dict]:
    """COLUMNS by name of every cell that the groups fill, and each seed's success."""
    rows = []
    for table, name, block, key in sorted(places(found), key=lambda place: place[0]):            # stable
        offline, online = stages(key, found[key])
        if offline or online:
            values = (table, block, name, key.task, key.data, key.setting, key.offline, key.online,
                      *spread(offline), *spread(online), *paper()[table].get((name, key.task), (None, None, None)))
            rows.append(dict(zip(COLUMNS, values), successes=online))
    return rows


def spread(values) -> tuple:
    """(mean, std, seeds); std with n - 1, None for fewer than two seeds."""
    std = np.std(values, ddof=1) if len(values) > 1 else None
    return (np.mean(values), std, len(values)) if values else (None, None, 0)


def aggregate(rows: list[dict]) -> list[dict]:
    """For each set of two tasks or more that some method has finished in a block: every method that has them all."""
    aggregates, finished = [], [row for row in rows if row["table"] == 1 and row["successes"]]
    for (block,), of_block in grouped(finished, "block").items():
        methods = collections.defaultdict(dict)
        for row in of_block:
            methods[row["row"]][row["column"]] = row
        sets = sorted(dict.fromkeys(map(tuple, methods.values())), key=len, reverse=True)
        for tasks, (method, by_task) in itertools.product(sets, methods.items()):
            if len(tasks) > 1 and set(tasks) <= set(by_task):
                parts = [by_task[task] for task in tasks]
                theirs = [part["paper"] for part in parts]
                aggregates.append(dict(block=block, tasks=" ".join(tasks), method=method,
                                       paper_mean=None if None in theirs else np.mean(theirs),
                                       **over_tasks([part["successes"] for part in parts])))
    return aggregates


iqm = functools.partial(stats.trim_mean, proportiontocut=0.25, axis=-1)          # rounded down, at each end


def over_tasks(successes: list[list]) -> dict:
    """One method's aggregates over its seeds' successes in each task, as OVER_TASKS has them."""
    row = dict(seeds=min(map(len, successes)))
    scores = [of_task[: row["seeds"]] for of_task in successes]
    for name, center in (("iqm", iqm), ("mean", np.mean)):
        low = high = ""                                                                      # one seed: no interval
        if row["seeds"] > 1:
            low, high = stats.bootstrap(scores, lambda *tasks, axis: center(np.concatenate(tasks, axis), axis=axis),
                                        n_resamples=10_000, method="percentile", rng=0).confidence_interval
        row |= {name: center(np.ravel(scores)), f"{name}_low": low, f"{name}_high": high}
    return row


def shown(mean, std=None, seeds=None) -> str:
    if mean is None:
        return "–"
    return f"{mean:.1f}" + (f" ± {std:.1f}" if std is not None else "") + (f" ({seeds})" if seeds else "")


def shown_interval(row: dict, name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return shown(row[name]) + (f" [{low:.1f}, {high:.1f}]" if row["seeds"] > 1 else "")


def pivot(table: int, block: list[dict]) -> list[str]:
    """Rows by columns, each row ours and then the paper's; of Table 1 only the tasks that have runs."""
    here = {}
    for row in block:
        offline, online = (shown(*(row[f"{stage}_{name}"] for name in ("mean", "std", "seeds")))
                           for stage in ("offline", "online"))
        steps = f"{short(row['offline_steps'])} + {short(row['online_steps'])}"
        here[row["row"], row["column"]] = f"{offline} → {online}<br>{steps}"
    theirs = {place: f"{shown(offline)} → {shown(mean, std)}" for place, (offline, mean, std) in paper()[table].items()}
    columns = list(dict.fromkeys(column for _, column in (here if table == 1 else here | theirs)))
    lines = [f"| {KNOBS.get(table, 'method')} | | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    order = float if table in KNOBS else list(config.METHODS).index
    for name in sorted({row for row, _ in theirs | here}, key=order):
        for who, texts in (("here", here), ("paper", theirs)):
            line = [texts.get((name, column), "–") for column in columns]
            lines += [f"| {name} | {who} | {' | '.join(line)} |"] if set(line) != {"–"} else []
    return lines


def markdown(rows: list[dict], aggregates: list[dict]) -> str:
    text = [INTRODUCTION]
    for (table, block), of_block in grouped(rows, "table", "block").items():
        text += [f"## Table {table}: {TITLES[table]} ({block})", "", *pivot(table, of_block), ""]
    text += [OVER_TASKS]
    for (block, tasks), methods in grouped(aggregates, "block", "tasks").items():
        text += [f"{block}: {tasks}", "", "| method | seeds | IQM | mean | the paper's mean |", "|---" * 5 + "|"]
        text += [f"| {row['method']} | {row['seeds']} | {shown_interval(row, 'iqm')} | {shown_interval(row, 'mean')} "
                 f"| {shown(row['paper_mean'])} |" for row in methods] + [""]
    return "\n".join(text)
