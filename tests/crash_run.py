"""What test_crash.py kills: a process that says where it is, in which train_online.py runs, or a set is generated.

It says "+saving" and "-saving" around a phase, "." at a moment within one. Saving is slowed down on purpose, at every
fsync and rename, so that a kill can fall between any two of them.
"""
import contextlib
import functools
import importlib
import os
import sys
import time
from pathlib import Path

import numpy as np

import toy

# Functions are wrapped in the module that calls them: what another one imported by name is its own.
PHASES = {"generation": ["tools.standins.generate:generate"], "offline": ["train_online:offline_stage"],
          "online": ["train_online:online_stage"], "evaluation": ["tools.simulators.evaluator:Evaluator.play_all"],
          "saving": ["tools.training.stage:save", "train_offline:save_offline", "tools.training.stage:append_row",
                     "tools.training.saving:cut_rows_after"]}
MOMENTS = ["os:fsync", "os:replace", "tools.simulators.process:Simulators.send", "dfp:DFP.update",
           "buffer:ReplayBuffer.add", "tools.standins.generate:_read_part", "tools.standins.generate:write_ogbench"]


def wrap(place: str, around) -> None:
    module, name = place.split(":")
    *owner, name = name.split(".")
    owner = functools.reduce(getattr, owner, importlib.import_module(module))
    setattr(owner, name, around(getattr(owner, name)))


def say(word: str) -> None:
    os.write(mouth, word.encode() + b"\n")          # at once, with no buffer that a kill could empty


@contextlib.contextmanager
def announced(phase: str):
    say("+" + phase)
    try:
        yield
    finally:
        say("-" + phase)


@contextlib.contextmanager
def told(slow: float):
    """Says so before and after."""
    say(".")
    time.sleep(slow)
    yield
    say(".")
    time.sleep(slow)


def episode(_, *numbers) -> dict:
    """Instead of a simulator's: 40 transitions, a tenth of a second."""
    time.sleep(0.1)
    return {"observations": np.random.default_rng(numbers).normal(size=(41, 3)), "terminals": np.arange(41) == 40}


def live(folder, words: list[str], mouth_, output) -> None:
    """In a new process: train_online.py with `words`, or, without any, the generation of a set whose episodes cost
    nothing."""
    global mouth
    import envs
    import train_online
    from tools.standins import generate
    from tools.training import command_line
    os.setsid()                                # a process group of its own, as a terminal gives
    os.chdir(folder)
    mouth = mouth_.fileno()
    for fd in (1, 2):
        os.dup2(output.fileno(), fd)
    output.close()
    for phase, places in PHASES.items():
        for place in places:
            wrap(place, announced(phase))
    for place in MOMENTS:
        wrap(place, told(0.02 if place.startswith("os:") else 0))
    if words:
        sys.argv = ["train_online.py", *words]
        envs.register("toy", toy.Toy, toy.TASK.horizon)
        command_line.main(train_online.main)
    else:
        generate._play = generate._aimed = episode
        command_line.main(lambda: generate.generate(envs.find_task("cube-single-task2"), 600, Path("data"), 0.3, workers=2))
