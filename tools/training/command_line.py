"""The command line, made from config.Config: every knob is an option. And what a script does with an error."""
import argparse
import contextlib
import dataclasses
import os
import signal
import sys

from config import Config, UserError, build
from tools.checks import READ_BY, option_name, reads

# In the order of Config: the first knob of each group of options in --help.
HEADINGS = {"task": "what to run", "offline_steps": "how long", "layers": "networks and optimiser",
            "chunk": "the policy", "num_candidates": "policy improvement", "flow_steps": "the baselines",
            "data": "data", "eval_every": "evaluation and running"}


class OneLineParser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(" ".join(message.split()) + "  (--help lists the options)")


def parse(description: str, argv=None) -> tuple[Config, set[str]]:
    """The command line -> (Config, names of the knobs given explicitly). Raises UserError."""
    parser = OneLineParser(usage="%(prog)s [options]", description=description, allow_abbrev=False,
                           argument_default=argparse.SUPPRESS)
    for f in dataclasses.fields(Config):
        option, default, only = option_name(f.name), f.default, READ_BY.get(f.name)
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        text = f"{f.metadata['help']}{'; of ' + ', '.join(only) if only else ''} (default {shown})"
        if f.name in HEADINGS:
            options = parser.add_argument_group(HEADINGS[f.name])
        if isinstance(default, bool):
            options.add_argument(option, action=argparse.BooleanOptionalAction, help=text)
        elif isinstance(default, tuple):
            options.add_argument(option, type=float, nargs="+", help=text)
        else:
            choices = f.metadata["choices"]
            metavar = "{" + ",".join(choices) + "}" if choices else f.name.upper()
            options.add_argument(option, type=type(default), help=text, metavar=metavar)
    options.add_argument("--print-config", action="store_true", help="print the knobs that a run would use, and stop")
    given = vars(parser.parse_args(argv))
    show = given.pop("print_config", False)
    if given.get("task") == "list":
        print(list_tasks())
        raise SystemExit(0)
    if "temperatures" in given:
        given["temperatures"] = tuple(given["temperatures"])
    config = build(given)
    if show:
        for f in dataclasses.fields(Config):
            if reads(config.method, f.name):
                print(f"{f.name:16} {getattr(config, f.name)}{'   (given)' if f.name in given else ''}")
        raise SystemExit(0)
    return config, set(given)


def list_tasks() -> str:
    """A line for each task, as --task list prints them."""
    from envs import TABLE                       # late: gymnasium takes a second to import
    lines = [f"{'task':22}{'suite':11}{'observation':>12}{'action':>8}{'horizon':>9}   official data"]
    for t in TABLE.values():
        play = f"{'100M' if t.source == 'cube-quadruple' else '1M'} transitions of play"
        size = {"robomimic": "300 demonstrations", "own": "yours"}.get(t.suite, play)
        lines.append(f"{t.name:22}{t.suite:11}{t.obs_dim:12}{t.action_dim:8}{t.horizon:9}   {size}")
    return "\n".join(lines)


def main(function, renders: bool = False) -> None:
    """Runs a script's main(): a UserError becomes one line on stderr and exit code 2. renders: it may draw what the
    simulator shows."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)      # like Ctrl-C: processes that generate data end too
    if not renders:
        os.environ["MUJOCO_GL"] = "disable"                # whatever the shell says
    sys.argv[1:] = ["=".join(map(os.path.expanduser, word.split("=", 1))) for word in sys.argv[1:]]       # --data=~/x
    print_anywhere()
    try:
        result = function()
        sys.stdout.flush()
        return result
    except KeyboardInterrupt:                              # outside of a stage, or the second Ctrl-C within one
        print("\ninterrupted; the same command goes on from what was saved, maybe with --resume", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:                                # | head has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except UserError as error:
        message = str(error)
    except OSError as error:                               # a full disk, a folder that went away
        message = f"{error.strerror or error} ({error.filename or 'file'}); what was saved before is intact"
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":     # torch's; this file does without torch
            message = "the GPU is out of memory; lower --batch-size or --num-candidates, or take --device cpu"
        elif isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            message = "out of memory; lower --online-steps (room for all of them is made at the start), --batch-size " \
                      "or --hidden"
        else:
            raise
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def print_anywhere() -> None:
    """What a terminal cannot show, as a name in another script, it shows as code numbers; else print() would fail."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError):           # a notebook shows everything; some streams are set
            stream.reconfigure(errors="backslashreplace")
