"""Tasks of one's own and scripts of one's own: the examples of docs/extend.md, and how both may be wrong."""
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace
from unittest import mock

import gymnasium
import numpy as np
import pytest
import torch

import envs
import train_online
from config import TASKS, UserError, build
from conftest import ROOT
from evaluate import play
from tools.simulators import own
from tools.simulators.evaluator import Evaluator
from tools.training import stage
from tools.training.files import read_rows


def test_the_examples_of_the_page_train(tmp_path):
    """A task, a loss term and a baseline of one's own, as docs/extend.md prints them, with fewer steps."""
    page = (ROOT / "docs/extend.md").read_text()
    scripts = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", page, re.S))
    small = scripts["reach.py"].replace("offline_steps=1500, online_steps=1000",
                                        "offline_steps=30, online_steps=40, warmup=10, eval_episodes=2, workers=1, "
                                        "compile=False")
    assert [*scripts] == ["reach.py", "smooth.py", "regression.py"] and small != scripts["reach.py"]
    for name, text in (scripts | {"reach.py": small}).items():
        (tmp_path / name).write_text(text)
        result = subprocess.run([sys.executable, name], cwd=tmp_path, capture_output=True, text=True, timeout=300,
                                env=os.environ | {"PYTHONPATH": str(ROOT)})
        assert result.returncode == 0, result.stderr
        assert "100 of them reach the goal" in result.stdout
    for method, column in (("dfp", "topk_loss"), ("smooth", "jerk"), ("regression", "actor_loss")):
        folder, = tmp_path.glob(f"runs/reach/{method}/own-reach/*/seed0")
        evaluated = [(row["step"], row["episodes"]) for row in read_rows(folder / "eval.csv")]
        assert evaluated == [("0", "1"), ("30", "2"), ("70", "2")]
        assert float(read_rows(folder / "train.csv")[-1][column]) > 0


def test_two_updates_a_step_is_where_the_page_says():
    """The lines that docs/extend.md puts into a loop stand so in train_online.py."""
    block, = re.findall(r"```python\n(if step >= first_update:.*?)```", (ROOT / "docs/extend.md").read_text(), re.S)
    source = [line.partition("#")[0].strip() for line in (ROOT / "train_online.py").read_text().splitlines()]
    assert [line.strip() for line in block.splitlines() if "for _" not in line] == [
        line for line in source if line.startswith(("if step >=", "starts =", "info = update"))]


class Blank(gymnasium.Env):
    observation_space, action_space = gymnasium.spaces.Box(-2, 2, (3,)), gymnasium.spaces.Box(-1, 1, (2,))

    def reset(self, *, seed=None, options=None):
        return np.zeros(3), {}

    def step(self, action):
        return np.ones(3), 1, action[0] > 0, False, {}


@pytest.fixture
def registered():
    yield envs.register("blank", Blank, horizon=2)
    del envs.TABLE["blank"]
    TASKS.remove("blank")


def test_a_registered_task_behaves_like_the_others(registered):
    env = envs.make("blank")
    assert env.reset(seed=1)[0].dtype == np.float32
    assert [type(x) for x in env.step(np.array([-5.0, 0]))[1:4]] == [float, bool, bool]
    obs, reward, terminated, truncated, info = env.step(np.array([-5.0, 0]))
    assert (reward, terminated, truncated, info["success"]) == (1.0, False, True, False)       # the horizon truncates
    env.reset()
    assert env.step(np.array([5.0, 0]))[2:4] == (True, False) and env.step(np.array([5.0, 0]))[4]["success"]
    assert build(dict(task="blank")).task == "blank" and build(dict(task="blank", preset="quick")).hidden == 128
    with pytest.raises(UserError, match="name the file of its data with --data"):
        train_online.train(task="blank", data="auto")
    with pytest.raises(UserError, match="Nor is there such a file"):
        train_online.train(task="blank", data="missing.npz")


