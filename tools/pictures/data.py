"""The picture of a data set: python data.py --task T --picture."""
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import envs
from tools.official import files

# Where hand and object stand in an observation. Robomimic: envs.OBS_KEYS. OGBench: joints 12, hand 3, yaw 2, fingers 2,
# then the object, which puzzles lack.
PLACES = {"robomimic": dict(hand=0, object=9), "ogbench": dict(hand=12, object=19), "own": {}}


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
        for (what, at), color in zip(PLACES[task.suite].items(), ("#1f77b4", "#d62728")):
            if what == "hand" or not task.source.startswith("puzzle"):
                above.plot(rows[:, at], rows[:, at + 1], color=color, lw=0.7, alpha=0.6)
                side.plot(rows[:, at], rows[:, at + 2], color=color, lw=0.7, alpha=0.6)
    above.set(xlabel="x", ylabel="y", title="hand (blue) and object (red) from above", aspect="equal")
    side.set(xlabel="x", ylabel="z", title="from the side", aspect="equal")
    path = folder / f"data-{task.name}.png"
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
