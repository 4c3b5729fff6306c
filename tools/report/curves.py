"""Figure 1's layout: success over both stages, ours with intervals over the paper's.

Budgets differ a hundredfold from the paper's, so steps cannot share an axis: a point stands where it is on its own
stage, from 0 to 1 offline and from 1 to 2 online, with the steps of both written at the ends.
"""
import numpy as np
from scipy import stats

import config
from tools.report.results import PAPER, grouped, read_csv, short, trained

CAPTION = ("share of each stage (grey: offline, white: online). Solid: here, the mean; band: 95 % over three seeds or "
           "more.\nDashed: the paper's, official data, 1M + 1M steps")


def interval(values) -> tuple:
    """95 % for the mean over seeds (Student's t: two say little, as they should), within 0 and 100; "" for one seed."""
    if len(values) < 2:
        return "", ""
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return max(0.0, np.mean(values) - half), min(100.0, np.mean(values) + half)


def share(step: int, offline: int, online: int) -> float:
    """0 to 1 along stage 1, 1 to 2 along stage 2."""
    return step / max(offline, 1) if step <= offline else 1 + (step - offline) / online


def curve_points(found) -> list[dict]:
    """Figure 1's points, ours (from results.groups) and the paper's. Seeds that lag behind their group's farthest are
    left out, so that no curve changes its seeds on the way."""
    rows = []
    for key, seeds in found.items():
        success = [{row["step"]: 100 * row["success"] for row in series if trained(row)} for series in seeds.values()]
        last = max((step for by_step in success for step in by_step), default=None)
        whole = [by_step for by_step in success if last in by_step]
        for step in sorted(set.intersection(*map(set, whole))) if whole else ():
            values = [by_step[step] for by_step in whole]
            low, high = interval(values)
            rows.append(key._asdict() | dict(
                source="here", seeds=len(values), step=step, share=share(step, key.offline, key.online),
                mean=np.mean(values), low=low, high=high, each=" ".join(f"{v:g}" for v in values)))
    shown = {(row["task"], row["method"].upper()) for row in rows}
    for row in read_csv(PAPER / "curves.csv"):
        if (row["task"], row["method"]) in shown:
            step = int(row["step"])
            rows.append(dict(
                task=row["task"], method=row["method"].lower(), data="official", setting="paper", offline=10**6,
                online=10**6, source="Koo et al. 2026, Figure 1", seeds=5, step=step, share=share(step, 10**6, 10**6),
                mean=float(row["success_percent"]), low="", high="", each=""))
    return rows


def draw(points: list[dict], path) -> None:
    """A panel for each task, data, setting and budget: never two of them in one."""
    from matplotlib.figure import Figure
    panels = grouped([p for p in points if p["source"] == "here"], "task", "data", "setting", "offline", "online")
    rows = -(-len(panels) // 4)                                  # of at most four panels, about as many in each
    columns = -(-len(panels) // rows)
    figure = Figure(figsize=(max(3.6 * columns, 5.4), 3.6 * rows), layout="constrained")
    for place, (condition, here) in enumerate(panels.items(), 1):
        paper = [point for point in points if point["source"] != "here" and point["task"] == condition[0]
                 and not condition[2].startswith("offline-rl")]          # Figure 1 has no pure offline RL
        axes = figure.add_subplot(rows, columns, place, ylim=(-3, 103), ylabel="success %")
        draw_panel(axes, *condition, grouped(here, "method"), grouped(paper, "method"))
    figure.supxlabel(CAPTION, fontsize=7)
    figure.savefig(path, dpi=110)


def draw_panel(axes, task, data, setting, offline, online, here: dict, paper: dict) -> None:
    """here, paper: {(method,): points}. Ours solid, the paper's dashed, on offline grey and online white."""
    for (method,), curve in here.items():
        color, seeds = f"C{list(config.METHODS).index(method)}", curve[0]["seeds"]
        x, mean, low, high = ([point[name] for point in curve] for name in ("share", "mean", "low", "high"))
        axes.plot(x, mean, "o-", color=color, ms=3, label=f"{method}, {seeds} seed{'s' * (seeds > 1)}")
        if seeds > 2:
            axes.fill_between(x, low, high, color=color, alpha=0.12, lw=0)
        theirs = paper.get((method,), ())
        axes.plot([point["share"] for point in theirs], [point["mean"] for point in theirs], "--", color=color, lw=1)
    axes.axvspan(0, 1, color="0.92", lw=0, zorder=0)
    paper_ends = ("", "\n(paper 1M)", "\n(paper 2M)") if paper else ("", "", "")
    ends = [short(steps) + theirs for steps, theirs in zip((0, offline, offline + online), paper_ends)]
    stages = 2 if online else 1
    axes.set(xlim=(0, stages), xticks=range(stages + 1), xticklabels=ends[: stages + 1])
    axes.set_title(f"{task}\n{setting}, {data} data, {short(offline)} + {short(online)}", fontsize=8)
    axes.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncol=3, frameon=False)
    axes.grid(alpha=0.3)
