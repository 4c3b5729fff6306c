"""Killed anywhere and resumed, a run ends in the same tables and weights, bit for bit, as one that was left alone.

Four kills in the normal run; `pytest --slow tests/test_crash.py` does sixty and prints where.
"""
import collections
import random
import shlex
import subprocess
import sys

import pytest
import torch

import run
from conftest import ROOT
from test_scripts import rows

WORDS = ("--task cube-single-task2 --preset quick --no-compile --data generated --data-size 1400 --goal-share 0.3 --hidden 16 --layers 2 "
         "--batch-size 8 --offline-steps 30 --online-steps 40 --warmup 5 --eval-every 10 --eval-episodes 2 --log-every 5 --workers 1 "
         "--threads 1 --precision fp32")
# phase -> (where, range of the call that is the last)
POINTS = {
    "generation": [("tools.demos._read_part", (1, 8)), ("tools.demos._assemble", (1, 1)), ("tools.demos.write_ogbench", (1, 1))],
    "offline": [("train_offline.one_update", (1, 30)), ("run.Run.append", (1, 9))],
    "online": [("train_online.one_update", (1, 35)), ("train_online.Collector.send", (1, 30)), ("data.ReplayBuffer.add", (1, 40))],
    "evaluation": [("envs.Evaluator.reset", (1, 12)), ("run.draw_curve", (1, 6))],
    "saving": [("os.replace", (8, 30)), ("os.fsync", (1, 15)), ("run.save", (1, 8)), ("run.Run.save_online", (1, 8))],
}


def start(folder, where, nth, when, extra="") -> subprocess.CompletedProcess:
    words = [sys.executable, str(ROOT / "tests/crash_run.py"), where, str(nth), when, *shlex.split(f"{WORDS} --data-dir {folder}/data {extra}")]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=600)


def survive(folder, kills) -> collections.Counter:
    """Runs with one kill after another, then to the end -> kills that struck, by phase."""
    struck = collections.Counter()
    for phase, where, nth, when in kills:
        result = start(folder, where, nth, when, "--resume")
        assert result.returncode in (-9, 0), f"{phase} {where} {nth} {when}\n{result.stdout}{result.stderr}"
        struck[phase] += result.returncode == -9
        if result.returncode == 0:
            break
    result = start(folder, "never", 0, "-", "--resume")
    assert result.returncode == 0 and "Traceback" not in result.stderr, result.stdout + result.stderr
    return struck


def assert_same(one, two) -> None:
    one, two = (next(folder.glob("runs/*/*/*/*/seed0")) for folder in (one, two))
    for name in ("train.csv", "eval.csv"):
        assert rows(one, name) == rows(two, name), name
    a, b = (run.read(folder / "checkpoint.pt") for folder in (one, two))
    for part in ("actor", "actor_old", "critic", "critic_target"):
        assert all(torch.equal(a["algorithm"][part][k], b["algorithm"][part][k]) for k in a["algorithm"][part]), part
    assert a["online"] == b["online"] and (one / "online.f32").read_bytes() == (two / "online.f32").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    result = start(folder, "never", 0, "-")
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_four_kills(undisturbed, tmp_path):
    kills = [("generation", "tools.demos._read_part", 3, "after"), ("offline", "train_offline.one_update", 14, "before"),
             ("saving", "os.replace", 9, "before"), ("online", "data.ReplayBuffer.add", 13, "after")]
    assert sum(survive(tmp_path, kills).values()) == 4
    assert_same(undisturbed, tmp_path)


@pytest.mark.slow
def test_many_kills(undisturbed, tmp_path, capsys):
    draw, total, lives = random.Random(0), collections.Counter(), 0
    while min(total[phase] for phase in POINTS) < 8 or sum(total.values()) < 60:
        lives += 1
        folder = tmp_path / str(lives)
        folder.mkdir()
        kills = []
        for phase in ("generation", "offline", "saving", "evaluation", "online", "saving", "evaluation", "online"):
            where, (low, high) = draw.choice(POINTS[phase])
            kills.append((phase, where, draw.randint(low, high), draw.choice(("before", "after"))))
        kills.append(("clock", "clock", round(draw.uniform(2, 8), 2), "-"))
        total += survive(folder, kills)
        assert_same(undisturbed, folder)
    with capsys.disabled():
        print(f"\n{sum(total.values())} kills in {lives} lives: {dict(total)}")
