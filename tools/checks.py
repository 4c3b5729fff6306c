"""What knobs may be, and who reads them. Whatever the user can mend is a UserError, one line."""
import dataclasses
import difflib
import os
import reprlib
import sys


class UserError(Exception):
    """Something the user can mend. It ends a script with one line and exit code 2; a stack trace would hide it."""


def end_in_one_line(others=sys.excepthook) -> None:
    """From here on a script of yours that does not catch a UserError ends as ours do."""
    def hook(kind, error, trace):
        if not isinstance(error, UserError):
            return others(kind, error, trace)
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2)
    sys.excepthook = hook


def nearest(word: str, known) -> str:
    """'lst' -> "; did you mean 'lift'?", and "." where nothing is near: the end of a sentence."""
    close = difflib.get_close_matches(str(word), known, 1, 0.4)
    return f"; did you mean {close[0]!r}?" if close else "."


def option_name(name: str) -> str:
    """topk_weight -> --topk-weight"""
    return "--" + name.replace("_", "-")


# ------------------------------------------------------------------------------------------------- who reads a knob
# Only these methods read it. Given to another one it is refused.
DRIFT, MVP = ("dfp", "dfp-no-topk"), ("mvp", "mvp-topk")
FLOW, FQL = ("bfn", "qc-bfn", "fql", "qc-fql"), ("fql", "qc-fql")
TOPK = (*DRIFT, "mvp-topk")
READ_BY = {"num_generated": DRIFT, "temperatures": DRIFT, "bc_weight": DRIFT + MVP,
           "topk_offline": TOPK, "num_candidates": TOPK, "top_k": TOPK, "topk_weight": TOPK, "ema_rate": TOPK,
           "flow_steps": FLOW, "distill_weight": FQL, "ivc_weight": MVP, "time_mean": MVP, "time_std": MVP}


def reads(method: str, name: str) -> bool:
    """Whether a method reads a knob. One of your own may read any."""
    return method not in DRIFT + MVP + FLOW or method in READ_BY.get(name, (method,))


# Stage 1 does not read these. So runs that differ in nothing else share one, if their methods are of one family.
STAGE_2 = ("method", "warmup", "num_candidates", "top_k", "topk_weight", "ema_rate", "mix_size")
# These change how long a run is, what is told of it and how fast it is. They may be others when it is resumed.
MAY_DIFFER = ("preset", "seeds", "offline_steps", "online_steps", "data", "data_dir", "data_device", "eval_every",
              "eval_episodes", "final_episodes", "log_every", "device", "compile", "workers", "threads", "out",
              "resume", "log")


# ------------------------------------------------------------------------------------------------- names and values
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", tuple: "a tuple of numbers"}
PATHS = ("data", "data_dir", "out")
# A number must be above 0. It may be 0 where its default is, and here. Where its default is negative it may be any.
MAY_BE_ZERO = ("offline_steps", "online_steps", "warmup", "bc_weight", "topk_weight", "distill_weight", "ivc_weight")
AT_MOST_ONE = ("discount", "target_rate", "ema_rate", "acting_ema_rate", "goal_share")


def known_only(knobs, config_class) -> None:
    names = [f.name for f in dataclasses.fields(config_class)]
    for name in knobs:
        if name not in names:
            raise UserError(f"{reprlib.repr(name)} is no knob{nearest(name, names)}")


def as_plain(name: str, value):
    """A knob as files keep it: numbers and text of numpy's become Python's, and ~ the user's folder."""
    if hasattr(value, "tolist"):                         # numpy's arrays and numbers, torch's tensors
        value = value.tolist()
    if name in PATHS and isinstance(value, (str, os.PathLike)):
        value = os.path.expanduser(value)
    return tuple(as_plain("", v) for v in value) if isinstance(value, (list, tuple)) else value


def check_given(given: dict, config_class, method: str, names: dict, sources) -> None:
    """UserError for unknown names, and for knobs that nothing would read. names: {knob: the names that it may have}."""
    known_only(given, config_class)
    for kind, known in names.items():
        if kind in given and given[kind] not in known:
            raise UserError(f"unknown {kind} {given[kind]!r}{nearest(given[kind], known)} Known: {', '.join(known)}")
    for name in given:
        if not reads(method, name):
            raise UserError(f"--method {method} does not read {option_name(name)}; it belongs to "
                            f"{', '.join(READ_BY[name])}")
    if method == "dfp-no-topk" and given.get("topk_weight"):
        raise UserError("--method dfp-no-topk means --topk-weight 0; for another weight take --method dfp")
    data = given.get("data", "auto")
    if isinstance(data, str) and data not in sources and not os.path.isfile(data):
        raise UserError(f"--data {data!r} is none of {', '.join(sources)}{nearest(data, sources)} Nor is there such a "
                        "file")


def check(config) -> None:
    """UserError for values that cannot work, before anything is written."""
    for f in dataclasses.fields(config):
        if problem := problem_with(f, getattr(config, f.name)):
            raise UserError(f"{option_name(f.name)} {problem}")
    if config.top_k > config.num_candidates:
        raise UserError(f"--top-k {config.top_k} cannot exceed --num-candidates {config.num_candidates}: "
                        "K of N are kept")


def problem_with(f: dataclasses.Field, value) -> str:
    """Why this is no value for the knob; "" if it is one. An int may stand for a float."""
    kind, choices = type(f.default), f.metadata["choices"]
    values = value if isinstance(value, tuple) else (value,)
    allowed = (int, float) if kind in (float, tuple) else (kind,)
    if not all(type(v) in allowed for v in values) or isinstance(value, tuple) != (kind is tuple) or not values:
        return f"must be {KINDS[kind]}, not {reprlib.repr(value)}"
    if choices and value not in choices:
        return f"{value!r} is not one of {', '.join(choices)}{nearest(value, choices)}"
    if kind in (bool, str):
        return ""
    if not all(abs(v) < 2**31 for v in values):                                                   # nor is nan
        return f"must be below 2^31, and is {reprlib.repr(value)}"
    may_be_zero = f.default == 0 or f.name in MAY_BE_ZERO
    if may_be_zero and value < 0:
        return "must not be negative"
    if not may_be_zero and min(values) <= 0 and (kind is tuple or f.default > 0):
        return "must be positive"
    if f.name in AT_MOST_ONE and value > 1:
        return "must not exceed 1"
    return ""
