"""What test_crash.py kills: a process that says where it is, in which train_online.py runs, or a set is generated.

It says "+saving" and "-saving" around a phase, "." at a moment within one. Saving is slowed down on purpose, at every fsync
and rename, so that a kill can fall between any two of them.
"""
import contextlib
import functools
import inspect
import os
import sys
import time
from pathlib import Path

import numpy as np

import toy

PHASES = {"generation": ["tools.demos:generate"], "offline": ["train_online:offline_stage"], "online": ["train_online:online_stage"],
          "evaluation": ["envs:Evaluator.roll_out"], "saving": ["tools.states:save", "run:save", "run:Run.append", "run:Run.cut_rows_after"]}
MOMENTS = ["os:fsync", "os:replace", "tools.simulators:Simulators.send", "dfp:DFP.update",
           "data:ReplayBuffer.add", "tools.demos:_read_part", "tools.demos:write_ogbench"]


def wrap(place: str, around) -> None:
    module, name = place.split(":")
    *owner, name = name.split(".")
    owner = functools.reduce(getattr, owner, __import__(module, fromlist=["x"]))
    function = getattr(owner, name)

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        with around():
            return function(*args, **kwargs)

    @functools.wraps(function)
    def stage(*args, **kwargs):                     # a generator, entered and left where it runs
        with around():
            return (yield from function(*args, **kwargs))
    setattr(owner, name, stage if inspect.isgeneratorfunction(function) else wrapped)


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
    """In a new process: train_online.py with `words`, or, without any, the generation of a set whose episodes cost nothing."""
    global mouth
    import envs
    import train_online
    from tools import command_line, demos
    os.setsid()                                # a process group of its own, as a terminal gives
    os.chdir(folder)
    mouth = mouth_.fileno()
    for fd in (1, 2):
        os.dup2(output.fileno(), fd)
    output.close()
    for phase, places in PHASES.items():
        for place in places:
            wrap(place, functools.partial(announced, phase))
    for place in MOMENTS:
        wrap(place, functools.partial(told, 0.02 if place.startswith("os:") else 0))
    if words:
        sys.argv = ["train_online.py", *words]
        envs.register("toy", toy.Toy, toy.TASK.horizon)
        command_line.main(train_online.main)
    else:
        demos._play = demos._aimed = episode
        command_line.main(lambda: demos.generate(envs.task("cube-single-task2"), 600, Path("data"), 0.3, workers=2))