@pytest.mark.parametrize("spaces, says", [
    (dict(observation_space=gymnasium.spaces.Box(0, 255, (8, 8, 3))), "flat vectors"),
    (dict(action_space=gymnasium.spaces.Discrete(3)), "flat vectors"),
    (dict(action_space=gymnasium.spaces.Dict(a=gymnasium.spaces.Box(-1, 1, (2,)))), "flat vectors"),
    (dict(action_space=gymnasium.spaces.MultiBinary(2)), "must be a Box"),
    (dict(action_space=gymnasium.spaces.MultiDiscrete([3, 3])), "must be a Box"),
    (dict(action_space=gymnasium.spaces.Box(-0.1, 0.1, (2,))), "RescaleAction")])
def test_what_cannot_be_a_task(spaces, says):
    with pytest.raises(UserError, match=says):
        envs.register("other", type("Other", (Blank,), spaces), horizon=5)
    with pytest.raises(UserError, match="must give a gymnasium.Env, not object"):
        envs.register("other", object, horizon=5)
    assert "other" not in envs.TABLE


@pytest.mark.parametrize("horizon", [0, None, "50", 2.5])
def test_what_cannot_be_a_horizon(horizon):
    with pytest.raises(UserError, match="horizon must be a whole number"):
        envs.register("other", Blank, horizon)
    assert "other" not in envs.TABLE


@pytest.mark.parametrize("name", ["", "..", "a/b", ".a", "a\nb", "lift"])
def test_names_that_no_task_can_have(name):
    with pytest.raises(UserError, match="is a task of the paper" if name == "lift" else "cannot name a task"):
        envs.register(name, Blank, horizon=5)
    assert name not in envs.TABLE or envs.find_task("lift").obs_dim == 19


