"""Killed anywhere and resumed, a run ends in the same tables, weights and transitions, bit for bit, as one left alone.

Three kills in the normal run; `pytest --slow tests/test_crash.py` does some sixty. Where one struck is what the process
said last.
"""
import collections
import multiprocessing
import multiprocessing.forkserver
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

import crash_run
import envs
import toy
from conftest import ROOT
from tools.official import files
from tools.standins import generate

KNOBS = (" --preset quick --no-compile --hidden 16 --layers 2 --batch-size 8 --offline-steps 30 --online-steps 40 "
         "--warmup 5 --eval-every 12 --eval-episodes 3 --log-every 5 --threads 1 --precision fp32 --resume")
TOY = "--task toy --data {}/toy.npz --workers 2" + KNOBS
LIFT = "--task lift --data generated --data-size 3 --data-dir {} --workers 1" + KNOBS
FORKED = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module", autouse=True)
def processes():
    """They are forked from one that has imported everything and done nothing, which saves each the seconds of it."""
    FORKED.set_forkserver_preload(["train_online", "tools.standins.generate", "crash_run", "matplotlib.pyplot"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
        multiprocessing.forkserver.ensure_running()
        yield


class Child:
    """crash_run.py at work in `folder`."""

    def __init__(self, folder, words: str):
        self.ear, mouth = FORKED.Pipe(False)
        self.output, end = FORKED.Pipe(False)
        self.process = FORKED.Process(target=crash_run.live, args=(folder, shlex.split(words), mouth, end))
        self.process.start()
        mouth.close()
        end.close()
        self.phases = []                                         # those it is in, the innermost last

    def hear(self, lines) -> str:
        """-> the innermost phase after the last line."""
        for line in lines:
            if line.startswith("+"):
                self.phases.append(line[1:].strip())
            elif line.startswith("-"):
                self.phases.pop()
        return self.phases[-1] if self.phases else "elsewhere"

    def kill(self, phase: str, nth: int, later: float, how=signal.SIGKILL) -> str | None:
        """Sends `how` a moment after the nth announcement within `phase` -> the phase it struck in; None where the
        process came to its end before."""
        with open(self.ear.fileno(), closefd=False) as ear:
            for line in ear:
                nth -= self.hear([line]) == phase
                if nth == 0:
                    break
            else:
                assert self.end() == 0
                return None
            time.sleep(later)
            if how == signal.SIGKILL:
                self.process.kill()
                struck = self.hear(ear)                          # the last it said before it died
            else:
                os.killpg(self.process.pid, how)                 # as a terminal does: workers get it too
                struck = f"{how.name} in {self.hear([])}"
                self.hear(ear)
        code = self.end()
        assert code in ((0, -9) if how == signal.SIGKILL else (0, 130)), self.said
        assert code != 130 or "continue with:" in self.said or "the same command goes on" in self.said, self.said
        return struck if code else None

    def end(self) -> int:
        """The exit code. Waits for its workers too: they hold the pipe as well, and must end when it does."""
        with open(self.output.fileno(), closefd=False) as output:
            self.said = output.read()
        self.process.join()
        # Python's own words where a process that was just being started finds its parent killed.
        own = re.sub(r"Traceback(?:(?!Traceback).)*in spawn_main.*?EOFError: Ran out of input\n", "", self.said, flags=re.S)
        assert "Traceback" not in own, self.said
        return self.process.exitcode


def run_of(folder):
    return next(folder.glob("runs/*/*/*/*/seed0"))


def survive(folder, words, kills) -> collections.Counter:
    """One kill after another, then to the end -> how often each place was struck."""
    struck = collections.Counter()
    for kill in kills:
        where = Child(folder, words).kill(*kill)
        if where is None:
            break
        struck[where] += 1
    assert Child(folder, words).kill("never", 1, 0) is None
    return struck


def assert_same_runs(one, two) -> None:
    one, two = run_of(one), run_of(two)
    toy.assert_same_runs(one, two)
    assert {p.name for p in one.iterdir()} == {p.name for p in two.iterdir()}, "files left over"
    assert (two / "curve.png").read_bytes().endswith(b"IEND\xaeB`\x82")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """words -> the folder of a run that nothing happened to; and where the toy's data are."""
    known, data = {}, tmp_path_factory.mktemp("toy")
    toy.write_data(data / "toy.npz")

    def of(words):
        if words not in known:
            known[words] = tmp_path_factory.mktemp("undisturbed")
            assert survive(known[words], words, []) == {}
        return known[words]
    return of, data


def test_three_kills(undisturbed, tmp_path):
    """In stage 1 after a row that follows the checkpoint, in stage 2 by SIGTERM, and while a checkpoint is written."""
    of, data = undisturbed
    words = TOY.format(data)
    struck = survive(tmp_path, words, [("offline", 42, 0), ("online", 45, 0, signal.SIGTERM), ("saving", 17, 0.005)])
    assert sum(struck[phase] for phase in crash_run.PHASES) == 2 and struck["SIGTERM in online"] == 1, struck
    assert_same_runs(of(words), tmp_path)


HANGS = """
import functools, sys, time
sys.path.insert(0, sys.argv[1])
import toy
from tools.simulators.process import Simulators
if __name__ == "__main__":
    order = toy.Path("step1 hangs")
    order.touch()
    simulators = Simulators(functools.partial(toy.envs.make, toy.failing_task(".")), 1)
    simulators.send(0, "reset", 1)
    simulators.receive(0)
    simulators.send(0, "step", [0, 0])
    while order.exists():
        time.sleep(0.01)
    print("hangs", flush=True)
    time.sleep(10_000)
"""


def test_a_killed_run_leaves_no_worker_behind_that_hangs(tmp_path):
    (tmp_path / "main.py").write_text(HANGS)
    words = [sys.executable, "main.py", str(ROOT / "tests")]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"hangs\n"
    process.kill()
    process.communicate(timeout=60)                              # the worker holds the pipe too


def test_a_set_whose_maker_was_killed_while_tidying_up(tmp_path, monkeypatch):
    def make():
        return generate.generate(envs.find_task("cube-single-task2"), 80, tmp_path, workers=1)[0]
    monkeypatch.setattr(generate, "_play", crash_run.episode)
    with monkeypatch.context() as killed:                        # with the set and its record there, the attempts too
        killed.setattr(generate.shutil, "rmtree", lambda *_, **__: None)
        path = make()
    left, record, body = {p.name for p in tmp_path.iterdir()}, files.record_path(path), path.read_bytes()
    checksum = files.recorded(path)["sha256"]
    with monkeypatch.context() as killed:                        # ... and before the record: it is assembled once more
        killed.setattr(generate, "_attempt", None)               # from attempts that are there
        killed.setattr(generate.shutil, "rmtree", lambda *_, **__: None)
        record.unlink()
        assert {p.name for p in tmp_path.iterdir()} < left and make() == path
    assert files.recorded(path)["sha256"] == checksum and path.read_bytes() == body
    monkeypatch.setattr(generate, "_attempts", None)
    make()                                                       # whoever comes next tidies up
    assert {p.name for p in tmp_path.iterdir()} == {path.name, record.name, "lock"}


# --------------------------------------------------------------------------------------------------- the long version
# Announcements of a whole life of toy, about; the nth is drawn below a third, so that lives go on.
KILLS = {"generation": 30, "offline": 40, "online": 120, "evaluation": 30, "saving": 60}


def draw_kills(draw, phases, how=signal.SIGKILL, longest=0.02) -> list:
    """Each up to so many seconds after the announcement."""
    return [(phase, draw.randint(1, KILLS[phase] // 3), draw.uniform(0, longest), how) for phase in phases]


@pytest.mark.slow
def test_many_kills_of_runs(undisturbed, tmp_path):
    of, data = undisturbed
    words, draw, wanted = TOY.format(data), random.Random(0), ("offline", "online", "evaluation", "saving")
    life, total = 0, collections.Counter()
    while min(total[phase] for phase in wanted) < 8 or sum(total[phase] for phase in wanted) < 50:
        folder = tmp_path / str(life := life + 1)
        folder.mkdir()
        kills = draw_kills(draw, ["offline", "saving", "evaluation", "offline"])
        kills += draw_kills(draw, ["online", "saving", "evaluation", "online", "saving"])
        kills += draw_kills(draw, ["online"], draw.choice((signal.SIGTERM, signal.SIGINT)))
        total += survive(folder, words, kills)
        assert_same_runs(of(words), folder)


@pytest.mark.slow
def test_many_kills_of_generation(tmp_path):
    draw, sets, struck = random.Random(1), [], collections.Counter()
    for life in range(4):                                        # the first is left alone
        folder = tmp_path / str(life)
        folder.mkdir()
        struck += survive(folder, "", draw_kills(draw, ["generation"] * 4 * (life > 0), longest=0.2))
        sets.append({p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.npz")})
        left = list(folder.rglob("*"))
        assert len(left) == 4, left                              # a folder, its lock, the set, its record
        assert sets[-1] == sets[0]
    assert struck["generation"] >= 8


@pytest.mark.slow
def test_a_life_of_lift(undisturbed, generated, tmp_path):
    words = LIFT.format(generated["lift"].parent.parent)
    phases = ["offline", "saving", "evaluation", "online", "saving"]
    survive(tmp_path, words, draw_kills(random.Random(2), phases))
    assert_same_runs(undisturbed[0](words), tmp_path)
