"""Where a run stands: its folder, what is saved there, and how it is brought back exactly. A refusal is one line, and
changes no file."""
import contextlib
import dataclasses
import math
import os
import zlib
from pathlib import Path

import torch

from buffer import FIELDS
from config import METHODS, Config, UserError, build, from_plain
from run import Run
from tools.checks import MAY_DIFFER, STAGE_2, option_name
from tools.training.files import cut_rows_after, load_networks, read_newest, save_state, take_rows, tensors


# --------------------------------------------------------------------------------------------------- a run's folder
def folder_of(config: Config, given: set[str], data_kind: str) -> Path:
    """The run's folder; knobs given by hand are part of its name, so that different settings never share one."""
    named = {f.name for f in dataclasses.fields(config)} - {*MAY_DIFFER, "task", "method", "seed"}
    usual = build({k: getattr(config, k) for k in ("task", "method", "preset")})
    changed = [k for k in sorted(given & named) if getattr(config, k) != getattr(usual, k)]
    setting = ",".join([config.preset, *(f"{k}={as_text(getattr(config, k))}" for k in changed)])
    return Path(config.out) / config.task / config.method / data_kind / setting / f"seed{config.seed}"


def as_text(value) -> str:
    if isinstance(value, tuple):
        return "+".join(f"{v:g}" for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def kind_begun(config: Config, given: set[str], kinds=("official", "generated")) -> str | None:
    """The first of these kinds of data that a run of this config has begun with."""
    return next((kind for kind in kinds if (folder_of(config, given, kind) / "config.json").exists()), None)


# ------------------------------------------------------------------------------------------------- its newest state
def save(run: Run, world=None) -> None:
    """checkpoint.pt and online.f32. world: the Collector, in stage 2."""
    check_finite(run)                                            # a broken state must not replace a good one
    save_state(run.folder / "checkpoint.pt", dict(
        algorithm=run.algo.state_dict(), online=save_online(run), step=run.step, stage=run.stage,
        world=world.state_dict() if world else run.world_state, config=run.config.plain(), data=run.data["sha256"],
        device=run.buffer.device.type, batches=run.batch_rng.get_state(), acting=run.acting_rng.get_state()))


def restore(run: Run) -> None:
    """Brings an unfinished run back from checkpoint.pt, or refuses to start over in its folder."""
    path = run.folder / "checkpoint.pt"
    state = read_newest(path, set_aside=run.config.resume)
    if state is None:
        if not offline_state(run, run.folder / "offline.pt"):
            cut_rows_after(run.folder, 0)    # a run that died before its first checkpoint starts over
            if run.config.resume:
                print(f"--resume: nothing is saved in {run.folder}, so a new run begins")
        return
    try:
        if state["stage"] == "offline" and offline_state(run, run.folder / "offline.pt"):
            return                           # stage 1 is complete: stage 2 starts from offline.pt, no --resume needed
        refuse_another(run, state)
        load_networks(run.algo, state, run.folder)
        load_online(run, state["online"])
        run.step, run.stage, run.world_state = state["step"], state["stage"], state["world"]
        run.acting_rng.set_state(state["acting"])
        if state["device"] == run.buffer.device.type:            # a generator's state only fits the device it came from
            run.batch_rng.set_state(state["batches"])
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is no checkpoint of this version ({type(error).__name__} {error}); "
                        "another --out starts over") from None
    cut_rows_after(run.folder, run.step)


def refuse_another(run: Run, state: dict) -> None:
    """UserError unless this run may go on from that state: the same knobs, the same data, no fewer steps."""
    c, before = run.config, from_plain(state["config"]).plain()
    if state["data"] != run.data["sha256"]:
        raise UserError(f"{run.folder} holds a run on other data than {run.data['path']} is now: choose another --out")
    if state["stage"] == "online" and before["offline_steps"] != c.offline_steps:
        raise UserError(f"--offline-steps: stage 1 of {run.folder} is over after {before['offline_steps']} steps; for "
                        "another number choose another --out")
    if not c.resume:
        raise UserError(f"{run.folder} already holds a run: add --resume to continue it, or choose another --out")
    for f in dataclasses.fields(c):
        mine, its = c.plain()[f.name], before[f.name]
        if f.name not in MAY_DIFFER and f.name in state["config"] and mine != its:     # an older run lacks some
            raise UserError(f"--resume: the run in {run.folder} has {option_name(f.name)} {its}, not {mine}")
    end = c.offline_steps + (c.online_steps if state["stage"] == "online" else 0)
    if state["step"] > end:
        raise UserError(f"--resume: {run.folder} is at step {state['step']} already, beyond the {end} asked for")


def save_online(run: Run) -> dict:
    """Appends to online.f32 the transitions that it lacks -> what a checkpoint must know to find its own part again.
    Rows that follow a checkpoint do it no harm."""
    path, (stored, checksum) = run.folder / "online.f32", run.stored
    rows = online_rows(run.buffer, stored)
    body = rows.numpy().tobytes()
    with open(path, "r+b" if path.exists() else "wb") as file:
        file.truncate(stored * rows.shape[1] * 4)                # what a killed process wrote after its last checkpoint
        file.seek(0, os.SEEK_END)
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    run.stored = stored + len(rows), zlib.crc32(body, checksum)
    return {"rows": run.stored[0], "crc": run.stored[1], "cuts": list(run.buffer.cuts)}


