"""Figure 1's layout: success over both stages, ours with intervals over the paper's.

Budgets differ a hundredfold from the paper's, so a point stands at its share of its own stage: 0 to 1 offline, 1 to 2
online.
"""
import collections
import itertools
import textwrap

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from scipy import stats

import config
from tools.report.results import PAPER, Key, read_csv

short = EngFormatter(sep="")                                     # 1000000 -> 1M, 8000 -> 8k


def share(step: int, offline: int, online: int) -> float:
    return step / max(offline, 1) if step <= offline else 1 + (step - offline) / online


def curve_points(key: Key, seeds: dict) -> tuple[list[float], np.ndarray]:
    """A group of results.groups -> shares [n], success there [n, seeds]. Seeds that lag behind the farthest are left
    out, so that no curve changes its seeds on the way."""
    curves = [reached.curve for reached in seeds.values()]
    last = max(itertools.chain(*curves))
    whole = [curve for curve in curves if last in curve]
    steps = sorted(set.intersection(*map(set, whole)))
    shares = [share(step, key.offline, key.online) for step in steps]
    return shares, np.array([[curve[step] for curve in whole] for step in steps])


def paper_curves() -> dict[tuple, list[tuple]]:
    """{(task, method): [(share, success), ...]}: the paper's Figure 1."""
    curves = collections.defaultdict(list)
    for row in read_csv(PAPER / "curves.csv"):
        point = share(int(row["step"]), 10**6, 10**6), float(row["success_percent"])
        curves[row["task"], row["method"].lower()].append(point)
    return curves


def draw(found, path) -> None:
    """A panel for each task, data, setting and budget: never two of them in one."""
    panels = collections.defaultdict(dict)
    for key, seeds in found.items():
        panels[key._replace(method="")][key.method] = curve_points(key, seeds)
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(max(3.6 * columns, 5.4), 3.6 * rows), layout="constrained")
    for place, (key, curves) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(rows, columns, place)
        paper = {} if key.setting.startswith("offline-rl") else paper_curves()       # which has no pure offline RL
        for method, (x, success) in curves.items():
            color, mean, seeds = f"C{list(config.METHODS).index(method)}", success.mean(1), success.shape[1]
            axes.plot(x, mean, "o-", color=color, ms=3, label=f"{method}, n = {seeds}")
            if seeds > 2:
                half = stats.t.ppf(0.975, seeds - 1) * stats.sem(success, axis=1)            # Student's t
                axes.fill_between(x, *np.clip([mean - half, mean + half], 0, 100), color=color, alpha=0.12, lw=0)
            if (key.task, method) in paper:
                axes.plot(*zip(*paper[key.task, method]), "--", color=color, lw=1)
        axes.axvspan(0, 1, color="0.92", lw=0, zorder=0)
        axes.set_xticks([0, 1, 2], [0, short(key.offline), short(key.end)])
        axes.set(xlim=(0, 2 if key.online else 1), ylim=(-3, 103), ylabel="success %")
        budget, setting = f"{short(key.offline)} + {short(key.online)}", key.setting.replace(",", ", ")
        title = f"{key.task}\n{textwrap.fill(setting, 50)}\n{key.data} data, {budget}"
        axes.set_title(title, fontsize=8, parse_math=False)
        axes.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncol=3, frameon=False)
    figure.supxlabel("share of each stage (grey: offline, white: online). Solid: here, the mean over n seeds; band: "
                     "95 %, where n is three or more.\nDashed: the paper's, official data, 1M + 1M steps", fontsize=7)
    figure.savefig(path, dpi=110)
