"""Where a run stands: saved, brought back after an interruption, and looked at before either.

t is what train_offline.prepare() made. A state is checked whole before any of it is loaded or anything is written, so that a
refusal, one line, changes nothing. The files themselves: tools/checkpoints.py.
"""
import dataclasses
import math

import torch
from torch import Tensor

import config as config_module
import run as run_module
from config import UserError
from tools.checkpoints import fit, like, like_generator, natural, same, tensors


def offline_state(t, path) -> dict | None:
    """The end of stage 1 in an offline.pt, ready to load; None where it is missing, broken (which is said), or of another
    stage 1: other knobs, other data, a longer or shorter one."""
    try:
        state = run_module.read_newest(path)
        if state is None or not same(state.get("identity"), t.run.identity()):
            return None
        like(state, dict(algorithm=dict, step=lambda step: step == t.config.offline_steps, identity=dict))
        return state | {"algorithm": fit(state["algorithm"], t.algo, trained=state["step"] > 0)}
    except (UserError, ValueError) as error:
        print(f"{path} is left out: {error}")
        return None


def restore(t) -> None:
    """Brings an unfinished run back from checkpoint.pt (--resume), or refuses to start over in its folder."""
    state = run_module.read_newest(t.run.checkpoint, set_aside=True)
    if state is None:
        if not offline_state(t, t.run.offline):
            t.run.cut_rows_after(0)          # a run that died before its first checkpoint starts over
        return
    try:                                     # everything is looked at before anything is loaded or written
        like(state, dict(algorithm=dict, online=dict(rows=natural, crc=natural, cuts=[natural]), step=natural, episode=natural,
                         stage=lambda stage: stage in ("offline", "online"), collecting=lambda it: it is None or isinstance(it, dict),
                         config=dict, data=str, device=lambda name: name in ("cpu", "cuda"), batches=Tensor, acting=Tensor))
        before = config_module.from_plain(state["config"]).plain()
        stage2 = state["step"] - before["offline_steps"]         # each of its steps has stored one transition
        if state["online"]["rows"] != (stage2 if state["stage"] == "online" else 0) or state["stage"] == "offline" and stage2 > 0:
            raise ValueError("its step, stage and transitions do not agree")
    except (UserError, ValueError) as error:
        raise not_ours(t, error) from None
    if state["stage"] == "offline" and offline_state(t, t.run.offline):
        return                               # stage 1 is complete: stage 2 starts from offline.pt, no --resume needed
    if not t.config.resume:
        raise UserError(f"{t.run.folder} already holds a run: add --resume to continue it, or delete the folder")
    if state["stage"] == "online" and before["offline_steps"] != t.config.offline_steps:
        raise UserError(f"--offline-steps: stage 1 of {t.run.folder} is over after {before['offline_steps']} steps")
    for f in dataclasses.fields(t.config):
        mine = t.config.plain()[f.name]                  # a run older than the knob has nothing to disagree with
        if f.metadata["group"] != "run" and f.name in state["config"] and mine != before[f.name]:
            raise UserError(f"--resume: the run in {t.run.folder} has --{f.name.replace('_', '-')} {before[f.name]}, not {mine}")
    end = t.config.offline_steps + (t.config.online_steps if state["stage"] == "online" else 0)
    if state["step"] > end:
        raise UserError(f"--resume: {t.run.folder} is at step {state['step']} already, beyond the {end} asked for")
    if state["data"] != t.run.source["sha256"]:
        raise UserError(f"--resume: the data have changed since {t.run.folder} was started")
    try:
        algorithm = fit(state["algorithm"], t.algo, trained=state["step"] > (0 if t.config.offline_steps else t.config.warmup))
        check_online(t, state)
        like_generator(state["acting"], t.acting, "acting")
        if state["device"] == t.buffer.device.type:      # a generator's state only fits the device it came from
            like_generator(state["batches"], t.batches, "batches")
    except ValueError as error:
        raise not_ours(t, error) from None
    t.run.load_online(t.buffer, state["online"])
    t.run.cut_rows_after(state["step"])
    t.algo.load_state_dict(algorithm)
    t.step, t.episode, t.stage, t.collecting = state["step"], state["episode"], state["stage"], state["collecting"]
    t.acting.set_state(state["acting"])
    if state["device"] == t.buffer.device.type:
        t.batches.set_state(state["batches"])


def not_ours(t, error) -> UserError:
    return UserError(f"{t.run.checkpoint} is whole, but no checkpoint of this version of the code: {error}; delete it to start over")


def check_online(t, state) -> None:
    """ValueError unless what a checkpoint says of stage 2 agrees with itself."""
    online, stage2 = state["online"], state["stage"] == "online"
    maybe = lambda first: first is None or natural(first)        # noqa: E731  None: no episode has begun
    like(state["collecting"], dict(first=maybe, chunk=[torch.zeros(t.algo.action_dim)]) if stage2 else None, "collecting")
    first, chunk = (state["collecting"][name] for name in ("first", "chunk")) if stage2 else (None, [])
    agree = dict(cuts=online["cuts"] == sorted(online["cuts"]) and all(row < online["rows"] for row in online["cuts"]),
                 first=first is None or 0 <= first - t.buffer.offline_size <= online["rows"],
                 chunk=len(chunk) <= (0 if first is None else t.config.chunk), episode=state["episode"] >= (first is not None),
                 improving=stage2 or state["algorithm"]["improving"] == t.algo.improving)
    for name, agrees in agree.items():
        if not agrees:
            raise ValueError(f"{name} does not agree with step {state['step']} of stage {state['stage']}")


def save(t) -> None:
    check_finite(t)                          # a broken state must not replace a good one
    run_module.save(t.run.checkpoint, dict(
        algorithm=t.algo.state_dict(), online=t.run.save_online(t.buffer), step=t.step, episode=t.episode, stage=t.stage,
        collecting=t.collector.state_dict() if t.collector else t.collecting, config=t.config.plain(),
        data=t.run.source["sha256"], device=t.buffer.device.type, batches=t.batches.get_state(), acting=t.acting.get_state()))


def last_good(t) -> str:
    return f"the last good state is {t.run.checkpoint}" if t.run.checkpoint.exists() else ""


def check_finite(t) -> dict[str, float]:
    """The newest losses and diagnostics, read back from the device. UserError where one is not finite, or a number of the
    algorithm's state: weights, and Adam's moments, where an infinite one freezes its weight without a sound. The batch is kept."""
    row = dict(zip(t.info, torch.stack(list(t.info.values())).tolist())) if t.info else {}
    state = t.algo.state_dict()
    norms = torch._foreach_norm([w for _, w in tensors(state) if w.is_floating_point()])     # a GPU stops for each question: one for all
    broken = [k for k, v in row.items() if not math.isfinite(v)]
    if not broken and not torch.stack(norms).sum().isfinite():
        broken = [k for k, w in tensors(state) if not w.isfinite().all()]
    if broken:
        kept = last_good(t) or "nothing was saved before"
        try:
            run_module.save(t.run.folder / "broken.pt", dict(step=t.step, batch=None if t.starts is None else t.buffer.chunks(t.starts), algorithm=state))
            kept = f"batch and networks are in {t.run.folder}/broken.pt, {kept}"
        except OSError as error:
            kept = f"batch and networks could not be kept ({error.strerror}), {kept}"
        raise UserError(f"step {t.step}: {', '.join(broken[:3])} not finite; {kept}")
    return row
