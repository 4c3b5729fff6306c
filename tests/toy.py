"""A task of a few microseconds a step, for the tests that kill, hang and resume.

Its state remembers every action, so a run that came back to another state would show it. Episodes last 13 steps, which
a chunk of 5 does not divide, or end earlier at the goal.
"""
import collections
import dataclasses
import functools
import os
import signal
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import envs  # noqa: E402


class Toy(gymnasium.Env):
    observation_space, action_space = gymnasium.spaces.Box(-9, 9, (3,)), gymnasium.spaces.Box(-1, 1, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = np.r_[self.np_random.uniform(-1, 1, 2), 0]
        return self.state, {}

    def step(self, action):
        self.state = np.r_[self.state[:2] + 0.1 * action, np.sin(self.state.sum())]
        success = bool(np.abs(self.state[:2]).max() < 0.1)
        return self.state, success - 1.0, success, False, {"success": success}


TASK = envs.Task("toy", "own", "", 13, 3, 2, factory=Toy)


class Failing(Toy):
    """Fails as the files in `folder` say: "step4 hangs" at the fourth step of one process, once. Calls: start, reset,
    step."""

    def __init__(self, folder):
        self.folder, self.calls = Path(folder), collections.Counter()
        self.maybe_fail("start")

    def maybe_fail(self, call, *answer):
        self.calls[call] += 1
        for order in self.folder.glob(f"{call}{self.calls[call]} *"):
            order.unlink()
            how = order.name.partition(" ")[2]
            if how == "dies":
                os._exit(7)
            if how == "hangs":
                time.sleep(10_000)
            if how == "raises":
                raise ValueError("out of joint")
            obs, reward, *rest = answer
            return (obs * np.nan, reward, *rest) if how == "says nan" else (obs, np.inf, *rest)
        return answer

    def reset(self, **kwargs):
        return self.maybe_fail("reset", *super().reset(**kwargs))

    def step(self, action):
        return self.maybe_fail("step", *super().step(action))


def failing_task(folder) -> envs.Task:
    return dataclasses.replace(TASK, factory=functools.partial(Failing, folder))


def write_data(path) -> None:
    """40 episodes of a clumsy controller."""
    env, rows, noise = Toy(), [], np.random.default_rng(0)
    for episode in range(40):
        obs, _ = env.reset(seed=episode)
        for step in range(13):
            action = np.clip(-3 * obs[:2] + noise.normal(0, 0.5, 2), -1, 1)
            after, reward, success, _, _ = env.step(action)
            rows.append((obs, action, reward, 1 - success, success or step == 12, after))
            obs = after
            if success:
                break
    names = "observations", "actions", "rewards", "masks", "terminals", "next_observations"
    np.savez(path, **{name: np.array(column) for name, column in zip(names, zip(*rows))})


def make_dataset(lengths, terminated, seed=0) -> dict:
    """Made-up episodes of toy's widths, one after the other. Every number is unique, so that a wrong row cannot go
    unseen."""
    from buffer import FIELDS                                    # late, as below
    rng, n, ends = np.random.default_rng(seed), sum(lengths), np.cumsum(lengths) - 1
    terminals, masks = np.zeros(n), np.ones(n)
    terminals[ends] = 1
    masks[ends[np.array(terminated)]] = 0
    columns = (rng.normal(size=(n, 3)), rng.uniform(-1, 1, (n, 2)), rng.normal(size=n), masks, terminals,
               rng.normal(size=(n, 3)))
    return {name: column.astype(np.float32) for name, column in zip(FIELDS, columns)}


def ring(monkeypatch, owner, name: str, nth: int) -> None:
    """Ctrl-C at the nth call of owner.name."""
    function, calls = getattr(owner, name), []

    def ringing(*args, **more):
        calls.append(1)
        if len(calls) == nth:
            os.kill(os.getpid(), signal.SIGINT)
        return function(*args, **more)
    monkeypatch.setattr(owner, name, ringing)


def leaves(state) -> dict:
    from torch.utils import _pytree as pytree
    return {pytree.keystr(where): np.asarray(leaf).tobytes() for where, leaf in pytree.tree_leaves_with_path(state)}


def assert_same_runs(one: Path, two: Path, aside=("config",)) -> None:
    """Bit for bit: tables, transitions, and all of a state but for these: its knobs say where the folder lies."""
    from tools.training.files import read_rows, read_state       # late: a simulator's process does without torch
    for name in ("train.csv", "eval.csv"):
        a, b = ([row | {"seconds": ""} for row in read_rows(folder / name)] for folder in (one, two))
        assert a == b, name
    assert (one / "online.f32").read_bytes() == (two / "online.f32").read_bytes()
    for name in ("checkpoint.pt", "offline.pt"):
        a, b = (leaves(read_state(folder / name) | dict.fromkeys(aside)) for folder in (one, two))
        assert a == b, f"{name}: {[where for where in a | b if a.get(where) != b.get(where)]}"
