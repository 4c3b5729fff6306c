"""A run is a folder: what was asked for, what happened, and what is needed to go on.

    runs/<task>/<method>/<data>/<preset>[,knob=value...]/seed<k>/
        config.json      every knob, versions, git commit, data source and checksum, machine
        train.csv        losses and diagnostics: step, stage, then by name
        eval.csv         step, stage, success, episodes, length, return, seconds; evaluate.csv: the same by evaluate.py
        offline.pt       the end of stage 1, which siblings may start from
        checkpoint.pt    the newest state of an unfinished or finished run; checkpoint.pt.previous the one before
        online.f32       the transitions seen online, which checkpoints count but do not contain
        curve.png        eval.csv, drawn
        broken.pt        batch and networks where a number was not finite; *.broken: checkpoints that could not be read

    policy = run.load("runs/lift/dfp/generated/quick/seed0"); policy.act(obs)          from Python
"""
import contextlib
import dataclasses
import fcntl
import json
import os
import platform
import subprocess
import sys
import time
import zlib
from importlib import metadata
from pathlib import Path

import torch

import config as config_module
from config import Config, UserError
from tools.checkpoints import FORMAT, fit, read, read_newest, same, save, write  # noqa: F401
from tools.rows import append_row, read_rows, write_rows

PACKAGES = ("torch", "numpy", "gymnasium", "mujoco", "robosuite", "robomimic", "ogbench")


def algorithm(config: Config, obs_dim: int, action_dim: int, device):
    """The algorithm object of config.method. Everything that follows never asks which one it holds."""
    from baselines.flow import BFN, FQL
    from baselines.meanflow import MVP, MVPTopK
    from dfp import DFP
    classes = {"bfn": BFN, "qc-bfn": BFN, "fql": FQL, "qc-fql": FQL, "mvp": MVP, "mvp-topk": MVPTopK,
               "dfp": DFP, "dfp-no-topk": DFP}
    return classes[config.method](obs_dim, action_dim, config, device)


def folder_of(config: Config, given: set[str], data_kind: str) -> Path:
    """The run's folder; knobs given by hand are part of its name, so that different settings never share one."""
    named = {f.name for f in dataclasses.fields(config) if f.metadata["group"] != "run"} - {"task", "method", "seed"}
    usual = config_module.build({k: getattr(config, k) for k in ("task", "method", "preset")})
    extra = [f"{k}={_plain(getattr(config, k))}" for k in sorted(given & named) if getattr(config, k) != getattr(usual, k)]
    return Path(config.out) / config.task / config.method / data_kind / ",".join([config.preset, *extra]) / f"seed{config.seed}"


def kind_begun(config: Config, given: set[str], kinds=("official", "generated")) -> str | None:
    """The first of these kinds of data that a run of this config has begun with."""
    return next((kind for kind in kinds if (folder_of(config, given, kind) / "config.json").exists()), None)


def _plain(value) -> str:
    return "+".join(f"{v:g}" for v in value) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else str(value)


# ------------------------------------------------------------------------------------------------- reading
def read_config(folder: Path) -> tuple[Config, dict]:
    """config.json -> (Config, the whole record)."""
    def refuse(word):
        raise ValueError(word)
    try:
        record = json.loads((Path(folder) / "config.json").read_text(), parse_constant=refuse)
        if not all(isinstance(record["data"][k], str) for k in ("kind", "sha256")):
            raise TypeError
        return config_module.from_plain(record["config"]), record
    except UserError as error:
        raise UserError(f"{folder}/config.json: {error}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{folder} is not a run's folder: its config.json cannot be read ({type(error).__name__})") from None


def load(folder: str | Path, device: str = "cpu"):
    """A saved policy, ready to act: load(RUN).act(obs [n, O]) -> chunks [n, H, A]. UserError when there is none."""
    import envs
    folder = Path(folder)
    config, _ = read_config(folder)
    state = read_newest(folder / "checkpoint.pt") or read_newest(folder / "offline.pt")
    if state is None:
        raise UserError(f"{folder} holds no checkpoint yet")
    task = envs.task(config.task)
    try:
        # checkpoint.pt has the run's knobs, offline.pt those that stage 1 reads
        said, stage = (state["config"], state["stage"]) if "config" in state else (state["identity"], "offline")
        for f in dataclasses.fields(config):
            if f.metadata["group"] != "run" and f.name in said and not same(said[f.name], config.plain()[f.name]):
                raise ValueError(f.name)
        if stage not in ("offline", "online"):
            raise ValueError("stage")
        stored = sum(w.untyped_storage().nbytes() for w in state["algorithm"]["critic"].values())
        if 4 * config.ensemble * config.hidden * (config.hidden * (config.layers - 1) + config.chunk) > stored:
            raise ValueError("size")                             # before networks are made that this machine cannot hold
        policy = algorithm(dataclasses.replace(config, compile=False), task.obs_dim, task.action_dim, device)
        policy.load_state_dict(fit(state["algorithm"], policy))
        policy.step, policy.stage = state["step"], stage
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"the checkpoint in {folder} does not fit the networks that its config.json describes ({error})") from None
    return policy


