"""What `python data.py` tells about a set, and whether replaying it finds what does not fit."""
import contextlib
import copy
import shutil

import h5py
import numpy as np
import pytest

import data
import envs
from config import UserError, build
from tools.official import files
from tools.pictures.data import draw, places
from tools.report import dataset as check
from tools.simulators import robosuite_setup
from tools.standins import generate
from tools.training.files import say_once

LIFT, CUBE = envs.find_task("lift"), envs.find_task("cube-single-task2")


def test_another_version_is_named(generated, tmp_path, monkeypatch):
    monkeypatch.setattr(robosuite_setup.import_robosuite(), "__version__", "1.4.1")
    _, text = check.replay_robomimic(LIFT, generated["lift"], 1)
    assert "recorded with robosuite 1.5.1, 1.4.1 is installed" in text
    path = shutil.copy(generated["lift"], tmp_path / "x.hdf5")
    with h5py.File(path, "r+") as file:
        del file["data/demo_0/states"]
    with pytest.raises(UserError, match="x.hdf5 is no usable data of lift: .*states"):
        check.replay(LIFT, dict(files=[path], sha256=files.sha256(path)), 1)


def test_recorded_states_of_ogbench_are_observed_again(generated, tmp_path):
    fits, text = check.replay_ogbench(CUBE, generated["cube-single-task2"], 1)
    assert fits and "50 states: 100% of the recomputed observations agree" in text
    with np.load(generated["cube-single-task2"]) as file:
        arrays = {name: file[name] for name in file.files}
    noise = np.random.default_rng(0).uniform(-1, 1, arrays["actions"].shape)
    for name, change in (("qpos", 0.1), ("actions", noise)):
        np.savez(tmp_path / "x.npz", **arrays | {name: np.clip(arrays[name] + change, -1, 1).astype("f4")})
        fits, text = check.replay_ogbench(CUBE, tmp_path / "x.npz", 1)
        assert not fits or name == "actions" and "differ by 0.0" not in text.split("\n")[1], text


def test_words_and_picture(generated, tmp_path):
    text = ""
    for task, size in ((LIFT, 3), (CUBE, 1400)):
        folder = generated[task.name].parent.parent
        knobs = dict(task=task.name, data="generated", data_size=size, data_dir=str(folder))
        knobs |= dict(goal_share=0.3) if task is CUBE else {}
        dataset, source = data.load(build(knobs))
        text += check.description(build(knobs), dataset, source)
        picture = draw(task, dataset, source, tmp_path)
        assert picture == tmp_path / f"data-{task.name}.png" and picture.stat().st_size > 5000
    assert "lift: generated data" in text and "3 episodes reach the goal (100.0%)" in text
    assert "goal_share 0.3" in text and "'mujoco': '" in text and "actions    -" in text
    assert f"generator {generate.VERSION}, seed 3000000000" in text and "lift-operators" in text


@pytest.mark.parametrize("name, body", [("lift", "cube"), ("can", "Can"), ("square", "SquareNut")])
def test_the_picture_knows_where_hand_and_object_are(name, body):
    with contextlib.closing(envs.make(name)) as env:
        obs, at = env.reset(seed=0)[0], places(envs.find_task(name))
        raw = env.sim._get_observations()
    assert np.allclose(obs[at["hand"] :][:3], raw["robot0_eef_pos"])
    assert np.allclose(obs[at["object"] :][:3], raw[f"{body}_pos"])


def test_check_needs_an_episode():
    with pytest.raises(UserError, match="at least one"):
        check.replay(LIFT, {}, 0)


def test_check_with_another_gain_fails_and_names_it(generated, monkeypatch, capsys):
    """What `python data.py --check 2` prints, first with the gain that recorded the file, then with another."""
    usual = robosuite_setup.arguments
    words = f"--task lift --data generated --data-size 3 --data-dir {generated['lift'].parents[1]} --check 2"
    monkeypatch.setattr("sys.argv", ["data.py", *words.split()])
    check.main(data.load)
    assert "2 of 2 demonstrations succeed (100%)" in capsys.readouterr().out

    def soft(name):
        args = copy.deepcopy(usual(name))
        args["controller_configs"]["body_parts"]["right"]["kp"] = 30
        return args
    monkeypatch.setattr(robosuite_setup, "arguments", soft)
    say_once.cache_clear()
    with pytest.raises(UserError, match="does not fit the simulator that is installed here"):
        check.main(data.load)
    assert "controller_configs.body_parts.right.kp is 150 in the file, 30 here" in capsys.readouterr().err
