"""One run's curve: its eval.csv as a picture, stage 1 on grey and stage 2 on white."""
from pathlib import Path

from matplotlib.figure import Figure

from tools.training.files import read_config, read_rows


def draw_curve(folder: Path, path: Path) -> None:
    config, record = read_config(folder)
    rows = read_rows(Path(folder) / "eval.csv")
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(0, config.offline_steps, color="0.92", lw=0)
    axes.plot([int(row["step"]) for row in rows], [100 * float(row["success"]) for row in rows], "o-", ms=3)
    about = f"{config.task} · {config.method} · {config.preset} · seed {config.seed} · {record['data']['kind']} data"
    axes.set(xlabel="step (grey: offline, white: online)", ylabel="success %", ylim=(-3, 103))
    axes.set_title(about, fontsize=9, parse_math=False)          # names may have a $
    figure.savefig(path, dpi=120)
