"""Killed anywhere and resumed, a run ends in the same tables, weights and transitions, bit for bit, as one that was left alone.

Three kills in the normal run; `pytest --slow tests/test_crash.py` does more than seventy and prints where they struck, which is
what the process said last.
"""
import collections
import multiprocessing
import multiprocessing.forkserver
import os
import random
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch

import crash_run
import envs
import run
import test_fetch
import toy
from conftest import ROOT
from test_fetch import host  # noqa: F401  a fixture
from test_scripts import rows
from tools import demos

TOY = ("--task toy --data {}/toy.npz --preset quick --no-compile --hidden 16 --layers 2 --batch-size 8 --offline-steps 30 --online-steps 40 --warmup 5 "
       "--eval-every 12 --eval-episodes 3 --log-every 5 --workers 2 --threads 1 --precision fp32 --resume")
LIFT = TOY.replace("--task toy --data {}/toy.npz", "--task lift --data generated --data-size 3 --data-dir {}").replace("--workers 2", "--workers 1")


@pytest.fixture(scope="module", autouse=True)
def processes():
    """They are forked from one that has imported everything and done nothing, which saves each the seconds of importing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train_online", "tools.demos", "crash_run", "matplotlib.pyplot"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
        multiprocessing.forkserver.ensure_running()
        yield


class Child:
    """crash_run.py at work in `folder`."""

    def __init__(self, folder, words: str):
        context = multiprocessing.get_context("forkserver")
        self.ear, mouth = context.Pipe(False)
        self.output, end = context.Pipe(False)
        self.process = context.Process(target=crash_run.live, args=(folder, shlex.split(words), mouth, end))
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
        """Sends `how` a moment after the nth announcement within `phase` -> the phase it struck in; None where the process
        came to its end before."""
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
        assert "Traceback" not in self.said, self.said
        return self.process.exitcode


def run_of(folder):
    return next(folder.glob("runs/*/*/*/*/seed0"))


def found_on_disk(folder) -> list[str]:
    """What a kill left of a run that is special."""
    if not list(folder.glob("runs/*/*/*/*/seed0")):
        return []
    out = run_of(folder)
    state, online = run.read_newest(out / "checkpoint.pt"), out / "online.f32"
    task = toy.TASK if "toy" in str(out.relative_to(folder)) else envs.task("lift")
    row = 4 * (2 * task.obs_dim + task.action_dim + 3)           # bytes
    return [name for name, there in {
        "no checkpoint between the two renames": not (out / "checkpoint.pt").exists() and (out / "checkpoint.pt.previous").exists(),
        "transitions ahead of the checkpoint": state and online.exists() and online.stat().st_size > row * state["online"]["rows"],
        "a checkpoint in the middle of a chunk": state and state["collecting"] and state["collecting"]["chunk"]}.items() if there]


def survive(folder, words, kills) -> collections.Counter:
    """One kill after another, then to the end -> where they struck, and what they left."""
    struck = collections.Counter()
    for kill in kills:
        where = Child(folder, words).kill(*kill)
        if where is None:
            break
        struck.update([where, *found_on_disk(folder)])
    child = Child(folder, words)
    assert child.kill("never", 1, 0) is None
    return struck


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def assert_same_runs(one, two) -> None:
    one, two = run_of(one), run_of(two)
    for name in ("train.csv", "eval.csv"):
        assert rows(one, name) == rows(two, name), name
    assert (one / "online.f32").read_bytes() == (two / "online.f32").read_bytes()
    for name in ("checkpoint.pt", "offline.pt"):
        a, b = (run.read(folder / name) for folder in (one, two))
        for part in a.keys() - {"config"}:                       # all of it: weights, optimiser, generators, collector
            assert same(a[part], b[part]), f"{name} {part}"
    assert {p.name for p in one.iterdir()} == {p.name for p in two.iterdir()}, "files left over"
    assert (two / "curve.png").read_bytes().endswith(b"IEND\xaeB`\x82")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """words -> the folder of a run that nothing happened to."""
    known, data = {}, tmp_path_factory.mktemp("toy")
    toy.write_data(data / "toy.npz")

    def of(words):
        if words not in known:
            known[words] = tmp_path_factory.mktemp("undisturbed")
            assert survive(known[words], words, []) == {}
        return known[words]
    return of, data


KILLS = {                # announcements of a whole life of toy, about; the nth is drawn below a third, so that lives go on
    "generation": 30, "offline": 40, "online": 120, "evaluation": 30, "saving": 60}


def test_three_kills(undisturbed, tmp_path):
    of, data = undisturbed
    words = TOY.format(data)
    struck = survive(tmp_path, words, [("offline", 35, 0), ("saving", 14, 0.005), ("online", 45, 0, signal.SIGTERM)])
    assert struck["offline"] + struck["saving"] == 2 and struck["SIGTERM in online"] == 1, struck
    assert_same_runs(of(words), tmp_path)


def test_a_killed_run_leaves_no_worker_behind_that_hangs(tmp_path):
    code = ("import functools, sys, time; sys.path.insert(0, sys.argv[1]); import toy\nfrom tools.simulators import Simulators\n"
            "if __name__ == '__main__':\n"
            "    (toy.Path('x') / 'step1 hangs').touch()\n"
            "    simulators = Simulators(functools.partial(toy.make_failing, 'x'), 1)\n"
            "    simulators.send(0, 'reset', 1); simulators.answers(); simulators.send(0, 'step', [0, 0])\n"
            "    while (toy.Path('x') / 'step1 hangs').exists(): time.sleep(0.01)\n"
            "    print('hangs', flush=True); time.sleep(10_000)\n")
    (tmp_path / "x").mkdir()
    (tmp_path / "main.py").write_text(code)
    process = subprocess.Popen([sys.executable, "main.py", str(ROOT / "tests")], cwd=tmp_path, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"hangs\n"
    process.kill()
    process.communicate(timeout=60)                              # the worker holds the pipe too


def test_a_set_whose_maker_was_killed_while_tidying_up(tmp_path, monkeypatch):
    monkeypatch.setattr(demos, "_play", crash_run.episode)
    make = lambda: demos.generate(envs.task("cube-single-task2"), 80, tmp_path, workers=1)[0]        # noqa: E731
    with monkeypatch.context() as killed:                        # with the set and its record there, the attempts too
        killed.setattr(demos.shutil, "rmtree", lambda *_, **__: None)
        path = make()
    left, record = {p.name for p in tmp_path.iterdir()}, demos.files.record_of(path)
    first, set_ = demos.files.recorded(path, record), path.read_bytes()
    with monkeypatch.context() as killed:                        # ... and before the record: it is assembled once more
        killed.setattr(demos, "_attempt", None)                  # from attempts that are there
        killed.setattr(demos.shutil, "rmtree", lambda *_, **__: None)
        record.unlink()
        assert {p.name for p in tmp_path.iterdir()} < left and make() == path
    assert demos.files.recorded(path, record)["sha256"] == first["sha256"] and path.read_bytes() == set_
    monkeypatch.setattr(demos, "_attempts", None)
    make()                                                       # whoever comes next tidies up
    assert {p.name for p in tmp_path.iterdir()} == {path.name, record.name, "lock"}


# ------------------------------------------------------------------------------------------------------- the long version
total = collections.Counter()


def draw_kills(draw, phases, how=signal.SIGKILL) -> list:
    return [(phase, draw.randint(1, KILLS[phase] // 3), draw.uniform(0, 0.2 if phase == "generation" else 0.02), how) for phase in phases]


@pytest.mark.slow
def test_many_kills_of_runs(undisturbed, tmp_path):
    of, data = undisturbed
    words, draw, wanted = TOY.format(data), random.Random(0), ("offline", "online", "evaluation", "saving")
    life = 0
    while min(total[phase] for phase in wanted) < 8 or sum(total[phase] for phase in wanted) < 50:
        folder = tmp_path / str(life := life + 1)
        folder.mkdir()
        kills = draw_kills(draw, ["offline", "saving", "evaluation", "offline"]) + draw_kills(draw, ["online", "saving", "evaluation", "online", "saving"])
        kills += draw_kills(draw, ["online"], draw.choice((signal.SIGTERM, signal.SIGINT)))
        total.update(survive(folder, words, kills))
        assert_same_runs(of(words), folder)


@pytest.mark.slow
def test_many_kills_of_generation(tmp_path):
    draw, sets = random.Random(1), []
    for life in range(4):                                        # the first is left alone
        folder = tmp_path / str(life)
        folder.mkdir()
        total.update(survive(folder, "", draw_kills(draw, ["generation"] * 4 * (life > 0))))
        sets.append({p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.npz")})
        assert len(list(folder.rglob("*"))) == 4, list(folder.rglob("*"))                # a folder, its lock, the set, its record
        assert sets[-1] == sets[0]
    assert total["generation"] >= 8


@pytest.mark.slow
def test_a_life_of_lift(undisturbed, generated, tmp_path):
    words = LIFT.format(generated["lift"].parent.parent)
    total.update(survive(tmp_path, words, draw_kills(random.Random(2), ["offline", "saving", "evaluation", "online", "saving"])))
    assert_same_runs(undisturbed[0](words), tmp_path)


@pytest.mark.slow
def test_many_kills_of_a_download(host, tmp_path, monkeypatch):  # noqa: F811
    content = b"\x89HDF" + random.Random(3).randbytes(12 << 20)
    monkeypatch.setattr(test_fetch, "CONTENT", content)
    code = "import sys, pathlib; sys.path.insert(0, sys.argv[1]); from tools import fetch; fetch.download(sys.argv[2], pathlib.Path('x.hdf5'))"
    words = [sys.executable, "-c", code, str(ROOT), host + "slowly"]
    size = lambda: sum(p.stat().st_size for p in tmp_path.iterdir())                                # noqa: E731
    for _ in range(8):
        had, process = size(), subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.DEVNULL)
        while size() <= had and process.poll() is None:
            time.sleep(0.001)
        process.kill()                                           # a part of it is there, and more than before
        assert process.wait() == -9
        total["download"] += 1
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "x.hdf5").read_bytes() == content and len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
def test_counts(capsys):
    with capsys.disabled():
        print("\nkills by where they struck, and what they left:", dict(total))
