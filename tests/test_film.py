"""evaluate.py --film: the episodes of an evaluation, with their step and Q."""
import subprocess
from types import SimpleNamespace

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

import config
import envs
import run
import toy
from config import UserError
from conftest import ROOT
from evaluate import mean, play
from test_scripts import first, home, script  # noqa: F401
from tools.pictures import film
from tools.simulators.evaluator import Evaluator
from tools.simulators.own import OwnEnv


class Painted(toy.Toy):
    """Shows its state's last number as a shade of grey."""

    def __init__(self, render_mode=None):
        pass

    def render(self):
        return np.full((64, 64, 3), 128 + 100 * self.state[2], np.uint8)


def painted(task="painted"):
    return OwnEnv(envs.Task("painted", "own", "", 13, 3, 2, factory=Painted), Painted())


@pytest.fixture
def policy():
    c = config.build(dict(task="lift", preset="quick", hidden=16, layers=2, compile=False, seed=3))
    policy = run.algorithm(c, 3, 2, "cpu")
    policy.config = SimpleNamespace(**vars(c) | {"task": "painted"})
    return policy


def filmed(policy, number):
    camera = film.Camera(painted(), policy)
    return camera, play(camera.act, camera, number)


def test_episodes_are_the_evaluation_s_own(policy):
    cameras, played = zip(*(filmed(policy, number) for number in range(6)))
    evaluator = Evaluator("painted", 2, play, painted)
    result, last_two = mean(evaluator(policy.act, 6)), mean(evaluator(policy.act, 2, first=4))
    evaluator.close()
    for name in ("success", "length", "return"):
        assert result[name] == pytest.approx(np.mean([one[name] for one in played]))
    assert last_two["length"] == np.mean([one["length"] for one in played[4:]]) != result["length"]
    assert [c.steps[-1] for c in cameras] == [one["length"] for one in played]
    assert [c.success for c in cameras] == [one["success"] for one in played]
    # step by step: every other picture, and Q of the chunk that is under way, which is asked about once
    env, one = painted(), cameras[0]
    obs, _ = env.reset(seed=envs.EVAL_SEED)
    noise, shades, values = torch.Generator().manual_seed(envs.EVAL_SEED), [], []
    for step in range(one.steps[-1]):
        if step % 5 == 0:
            chunk = policy.act(obs[None], [noise])
            q = policy.critic.value(torch.from_numpy(obs[None]), chunk.flatten(1)).item()
        if step % 2 == 0:
            shades, values = [*shades, env.render()[0, 0, 0]], [*values, q]
        obs = env.step(chunk[0, step % 5].numpy())[0]
    assert [frame[0, 0, 0] for frame in one.frames] == [*shades, env.render()[0, 0, 0]]
    assert one.values == [*values, q]
    assert one.steps == [*range(0, one.steps[-1], 2), one.steps[-1]]


def test_q_is_drawn_and_the_end_is_told():
    frames = [np.full((64, 64, 3), shade, np.uint8) for shade in (10, 60, 200)]
    pictures = film.drawn(frames, [0, 2, 4], [-4.0, -2.0, 0.0], success=True)
    assert len(pictures) == 3 + film.HOLD and [p.getpixel((5, 5))[0] for p in pictures[:3]] == [10, 60, 200]
    ends = [np.argwhere(np.all(np.array(p) == (0x1f, 0x77, 0xb4), -1)) for p in pictures[1:3]]   # where it is blue
    assert abs(ends[0][:, 1].max() - film.SIZE / 2) <= 1 and ends[1][:, 1].max() == film.SIZE - 1    # so far, then all
    assert ends[1][:, 0].min() < ends[0][:, 0].min()                                             # Q rises
    for success, channel in ((True, 1), (False, 0)):                                             # in green, or in red
        pictures = film.drawn(frames, [0, 2, 4], [-4.0, -2.0, 0.0], success)
        colours = [np.array(p).astype(int)[film.SIZE:] for p in pictures]
        told = [(np.delete(c, channel, -1).max(-1) + 50 < c[..., channel]).any() for c in colours]
        assert told == [False, False] + [True] * (1 + film.HOLD)


@pytest.mark.parametrize("ending", ["gif", "mp4"])
def test_files(policy, ending, tmp_path, monkeypatch):
    monkeypatch.setattr(envs, "find_task", lambda name: SimpleNamespace(suite="own"))
    monkeypatch.setattr(envs, "make", lambda name, **rendering: painted())
    path = tmp_path / "films" / f"out.{ending}"
    frames = sum(len(filmed(policy, e)[0].frames) + film.HOLD for e in range(2))
    film.film(policy, str(path), play, range(2))
    if ending == "gif":
        with Image.open(path) as gif:                                    # equal neighbours are one, shown longer
            assert sum(one.info["duration"] for one in ImageSequence.Iterator(gif)) == frames * 1000 // film.FPS
    else:
        assert len(imageio.mimread(path, memtest=False)) == frames


def test_a_renderer_is_chosen_or_missed_in_one_line(monkeypatch):
    working, tried = {"osmesa"}, []

    def attempt(words, env, **_):
        tried.append(env["MUJOCO_GL"])
        return SimpleNamespace(returncode=int(env["MUJOCO_GL"] not in working))
    monkeypatch.setattr(subprocess, "run", attempt)
    monkeypatch.setenv("MUJOCO_GL", "disable")
    film.choose_renderer()
    assert film.os.environ["MUJOCO_GL"] == "osmesa" and tried == ["egl", "osmesa"]
    film.choose_renderer()                                               # given by hand: no other is tried
    assert tried[2:] == ["osmesa"]
    working.clear()
    with pytest.raises(UserError, match=r"tried osmesa\); install EGL"):
        film.choose_renderer()


def test_evaluate_films_or_says_why_not(first, tmp_path, monkeypatch):  # noqa: F811
    folder, out, _ = first
    output = script("evaluate.py", folder, None, f"{out} --film film.avi", task=None, code=2)
    assert "must end in .gif or .mp4" in output
    monkeypatch.setattr(film, "choose_renderer", lambda: None)           # this process has MUJOCO_GL=disable
    output = script("evaluate.py", folder, None, f"{out} --episodes 1 --film {tmp_path}/film.gif", task=None, code=2)
    assert output.count("error: no film: cube-single-task2 cannot be rendered here") == 1
    assert not (tmp_path / "film.gif").exists()


@pytest.mark.slow
@pytest.mark.parametrize("task", ["lift", "cube-single-task2"])
def test_real_renderers(task, tmp_path, monkeypatch):
    """A picture of each suite's simulator, in a process of its own: mujoco looks for a renderer only once."""
    monkeypatch.setenv("MUJOCO_GL", "disable")
    try:
        film.choose_renderer()
    except UserError as error:
        pytest.skip(str(error))
    code = ("import sys; sys.path.insert(0, sys.argv[1])\nimport numpy as np, envs\nfrom tools.pictures import film\n"
            "env = envs.make(sys.argv[2], **film.rendering(sys.argv[2])); env.reset(seed=0); one = env.render()\n"
            "for _ in range(8): env.step(np.ones(env.action_space.shape))\n"
            "print(one.shape, one.std() > 5, np.abs(env.render() - 1.0 * one).mean() > 0.1)")
    words = [film.sys.executable, "-c", code, str(ROOT), task]
    output = subprocess.run(words, capture_output=True, text=True)
    assert output.stdout.strip().endswith("(256, 256, 3) True True"), output.stderr
