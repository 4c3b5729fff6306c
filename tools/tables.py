"""The layouts of the paper's Tables 1, 2, 3, 4 and 7 filled from runs, the paper's numbers below ours, and an aggregate over tasks.

Everything is a list of cells, and a cell is a group of runs that agree in all but the seed (results.Key), so that no number mixes two
data sets, budgets or settings. Tables differ in which groups they take and what names their rows:

    1  methods                        2  with and without L_topK       (columns are tasks,
    3  lambda of method dfp           4  K of method dfp                and whole suites where the paper averages over them)
    7  preset offline-rl, at the end of stage 1

Within a table, a block holds the tasks that share setting and data source, each with the preset's own budget or all with one other.

The aggregate is rliable's (Agarwal et al., arXiv 2108.13264): the interquartile mean over all seeds and tasks, with 95 % intervals
from a bootstrap stratified by task: seeds are drawn again within each task, tasks never.
"""
import collections

import numpy as np

import config
from tools import results

SUITES = {"robomimic": config.ROBOMIMIC} | {
    name: tuple(t for t in config.OGBENCH if t.startswith(name)) for name in ("cube-double", "cube-triple", "cube-quadruple")}
SUITES["12 tasks"] = config.ROBOMIMIC + config.OGBENCH
TITLES = {1: "methods", 2: "with and without L_topK", 3: "weight λ of L_topK", 4: "K of N = 16 candidates", 7: "pure offline RL"}
KNOBS = {3: "topk_weight", 4: "top_k"}
SIBLINGS = {"dfp": "dfp-no-topk", "dfp-no-topk": "dfp", "mvp": "mvp-topk", "mvp-topk": "mvp"}
COLUMNS = ("table", "block", "row", "column", "data", "setting", "offline_steps", "online_steps", "offline_mean", "offline_std", "offline_seeds",
           "online_mean", "online_std", "online_seeds", "paper_offline", "paper", "paper_std")


# ------------------------------------------------------------------------------------------------------------- cells
def paper() -> dict:
    """{(table, row, column): (offline or None, success, std or None)} in the paper's order, from results/paper/."""
    ends = {(r["method"].lower(), r["task"]): float(r["success_percent"]) for r in results.read_csv(results.PAPER / "curves.csv")
            if r["step"] == "1000000"}
    number = lambda text: float(text) if text else None                                                         # noqa: E731
    return {(int(r["table"]), r["row"], r["column"]): (ends.get((r["row"], r["column"])) if r["table"] == "1" else None,
                                                       number(r["mean"]), number(r["std"]))
            for r in results.read_csv(results.PAPER / "tables.csv")}


def split(setting: str, knob: str) -> tuple[str, str | None]:
    """'quick,top_k=8,lr=0.1', 'top_k' -> ('quick,lr=0.1', '8'): a setting without one knob, and that knob where it is set by hand."""
    parts = setting.split(",")
    values = [part.split("=")[1] for part in parts if part.startswith(knob + "=")]
    return ",".join(part for part in parts if not part.startswith(knob + "=")), values[0] if values else None


def cells(found) -> list[dict]:
    """Every cell that the groups fill: table, block, row, column, and the successes of its seeds at the end of each stage."""
    made = []

    def add(table, row, key, seeds, block=None):
        offline, online = results.stages(key, seeds)
        if offline or online:
            made.append(dict(table=table, block=block or key.block, row=row, column=key.task, key=key, offline=offline, online=online))

    changed = {(table, key._replace(setting=split(key.setting, knob)[0])) for key in found for table, knob in KNOBS.items()
               if split(key.setting, knob)[1]}
    for key, seeds in found.items():
        plain = not any(split(key.setting, knob)[1] for knob in KNOBS.values())
        if key.setting.startswith("offline-rl"):
            add(7, key.method if plain else f"{key.method}, {key.setting}", key, seeds)
            continue
        if plain or any(other.method != "dfp" and other.block == key.block for other in found):
            add(1, key.method, key, seeds)                       # DFP alone with another lambda or K is for Tables 3 and 4
        if key.method in SIBLINGS and key._replace(method=SIBLINGS[key.method]) in found:
            add(2, key.method, key, seeds)
        for table, knob in KNOBS.items():
            base, value = split(key.setting, knob)
            usual = key._replace(setting=base)
            if key.method == "dfp" and (table, usual) in changed:
                c = results.preset(key.task, key.method, base.split(",")[0])
                add(table, value or results.plain(c)[knob], key, seeds, usual.block)
    return sorted(made, key=lambda cell: cell["table"])          # stable: tasks and methods stay in order


