"""A run is a folder: what was asked for, what happened, and what is needed to go on.

    runs/<task>/<method>/<data>/<preset>[,knob=value...]/seed<k>/
        config.json      every knob, versions, git commit, data source and checksum, machine
        train.csv        losses and diagnostics: step, stage, then by name
        eval.csv         step, stage, success, episodes, length, return, seconds
        offline.pt       the end of stage 1, which siblings may start from
        checkpoint.pt    the newest state of an unfinished or finished run; checkpoint.pt.previous the one before
        online.f32       the transitions seen online, which checkpoints count but do not contain
        curve.png        eval.csv, drawn

    policy = run.load("runs/lift/dfp/generated/quick/seed0"); policy.act(obs)          from Python
"""
import contextlib
import csv
import dataclasses
import fcntl
import hashlib
import io
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

FORMAT = 2           # of checkpoints; raised when an older one can no longer be read
PACKAGES = ("torch", "numpy", "gymnasium", "mujoco", "robosuite", "robomimic", "ogbench")
EVAL_COLUMNS = ("step", "stage", "success", "episodes", "length", "return", "seconds")


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


def _plain(value) -> str:
    return "+".join(f"{v:g}" for v in value) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else str(value)


# ------------------------------------------------------------------------------------------------- saving and loading
def save(path: Path, state: dict) -> None:
    """Atomic, with a checksum, and the file of before is kept as *.previous: at every moment one of the two is whole."""
    content = io.BytesIO()
    torch.save(state, content)
    body, temporary = content.getbuffer(), beside(path, ".tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save({"format": FORMAT, "sha256": hashlib.sha256(body).hexdigest(),
                        "state": torch.frombuffer(body, dtype=torch.uint8)}, file)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)                        # a full disk: give the space back
        raise
    if path.exists():
        os.replace(path, beside(path, ".previous"))
    os.replace(temporary, path)


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def read(path: Path) -> dict:
    """A saved state, on the CPU (whoever loads it moves it). Only tensors and plain data are read: a stranger's file cannot
    run code. UserError if it is broken."""
    try:
        outer = torch.load(path, map_location="cpu", weights_only=True)
        found = outer["format"]
    except Exception as error:
        raise UserError(f"{path} is not a readable checkpoint ({type(error).__name__}); delete it to start over") from None
    if found != FORMAT:
        raise UserError(f"{path} has checkpoint format {found}, this version reads format {FORMAT}: train again, or take the "
                        "version of this code that wrote it (config.json names its commit)")
    try:
        body = outer["state"].numpy().tobytes()
        if hashlib.sha256(body).hexdigest() != outer["sha256"]:
            raise ValueError("checksum")
        return torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} is not a readable checkpoint ({type(error).__name__}); delete it to start over") from None


def read_newest(path: Path) -> dict | None:
    """The newest state that is whole: `path`, or the one kept before it. None when there is neither; UserError when all
    there is is broken."""
    problem = None
    for candidate in (path, beside(path, ".previous")):
        if candidate.exists():
            try:
                state = read(candidate)
            except UserError as error:
                problem = error
                continue
            if problem:
                print(f"{problem}; going on from the one before it, at step {state['step']}")
            return state
    if problem:
        raise problem
    return None


def read_rows(path: Path) -> list[dict]:
    """A CSV file's rows by column name; none where there is no file. A last line that was cut short is left out."""
    if not path.exists():
        return []
    text = path.read_text(errors="replace")
    return list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))


def read_config(folder: Path) -> tuple[Config, dict]:
    """config.json -> (Config, the whole record)."""
    try:
        record = json.loads((Path(folder) / "config.json").read_text())
        knobs = {k: tuple(v) if isinstance(v, list) else v for k, v in record["config"].items()}
        return Config(**knobs), record
    except (OSError, ValueError, KeyError, TypeError) as error:
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
    policy = algorithm(dataclasses.replace(config, compile=False), task.obs_dim, task.action_dim, device)
    try:
        policy.load_state_dict(state["algorithm"])
    except (RuntimeError, KeyError, ValueError):
        raise UserError(f"the checkpoint in {folder} does not fit the networks that its config.json describes") from None
    policy.step, policy.stage = state["step"], state.get("stage", "offline")
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
        temporary = self.folder / "config.json.tmp"
        temporary.write_text(json.dumps(record, indent=1))
        os.replace(temporary, self.folder / "config.json")

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
        if len(body) != count * 4 or zlib.crc32(body) != saved["crc"]:
            raise UserError(f"{path} does not hold the {saved['rows']} transitions of the checkpoint; to start over, delete the folder")
        buffer.load_online(torch.frombuffer(bytearray(body), dtype=torch.float32) if body else torch.empty(0), saved["cuts"])
        self.stored, self.crc = saved["rows"], saved["crc"]

    # ---- CSV files
    def rows(self, name: str) -> list[dict]:
        return read_rows(self.folder / name)

    def append(self, name: str, row: dict) -> None:
        """One row; columns that appear later (stage 2 has more losses) are added to the header."""
        path = self.folder / name
        header = next(csv.reader(open(path, newline="")), []) if path.exists() else []
        if not set(row) <= set(header):
            self.write_rows(name, self.rows(name), [*header, *(k for k in row if k not in header)])
            header = next(csv.reader(open(path, newline="")))
        with open(path, "a", newline="") as file:
            csv.DictWriter(file, header).writerow(row)
        if self.tracker:
            self.tracker({f"{name[:-4]}/{k}": v for k, v in row.items() if isinstance(v, float)}, int(row["step"]))

    def write_rows(self, name: str, rows: list[dict], header=None) -> None:
        temporary = self.folder / (name + ".tmp")
        with open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, header or list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, self.folder / name)

    def cut_rows_after(self, step: int) -> None:
        """A resumed run repeats what followed its checkpoint: forget those rows."""
        for name in ("train.csv", "eval.csv"):
            rows = self.rows(name)
            if rows:
                self.write_rows(name, [r for r in rows if int(r["step"]) <= step], list(rows[0]))

    def take_rows(self, sibling: Path, last: int) -> None:
        """Stage 1's rows of the sibling it was taken from: the curve of a run begins at its step 0. The last evaluation
        only if it had as many episodes as this run's would."""
        for name in ("train.csv", "eval.csv"):
            rows = [r for r in read_rows(sibling / name) if r["stage"] == "offline"
                    and (int(r["step"]) < last or int(r.get("episodes", self.config.final_episodes)) == self.config.final_episodes)]
            if rows:
                self.write_rows(name, rows)

    def draw(self) -> None:
        draw_curve(self.folder, self.folder / "curve.png")

    # ---- stage 1 of a sibling
    def find_offline(self) -> Path | None:
        """offline.pt of this run, or of a sibling (another method, preset or stage-2 knob) whose stage 1 is the same."""
        siblings = sorted(Path(self.config.out).glob(f"{self.config.task}/*/*/*/seed{self.config.seed}/offline.pt"))
        return next((path for path in [self.offline, *siblings] if self.is_my_offline(path)), None)

    def is_my_offline(self, path: Path) -> bool:
        try:
            return path.exists() and read(path).get("identity") == self.identity()
        except UserError:                                        # broken or of another format: as if it were not there
            return False

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
