"""Where a run's folder lies: its path tells what was asked for. run.py tells what is in it. And which runs may share a
stage 1."""
import dataclasses
from pathlib import Path

from config import METHODS, Config, build


def folder_of(config: Config, given: set[str], data_kind: str) -> Path:
    """The run's folder; knobs given by hand are part of its name, so that different settings never share one."""
    named = {f.name for f in dataclasses.fields(config) if f.metadata["group"] != "run"} - {"task", "method", "seed"}
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


def stage1_knobs(config: Config) -> dict:
    """What a stage 1 depends on, for reuse by siblings: not the method's name, but its family and its knobs."""
    also = ("num_candidates", "top_k", "topk_weight", "ema_rate") if config.topk_offline else ()
    return {"family": METHODS[config.method][0]} | {
        f.name: config.plain()[f.name] for f in dataclasses.fields(config)
        if f.metadata["group"] == "both" or f.name in also}