def spread(values) -> tuple:
    """(mean, std, seeds); std with n - 1, None for fewer than two seeds."""
    return (np.mean(values), np.std(values, ddof=1) if len(values) > 1 else None, len(values)) if values else (None, None, 0)


def filled(found) -> list[dict]:
    """cells() as plain rows beside the paper's numbers, with whole suites averaged where every task of one is there."""
    theirs, rows, means = paper(), [], collections.defaultdict(dict)
    for c in cells(found):
        key, here = c["key"], (c["table"], c["row"], c["column"])
        where = dict(table=c["table"], block=c["block"], row=c["row"])
        known = theirs.get(here, (None, None, None))
        rows.append(dict(zip(COLUMNS, (*where.values(), c["column"], key.data, key.setting, key.offline, key.online,
                                       *spread(c["offline"]), *spread(c["online"]), *known))))
        means[tuple(where.items())][c["column"]] = rows[-1]
    for where, by_task in means.items():
        for suite, tasks in SUITES.items():
            known = theirs.get((dict(where)["table"], dict(where)["row"], suite))
            if known and set(tasks) <= set(by_task) and all(by_task[t]["online_seeds"] for t in tasks):
                rows.append(dict.fromkeys(COLUMNS) | dict(where) | dict(
                    column=suite, data=by_task[tasks[0]]["data"], setting=by_task[tasks[0]]["setting"],
                    online_mean=np.mean([by_task[t]["online_mean"] for t in tasks]),
                    online_seeds=min(by_task[t]["online_seeds"] for t in tasks), paper=known[1]))
    return rows


# --------------------------------------------------------------------------------------------------------- aggregate
def iqm(scores: np.ndarray) -> np.ndarray:
    """Interquartile mean of [..., seeds, tasks] -> [...]: all scores in one row, a quarter (rounded down) left out at each end."""
    flat = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    cut = flat.shape[-1] // 4
    return flat[..., cut : flat.shape[-1] - cut].mean(-1)


def resamples(scores: np.ndarray, count: int) -> np.ndarray:
    """[seeds, tasks] -> [count, seeds, tasks]: the seeds of each task drawn again with replacement, each task for itself."""
    index = np.random.default_rng(0).integers(len(scores), size=(count, *scores.shape))
    return np.take_along_axis(scores[None], index, axis=1)


def aggregate(found) -> list[dict]:
    """For each block of Table 1 and each set of two tasks or more that some method has finished: every method that has them all.

    Seeds may be missing: each task counts with as many as the task with the fewest has (the first ones), or it would count more.
    """
    theirs, finished, rows = paper(), collections.defaultdict(lambda: collections.defaultdict(dict)), []
    for c in cells(found):
        if c["table"] == 1 and c["online"]:
            finished[c["block"]][c["row"]][c["column"]] = c["online"]
    for block, methods in finished.items():
        for tasks in sorted({tuple(t for t in config.TASKS if t in done) for done in methods.values()}, key=len, reverse=True):
            for method, done in methods.items():
                if len(tasks) < 2 or not set(tasks) <= set(done):
                    continue
                seeds = min(len(done[t]) for t in tasks)
                scores = np.array([done[t][:seeds] for t in tasks]).T                               # [seeds, tasks]
                drawn = resamples(scores, 10_000)
                row = dict(block=block, tasks=" ".join(tasks), method=method, seeds=seeds)
                for name, measure in (("iqm", iqm), ("mean", lambda s: s.mean((-2, -1)))):
                    low, high = np.percentile(measure(drawn), (2.5, 97.5)) if seeds > 1 else ("", "")       # one seed: no interval
                    row |= {name: measure(scores), f"{name}_low": low, f"{name}_high": high}
                known = [theirs.get((1, method, t)) for t in tasks]
                rows.append(row | dict(paper_mean=np.mean([k[1] for k in known]) if all(known) else ""))
    return rows


