"""The examples of docs/extend.md, as they stand there, and what registering a task refuses."""
import os
import re
import subprocess
import sys

import gymnasium
import numpy as np
import pytest

import envs
import train_online
from config import TASKS, UserError, build
from conftest import ROOT
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
        assert [row["step"] for row in read_rows(folder / "eval.csv")] == ["0", "30", "70"]
        assert float(read_rows(folder / "train.csv")[-1][column]) > 0


def test_two_updates_a_step_is_where_the_page_says():
    """The lines that docs/extend.md puts into a loop stand so in train_online.py."""
    block, = re.findall(r"```python\n(if step >= first_update:.*?)```", (ROOT / "docs/extend.md").read_text(), re.S)
    source = [line.strip() for line in (ROOT / "train_online.py").read_text().splitlines()]
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
    assert env.step(np.array([5.0, 0]))[2:] == (True, False, {"success": True})
    assert build(dict(task="blank")).task == "blank" and build(dict(task="blank", preset="quick")).hidden == 128
    with pytest.raises(UserError, match="name the file of its data with --data"):
        train_online.train(task="blank", data="auto")
    with pytest.raises(UserError, match="Nor is it a file"):
        train_online.train(task="blank", data="missing.npz")


@pytest.mark.parametrize("spaces, says", [
    (dict(observation_space=gymnasium.spaces.Box(0, 255, (8, 8, 3))), "flat vectors"),
    (dict(action_space=gymnasium.spaces.Discrete(3)), "flat vectors"),
    (dict(action_space=gymnasium.spaces.Box(-0.1, 0.1, (2,))), "RescaleAction")])
def test_what_cannot_be_a_task(spaces, says):
    with pytest.raises(UserError, match=says):
        envs.register("other", type("Other", (Blank,), spaces), horizon=5)
    assert "other" not in envs.TABLE