BROKEN = {                       # what its reset, its step return; what the line says
    "longer": (None, lambda obs, *rest: (np.append(obs, 0), *rest), r"shape \(4,\), observation_space says \(3,\)"),
    "column": (lambda obs, info: (obs[:, None], info), None, r"shape \(3, 1\), observation_space says \(3,\)"),
    "dict": (lambda obs, info: (dict(x=obs), info), None, "is no array of numbers; observation_space says Box"),
    "old reset": (lambda obs, info: obs, None, r"reset\(\) must return \(observation, info\)"),
    "old step": (None, lambda obs, reward, done, _, info: (obs, reward, done, info), r"step\(\) must return"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_environments_that_break_their_word(what):
    after_reset, after_step, says = BROKEN[what]

    class Broken(Blank):
        def reset(self, **kwargs):
            return (after_reset or (lambda *x: x))(*super().reset(**kwargs))

        def step(self, action):
            return (after_step or (lambda *x: x))(*super().step(action))
    with pytest.raises(UserError, match=says):
        envs.register("broken", Broken, 5)
    assert "broken" not in envs.TABLE
    task = envs.Task("broken", "own", "", 5, 3, 2, factory=Broken)
    env = envs.make(task)
    with pytest.raises(UserError, match=says):
        env.reset()
        env.step(np.zeros(2))
    if what == "longer":                                   # at once, as a process of its own says it
        with pytest.raises(UserError, match=says), contextlib.closing(Evaluator(task, 1, play)) as evaluator:
            evaluator(lambda obs, *_: torch.zeros(1, 5, 2), 1)


@pytest.mark.parametrize("infos, terminates, success", [
    ([{}, {}, {}], True, True), ([{}, {}, {}], False, False),                                # no word: termination
    ([{}, {"success": 1.0}, {"success": 0.0}], False, True),                                 # Meta-World: in mid-episode
    ([{}, {}, {"is_success": np.True_}], True, True), ([{}, {}, {"is_success": 0.0}], True, False),
    ([{"success": False}, {}, {}], True, False)])                                            # a failure ends it
def test_how_success_is_read(infos, terminates, success, capsys):
    class Telling(Blank):
        def reset(self, **kwargs):
            self.left = [*infos]
            return np.zeros(3), {}

        def step(self, action):
            info = self.left.pop(0)
            return np.ones(3), 1, terminates and not self.left, False, info
    task = envs.Task("telling", "own", "", 3, 3, 2, factory=Telling)
    env = envs.make(task)
    env.reset()
    assert [env.step(np.zeros(2)) for _ in infos][-1][4]["success"] == success
    if terminates and success:
        with contextlib.closing(Evaluator(task, 1, play)) as evaluator:
            assert evaluator(lambda obs, *_: torch.zeros(1, 5, 2), 1)[0]["success"]
    own.try_out(task, Telling())
    assert ("neither 'success' nor 'is_success'" in capsys.readouterr().out) == (not infos[0])


SCRIPT = """
import numpy as np
import envs, run, toy, train_online
toy.write_data("töy $1 $.npz")
envs.register("a toy", toy.Toy, 13)
knobs = dict(task="a toy", data="töy $1 $.npz", out="~/rüns", lr=np.float64(1e-3), preset="quick", compile=False, layers=2,
             hidden=np.int64(16), batch_size=8, offline_steps=4, online_steps=8, warmup=4, eval_episodes=2, log_every=4)
folder = train_online.train(**knobs)
print("acts", run.load(folder).act(np.zeros((1, 3))).shape, "in", folder)
train_online.train(**knobs)
"""


@pytest.mark.parametrize("how", ["a file", "standard input"])
def test_a_script_without_a_guard(how, tmp_path):
    """Its processes do not run it again. With a ~ that the shell does not see, on a terminal that knows ASCII alone."""
    (tmp_path / "script.py").write_text(SCRIPT)
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    result = subprocess.run(
        [sys.executable, "script.py" if how == "a file" else "-"], cwd=tmp_path, input=SCRIPT, capture_output=True,
        encoding="utf8", timeout=100, env=os.environ | dict(PYTHONPATH=paths, PYTHONIOENCODING="ascii", HOME=str(tmp_path)))
    assert "acts torch.Size([1, 5, 2])" in result.stdout and result.stdout.count("done: success") == 1, result.stderr
    assert list(tmp_path.glob("rüns/a toy/dfp/own-töy $1 $/*/seed0/checkpoint.pt")) and "r\\xfcns" in result.stdout
    # The second call finds the first one's folder. A script that does not catch it ends as ours do.
    assert result.returncode == 2 and result.stderr.count("error: ") == 1 and "Traceback" not in result.stderr
    assert "already holds a run: add --resume" in result.stderr


def test_a_run_in_a_thread_and_one_after_an_error(train, tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as broken, pytest.raises(OSError, match="full"):
        broken.setattr(stage, "save", mock.Mock(side_effect=OSError("full")))
        train("runs")
    assert signal.getsignal(signal.SIGINT) is before
    done = []
    thread = threading.Thread(target=lambda: done.append(train("runs")))
    thread.start()
    thread.join()
    assert read_rows(done[0] / "eval.csv")[-1]["step"] == "52"


def test_the_line_that_resumes_fits_who_asked(monkeypatch):
    def command(*argv, data="generated", kind="generated"):
        monkeypatch.setattr(sys, "argv", [*argv])
        return stage.resume_command(SimpleNamespace(config=SimpleNamespace(data=data), data=dict(kind=kind)))
    assert command("dfp/train_online.py", "--task", "lift") == "python dfp/train_online.py --task lift --resume"
    assert command("train_online.py", data="auto") == "python train_online.py --resume --data generated"
    for argv in (["-c"], ["ipykernel_launcher.py", "-f", "x.json"], ["mine.py", "--task", "lift"], [""]):
        assert command(*argv) == "train(..., resume=True)"
    assert command("-c", data="auto", kind="official") == "train(..., resume=True, data='official')"