# ---------------------------------------------------------------------------------------------------------- Markdown
def plus_minus(mean, std) -> str:
    return "–" if mean is None else f"{mean:.1f}" + (f" ± {std:.1f}" if std is not None else "")


def ours(row) -> str:
    """One cell: success, then what it rests on."""
    stages = [plus_minus(row[f"{s}_mean"], row[f"{s}_std"]) for s in ("offline", "online")]
    counts = list(dict.fromkeys(n for n in (row["offline_seeds"], row["online_seeds"]) if n))      # two where a seed is not done yet
    text = stages[0] if row["table"] == 7 else stages[1] if row["column"] in SUITES else " → ".join(stages)
    budget = "" if row["column"] in SUITES else f"{results.short(row['offline_steps'])} + {results.short(row['online_steps'])}, "
    return f"{text}<br>{row['data']}, {budget}{' → '.join(map(str, counts))} seed{'s' * (counts != [1])}"


def theirs_shown(table: int, known) -> str:
    offline, mean, std = known
    text = plus_minus(mean, std) if offline is None else f"{offline:.1f} → {plus_minus(mean, std)}"
    return f"{text}<br>official" + {1: ", 1M + 1M, 5 seeds", 7: ""}.get(table, ", 1M + 1M")


def pivot(table: int, block: list[dict], theirs: dict) -> list[str]:
    """Rows by columns, each row ours and then the paper's. Table 1 shows the tasks that have runs, the small ones the paper's too."""
    known = {(row, column): value for (t, row, column), value in theirs.items() if t == table}
    mine = {(row["row"], row["column"]): row for row in block}
    own = [column for _, column in mine]
    columns = [c for c in [*config.TASKS, *SUITES] if c in own or (table != 1 or not own) and c in {column for _, column in known}]
    names = list(dict.fromkeys([row for row, _ in known] + [row for row, _ in mine]))
    order = list(config.METHODS)
    names.sort(key=float if table in KNOBS else lambda n: order.index(n.split(",")[0]))
    lines = [f"| {('λ' if table == 3 else 'K') if table in KNOBS else 'method'} | | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for name in names:
        here = [ours(mine[name, c]) if (name, c) in mine else "–" for c in columns]
        paper_ = [theirs_shown(table, known[name, c]) if (name, c) in known else "–" for c in columns]
        lines += [f"| {name} | {who} | {' | '.join(texts)} |" for who, texts in (("here", here), ("paper", paper_)) if set(texts) != {"–"}]
    return lines


def markdown(rows, aggregates, left) -> str:
    theirs = paper()
    text = ["# Results beside the paper's", "",
            "Success in %, mean ± standard deviation over seeds (n − 1), at the end of the offline stage → at the end of the online stage.",
            "Below each number: data, steps of the two stages, seeds. The paper's are from human or official play data and 1M + 1M steps",
            "(results/paper/README.md says how they were read): another budget and other data are another experiment, so compare methods",
            "down a column, ours with ours.", "", "![curves](curves.png)", ""]
    for table, title in TITLES.items():
        blocks = list(dict.fromkeys(row["block"] for row in rows if row["table"] == table))
        for block in blocks or [None]:
            text += [f"## Table {table}: {title}" + (f" ({block})" if block else " (the paper's; no runs yet)"), ""]
            text += pivot(table, [row for row in rows if (row["table"], row["block"]) == (table, block)], theirs) + [""]
    text += ["## Over tasks", "", "Interquartile mean over seeds and tasks at the end of the online stage, 95 % intervals from 10,000 bootstrap samples "
             "stratified by task. With few seeds they are too narrow. Every task counts with as many seeds, its first, as the one with the fewest has.", ""]
    if not aggregates:
        text += ["No method has finished two tasks of one block yet.", ""]
    show = lambda r, n: f"{r[n]:.1f}" + (f" [{r[n + '_low']:.1f}, {r[n + '_high']:.1f}]" if r[n + "_low"] != "" else "")    # noqa: E731
    for block, tasks in dict.fromkeys((r["block"], r["tasks"]) for r in aggregates):
        budgets = {row["column"]: f"{row['column']} ({results.short(row['offline_steps'])} + {results.short(row['online_steps'])})"
                   for row in rows if (row["table"], row["block"]) == (1, block) and row["column"] in tasks.split()}
        text += [f"{block}: {', '.join(budgets[t] for t in tasks.split())}", "", "| method | seeds | IQM | mean | the paper's mean |", "|---|---|---|---|---|"]
        text += [f"| {r['method']} | {r['seeds']} | {show(r, 'iqm')} | {show(r, 'mean')} | {'–' if r['paper_mean'] == '' else format(r['paper_mean'], '.1f')} |"
                 for r in aggregates if (r["block"], r["tasks"]) == (block, tasks)] + [""]
    text += ["## Left out, because unfinished", "", *(f"- {line}" for line in left), ""] if left else []
    return "\n".join(text)


# ----------------------------------------------------------------------------------------------------------- picture
def picture(rows, aggregates, path) -> None:
    """A panel for each block of each table and each aggregate: filled dots are ours (bars: std, or the 95 % interval), open ones the
    paper's; the small tables show those too that nothing of ours stands beside."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    theirs = paper()
    panels = list(dict.fromkeys((row["table"], row["block"]) for row in rows)) + list(dict.fromkeys((r["block"], r["tasks"]) for r in aggregates))
    figure, grid = plt.subplots(max(1, len(panels)), 1, squeeze=False, figsize=(7.5, 3 * max(1, len(panels))), layout="constrained")
    for axes, (a, b) in zip(grid[:, 0], panels):
        if a in TITLES:
            dots = [(r["row"], r["column"], *((r["offline_mean"], r["offline_std"]) if a == 7 else (r["online_mean"], r["online_std"])), r["paper"])
                    for r in rows if (r["table"], r["block"]) == (a, b)]
            dots = [(x, c, mean, std or 0, std or 0, known) for x, c, mean, std, known in dots]
            budgets = {r["column"]: f", {results.short(r['offline_steps'])} + {results.short(r['online_steps'])}" for r in rows
                       if (r["table"], r["block"]) == (a, b) and r["column"] not in SUITES}
            dots += [(x, c, None, 0, 0, known[1]) for (t, x, c), known in theirs.items() if t == a != 1 and (x, c) not in [d[:2] for d in dots]]
        else:
            budgets = {}
            dots = [(r["method"], "IQM", r["iqm"], *((r["iqm"] - r["iqm_low"], r["iqm_high"] - r["iqm"]) if r["seeds"] > 1 else (0, 0)), None)
                    for r in aggregates if (r["block"], r["tasks"]) == (a, b)]
        names, columns = list(dict.fromkeys(d[0] for d in dots)), list(dict.fromkeys(d[1] for d in dots))
        names.sort(key=float if a in KNOBS else lambda n: list(config.METHODS).index(n.split(",")[0]))
        for i, column in enumerate(columns):
            place = lambda x: names.index(x) + 0.6 * ((i + 0.5) / len(columns) - 0.5)                           # noqa: E731, B023
            for x, _, mean, down, up, known in (d for d in dots if d[1] == column):
                if mean is not None:
                    axes.errorbar(place(x), mean, [[down], [up]], fmt="o", ms=4, lw=1, capsize=2, color=f"C{i % 10}")
                if known is not None:
                    axes.plot(place(x), known, "D", ms=4, mfc="none", color=f"C{i % 10}", alpha=0.7)
            axes.plot([], [], "s", ms=4, color=f"C{i % 10}", label=column + budgets.get(column, ""))
        axes.set_xticks(range(len(names)), names, fontsize=8)
        axes.set_title(f"Table {a}: {TITLES[a]} ({b})" if a in TITLES else f"Over {b.replace(' ', ', ')} ({a})", fontsize=8)
        axes.set(ylim=(-3, 103), xlim=(-0.5, len(names) - 0.5), ylabel="success %")
        axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        axes.grid(axis="y", alpha=0.3)
    figure.supxlabel("filled: here; open: the paper's, official data, 1M + 1M steps (another budget is another experiment)", fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write(found, left, out) -> None:
    rows, aggregates = filled(found), aggregate(found)
    (out / "report.md").write_text(markdown(rows, aggregates, left))
    results.write_csv(out / "tables.csv", rows, COLUMNS)
    results.write_csv(out / "aggregate.csv", aggregates, ("block", "tasks", "method", "seeds", "iqm", "iqm_low", "iqm_high", "mean", "mean_low",
                                                         "mean_high", "paper_mean"))
    picture(rows, aggregates, out / "tables.png")
