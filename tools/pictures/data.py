"""The picture of a data set: python data.py --task T --picture."""
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import envs
from tools.official import files

COLORS = dict(hand="#1f77b4", object="#d62728")


def places(task: envs.Task) -> dict[str, int]:
    """Where hand and object stand in an observation: {"hand": index of x, "object": ...}."""
    if task.suite == "robomimic":                # hand 3 + 4, fingers 2; can and nut first as seen from the hand, 3 + 4
        return dict(hand=0, object=9 if task.name == "lift" else 16)
    if task.suite == "ogbench":                  # joints 12, hand 3, yaw 2, fingers 2; puzzles have no object
        return dict(hand=12) if task.source.startswith("puzzle") else dict(hand=12, object=19)
    return {}


def draw(task: envs.Task, dataset: dict, facts: dict, folder: Path, episodes: int = 30) -> Path:
    """Lengths of all episodes; paths of the hand and of the first object in some, seen from above and from the side."""
    lengths = files.lengths(dataset)
    ends = np.cumsum(lengths)
    observations = dataset["records"].numpy() if "records" in dataset else dataset["observations"]
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    histogram, above, side = figure.subplots(1, 3)
    histogram.hist(lengths, bins=40, color="0.5")
    histogram.set(xlabel="steps", ylabel="episodes", title=f"{task.name}, {facts['kind']}: {len(lengths):,} episodes")
    for i in files.spaced(np.arange(len(lengths)), episodes):
        rows = observations[ends[i] - lengths[i] : ends[i]]
        for what, at in places(task).items():
            above.plot(rows[:, at], rows[:, at + 1], color=COLORS[what], lw=0.7, alpha=0.6)
            side.plot(rows[:, at], rows[:, at + 2], color=COLORS[what], lw=0.7, alpha=0.6)
    above.set(xlabel="x", ylabel="y", title="hand (blue) and object (red) from above", aspect="equal")
    side.set(xlabel="x", ylabel="z", title="from the side", aspect="equal")
    path = folder / f"data-{task.name}.png"
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
