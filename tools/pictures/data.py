"""The picture of a data set: python data.py --task T --picture."""
from pathlib import Path

import numpy as np

import envs
from tools.official import check

# Where hand and object stand in an observation. Robomimic: envs.OBS_KEYS. OGBench: joints 12, hand 3, yaw 2, fingers 2,
# then the object, which puzzles lack.
PLACES = {"robomimic": (0, 9), "ogbench": (12, 19), "own": (None, None)}
BLUE, RED = "#1f77b4", "#d62728"


def draw(task: envs.Task, dataset: dict, source: dict, folder: Path, episodes: int = 30) -> Path:
    """Lengths of all episodes; paths of the hand and of the first object in some, seen from above and from the side."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    lengths, _, _ = check.columns(dataset)
    observations = dataset["records"].numpy() if "records" in dataset else dataset["observations"]
    hand, thing = PLACES[task.suite]
    if task.source.startswith("puzzle"):
        thing = None

    figure, (histogram, above, side) = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    histogram.hist(lengths, bins=40, color="0.5")
    title = f"{task.name}, {source['kind']}: {len(lengths):,} episodes"
    histogram.set(xlabel="steps", ylabel="episodes", title=title)
    ends = np.cumsum(lengths)
    for i in np.linspace(0, len(lengths) - 1, min(episodes, len(lengths))).astype(int):
        rows = observations[ends[i] - lengths[i] : ends[i]]
        for start, color, label in ((hand, BLUE, "hand"), (thing, RED, "object")):
            if start is not None:
                line = dict(color=color, lw=0.7, alpha=0.6, label=label if i == 0 else None)
                above.plot(rows[:, start], rows[:, start + 1], **line)
                side.plot(rows[:, start], rows[:, start + 2], **line)
    above.set(xlabel="x", ylabel="y", title="from above", aspect="equal")
    side.set(xlabel="x", ylabel="z", title="from the side", aspect="equal")
    if hand is not None:
        above.legend(fontsize=8)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"data-{task.name}.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