def load_online(run: Run, saved: dict) -> None:
    """A checkpoint's transitions, into the buffer. UserError when the file lacks them or has other ones."""
    path, size = run.folder / "online.f32", saved["rows"] * online_rows(run.buffer, 0).shape[1] * 4
    body = b""
    if size:
        with contextlib.suppress(OSError), open(path, "rb") as file:
            body = file.read(size)
    if len(body) != size or zlib.crc32(body) != saved["crc"]:
        raise UserError(f"{path} does not hold the {saved['rows']} transitions that checkpoint.pt beside it counts; "
                        "another --out starts over")
    rows = torch.frombuffer(bytearray(body), dtype=torch.float32) if size else torch.empty(0)
    fill_online(run.buffer, rows, saved["cuts"])
    run.stored = saved["rows"], saved["crc"]


def online_rows(buffer, first: int) -> torch.Tensor:
    """The online transitions from number `first` on, all fields side by side: [n, 2 O + A + 3], on the CPU."""
    fields = [buffer.online(name)[first:buffer.num_online] for name in FIELDS]
    return torch.cat([f if f.ndim == 2 else f[:, None] for f in fields], dim=1).cpu()


def fill_online(buffer, rows: torch.Tensor, cuts: list[int]) -> None:
    """What online_rows(buffer, 0) gave, flat or not, into an empty online part. UserError where there is no room."""
    arrays = [buffer.online(name) for name in FIELDS]
    widths = [array.shape[1:].numel() for array in arrays]
    rows = rows.reshape(-1, sum(widths))
    if len(rows) > len(arrays[0]):
        raise UserError(f"the run already holds {len(rows)} online transitions, more than --online-steps allows")
    for array, part in zip(arrays, rows.split(widths, dim=1)):
        array[: len(rows)] = part.reshape(len(rows), *array.shape[1:])
    buffer.size, buffer.cuts = buffer.offline_size + len(rows), list(cuts)
    buffer.online("terminals")[buffer.cuts] = 1


def save_offline(run: Run) -> None:
    """offline.pt: where stage 2 starts, this run's and that of siblings."""
    save_state(run.folder / "offline.pt", dict(algorithm=run.algo.state_dict(), step=run.step, identity=identity(run)))


def stage1_knobs(config: Config) -> dict:
    """What a stage 1 depends on, for reuse by siblings: not the method's name, but its family and its knobs."""
    also = ("num_candidates", "top_k", "topk_weight", "ema_rate") if config.topk_offline else ()
    return {"family": METHODS[config.method].family} | {
        f.name: config.plain()[f.name] for f in dataclasses.fields(config)
        if f.name not in MAY_DIFFER + STAGE_2 or f.name in also}


def identity(run: Run) -> dict:
    """What stage 1 depends on. A longer or shorter stage 1 is another one."""
    return stage1_knobs(run.config) | {"offline_steps": run.config.offline_steps, "data": run.data["sha256"]}


def offline_state(run: Run, path: Path) -> dict | None:
    """What an offline.pt holds; None where it is missing, broken, or of another stage 1."""
    try:
        state = read_newest(path)
    except UserError as error:
        print(f"{path} is left out: {error}")
        return None
    # A knob that is newer than the file had its default there.
    of_file = stage1_knobs(Config()) | state.get("identity", {}) if state else {}
    return state if of_file == identity(run) else None


def refuse_complete(run: Run) -> None:
    """UserError where stage 1 is over already."""
    if run.stage == "online" or offline_state(run, run.folder / "offline.pt"):
        raise UserError(f"stage 1 is already complete in {run.folder}; python train_online.py goes on from it")


def take_offline(run: Run) -> bool:
    """Loads stage 1 from this folder's offline.pt or a sibling's -> whether there was one."""
    c, own = run.config, run.folder / "offline.pt"
    siblings = sorted(Path(c.out).glob(f"{c.task}/*/*/*/seed{c.seed}/offline.pt"))
    for path in [own, *siblings]:
        if state := offline_state(run, path):
            load_networks(run.algo, state, path.parent)
            run.step = state["step"]
            cut_rows_after(run.folder, run.step)
            if path != own:
                print(f"stage 1 taken from {path}")
                take_rows(path.parent, run.folder, run.step, c.final_episodes)
            return True
    return False


def check_finite(run: Run, info: dict | None = None) -> dict[str, float]:
    """The newest losses, read back. UserError where one, a weight or one of Adam's moments is not finite: an infinite
    moment would freeze its weight without a sound."""
    row = dict(zip(info, torch.stack(list(info.values())).tolist())) if info else {}
    state = [(name, w) for name, w in tensors(run.algo.state_dict()) if w.is_floating_point()]
    broken = [name for name, value in row.items() if not math.isfinite(value)]
    norms = torch._foreach_norm([w for _, w in state])           # a GPU stops for each question: one for all
    if not broken and not torch.stack(norms).sum().isfinite():
        broken = [name for name, w in state if not w.isfinite().all()]
    if broken:
        raise UserError(f"{', '.join(broken[:3])} not finite")
    return row