# ------------------------------------------------------------------------------------------------- the folder
class Run:
    """One run's folder while it is being written. A second process in the same folder is refused."""

    def __init__(self, folder: Path, config: Config, source: dict):
        self.folder, self.config, self.source = folder, config, source
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.lock = open(folder / "lock", "w")
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror}; choose another --out") from None
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another process is running in {folder}") from None
        self.checkpoint, self.offline = folder / "checkpoint.pt", folder / "offline.pt"
        self.stored, self.crc = 0, 0                             # online transitions on disk, and their checksum
        self.started = time.time()
        self.tracker = _tracker(config.log, folder)

    def write_config(self) -> None:
        record = dict(config=dataclasses.asdict(self.config), data=self.source, command=sys.argv,
                      versions={d.name: d.version for d in metadata.distributions() if d.name in PACKAGES}
                      | {"python": platform.python_version()},
                      git=_git_commit(), machine=dict(system=platform.platform(), cores=os.cpu_count(),
                                                      gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None))
        write(self.folder / "config.json", json.dumps(record, indent=1).encode())

    # ---- online transitions
    def save_online(self, buffer) -> dict:
        """Appends to online.f32 the transitions that it lacks -> what a checkpoint needs to find its own part of the file
        again. Nothing is written twice, and rows that follow a checkpoint do it no harm."""
        path = self.folder / "online.f32"
        rows = buffer.online_rows(self.stored)
        with open(path, "r+b" if path.exists() else "wb") as file:
            file.truncate(self.stored * rows.shape[1] * 4)       # what a killed process wrote after its last checkpoint
            file.seek(0, os.SEEK_END)
            file.write(body := rows.numpy().tobytes())
            file.flush()
            os.fsync(file.fileno())
        self.stored, self.crc = self.stored + len(rows), zlib.crc32(body, self.crc)
        return {"rows": self.stored, "crc": self.crc, "cuts": list(buffer.cuts)}

    def load_online(self, buffer, saved: dict) -> None:
        """The transitions of a checkpoint, into the buffer. UserError when the file lacks them or has other ones."""
        path, count = self.folder / "online.f32", saved["rows"] * buffer.online_rows(0).shape[1]
        body = b""
        if count:
            with contextlib.suppress(OSError), open(path, "rb") as file:
                body = file.read(count * 4)
        whole = len(body) == count * 4 and zlib.crc32(body) == saved["crc"]
        rows = torch.frombuffer(bytearray(body), dtype=torch.float32) if whole and count else torch.empty(0)
        if not whole or not rows.isfinite().all():
            raise UserError(f"{path} does not hold the {saved['rows']} transitions of {self.checkpoint}; delete both to start stage 2 over")
        buffer.load_online(rows, saved["cuts"])
        self.stored, self.crc = saved["rows"], saved["crc"]

    # ---- CSV files
    def rows(self, name: str) -> list[dict]:
        return read_rows(self.folder / name)

    def append(self, name: str, row: dict) -> None:
        append_row(self.folder / name, row)
        if self.tracker:
            self.tracker({f"{name[:-4]}/{k}": v for k, v in row.items() if isinstance(v, float)}, int(row["step"]))

    def cut_rows_after(self, step: int) -> None:
        """A resumed run repeats what followed its checkpoint: forget those rows. Both tables are read before one is written."""
        for name, rows in [(name, self.rows(name)) for name in ("train.csv", "eval.csv")]:
            if rows:
                write_rows(self.folder / name, [r for r in rows if int(r["step"]) <= step], rows[0])

    def take_rows(self, sibling: Path, last: int) -> None:
        """Stage 1's rows of the sibling it was taken from: the curve of a run begins at its step 0. The last evaluation
        only if it had as many episodes as this run's would."""
        for name in ("train.csv", "eval.csv"):
            rows = [r for r in read_rows(sibling / name) if r["stage"] == "offline"
                    and (int(r["step"]) < last or int(r.get("episodes", self.config.final_episodes)) == self.config.final_episodes)]
            if rows:
                write_rows(self.folder / name, rows, rows[0])

    def draw(self) -> None:
        draw_curve(self.folder, self.folder / "curve.png")

    def identity(self) -> dict:
        """What stage 1 depends on. A longer or shorter stage 1 is another one."""
        return self.config.stage1_knobs() | {"offline_steps": self.config.offline_steps, "data": self.source["sha256"]}


def draw_curve(folder: Path, path: Path) -> None:
    """eval.csv as a picture: stage 1 on grey, stage 2 on white."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    config, record = read_config(folder)
    rows = read_rows(Path(folder) / "eval.csv")
    steps, success = [int(r["step"]) for r in rows], [100 * float(r["success"]) for r in rows]
    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    axes.axvspan(0, config.offline_steps, color="0.92", lw=0)
    axes.plot(steps, success, "o-", ms=3, color="#1f77b4")
    axes.set(xlabel="step (grey: offline, white: online)", ylabel="success %", ylim=(-3, 103),
             title=f"{config.task} · {config.method} · {config.preset} · seed {config.seed} · {record['data']['kind']} data")
    axes.title.set_fontsize(9)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _git_commit() -> str:
    try:
        return subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True,
                              cwd=Path(__file__).parent).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _tracker(kind: str, folder: Path):
    """A function (values by name, step) for --log, or None. The packages are imported only when asked for."""
    try:
        if kind == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter
            writer = SummaryWriter(str(folder))
            return lambda values, step: [writer.add_scalar(k, v, step) for k, v in values.items()]
        if kind == "wandb":
            import wandb
            wandb.init(project="drifting-field-policy", name=str(folder), dir=str(folder))
            return lambda values, step: wandb.log(values, step=step)
    except ImportError:
        raise UserError(f"--log {kind} needs the package {kind}: pip install {kind}") from None
    return None
