"""Figure 1's layout: success over both stages, ours with intervals over the paper's.

Budgets differ a hundredfold from the paper's, so steps cannot share an axis: a point stands where it is on its own stage, from
0 to 1 offline and from 1 to 2 online, with the steps of both written at the ends.
"""
import numpy as np
from scipy import stats

import config
from tools.results import PAPER, read_csv, short, trained, write_csv


def interval(values) -> tuple[float, float] | None:
    """95 % for the mean over seeds (Student's t, so two seeds say little, as they should), within 0 and 100; None for one seed."""
    if len(values) < 2:
        return None
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return max(0.0, np.mean(values) - half), min(100.0, np.mean(values) + half)


def share(step: int, offline: int, online: int) -> float:
    """0 to 1 along stage 1, 1 to 2 along stage 2."""
    return step / max(offline, 1) if step <= offline else 1 + (step - offline) / online


def lines(found) -> list[dict]:
    """Figure 1's lines, ours and the paper's: one row a point. Seeds that lag behind the group's farthest are left out, so that
    no curve changes its seeds on the way."""
    rows = []
    for key, seeds in found.items():
        series = [{row["step"]: row for row in rows if trained(row)} for rows in seeds.values() if any(map(trained, rows))]
        far = max(map(max, series), default=0)
        whole = [s for s in series if max(s) == far]
        for step in sorted(set.intersection(*map(set, whole))) if whole else []:
            values = [100 * s[step]["success"] for s in whole]
            low, high = interval(values) or ("", "")
            rows.append(key._asdict() | dict(source="here", seeds=len(values), step=step, share=share(step, key.offline, key.online),
                                             mean=np.mean(values), low=low, high=high, each=" ".join(f"{v:g}" for v in values)))
    shown = {(row["task"], row["method"].upper()) for row in rows}
    for row in read_csv(PAPER / "curves.csv"):
        if (row["task"], row["method"]) in shown:
            rows.append(dict(task=row["task"], method=row["method"].lower(), data="official", setting="paper", offline=10**6, online=10**6,
                             source="Koo et al. 2026, Figure 1", seeds=5, step=int(row["step"]), share=int(row["step"]) / 1e6,
                             mean=float(row["success_percent"]), low="", high="", each=""))
    return rows


def draw(points, path) -> None:
    """A panel for each task, data, setting and budget: never two of them in one. Offline grey, online white; the paper's dashed."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    ours = [p for p in points if p["source"] == "here"]
    condition = lambda p: (p["task"], p["data"], p["setting"], p["offline"], p["online"])                       # noqa: E731
    panels = list(dict.fromkeys(map(condition, ours)))
    rows = -(-len(panels) // 4)                                  # of at most four panels, about as many in each
    columns = -(-len(panels) // rows)
    figure, grid = plt.subplots(rows, columns, squeeze=False, sharey=True, layout="constrained",
                                figsize=(max(3.6 * columns, 5.4), 3.6 * rows))
    for axes, (task, data, setting, offline, online) in zip(grid.flat, panels):
        here = [p for p in ours if condition(p) == (task, data, setting, offline, online)]
        comparable = not setting.startswith("offline-rl")        # Figure 1 has no pure offline RL
        methods = dict.fromkeys(p["method"] for p in here)
        for method in methods:
            color = f"C{list(config.METHODS).index(method)}"
            mine = [p for p in here if p["method"] == method]
            x, mean = [p["share"] for p in mine], [p["mean"] for p in mine]
            axes.plot(x, mean, "o-", color=color, ms=3, label=f"{method}, {mine[0]['seeds']} seed{'s' * (mine[0]['seeds'] > 1)}")
            if mine[0]["seeds"] > 2:
                axes.fill_between(x, [p["low"] for p in mine], [p["high"] for p in mine], color=color, alpha=0.12, lw=0)
            if mine[0]["seeds"] == 2 and len(methods) < 4:       # their interval would hide the panel; curves.csv has it
                axes.plot(x, [[float(v) for v in p["each"].split()] for p in mine], color=color, lw=0.6, alpha=0.5)
            paper = [p for p in points if p["source"] != "here" and (p["task"], p["method"]) == (task, method) and comparable]
            axes.plot([p["share"] for p in paper], [p["mean"] for p in paper], "--", color=color, lw=1, alpha=0.6)
        axes.axvspan(0, 1, color="0.92", lw=0, zorder=0)
        paper_ticks = ("\n(paper 1M)", "\n(paper 2M)") if comparable else ("", "")
        axes.set_xticks((0, 1, 2) if online else (0, 1), ["0", short(offline) + paper_ticks[0], short(offline + online) + paper_ticks[1]][: 3 if online else 2])
        axes.set_title(f"{task}\n{setting}, {data} data, {short(offline)} + {short(online)}", fontsize=8)
        axes.set(ylim=(-3, 103), xlim=(0, 2 if online else 1))
        axes.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncol=3, frameon=False)
        axes.grid(alpha=0.3)
    for axes in list(grid.flat)[len(panels):]:
        axes.remove()
    grid[0][0].set_ylabel("success %")
    figure.supxlabel("share of each stage (grey: offline, white: online). Solid: here, the mean; band: 95 % over three seeds or more; thin: each of two.\n"
                     "Dashed: the paper's, official data, 1M + 1M steps", fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write(found, out) -> None:
    points = lines(found)
    write_csv(out / "curves.csv", points)
    draw(points, out / "curves.png")
