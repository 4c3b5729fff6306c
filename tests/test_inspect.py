"""What data.py tells about a set, and whether replaying it finds what does not fit."""
import copy
import shutil

import h5py
import numpy as np
import pytest

import data
import envs
from config import UserError, build
from tools import compare_operators, demos, inspect_data

LIFT, CUBE = envs.task("lift"), envs.task("cube-single-task2")


def test_demonstrations_replay(generated):
    fits, text = inspect_data.replay_robomimic(LIFT, generated["lift"], 3)
    assert fits and "3 of 3 demonstrations succeed (100%)" in text and "differs" not in text
    assert float(text.split("differ by ")[1].split()[0]) < 1e-3


def test_another_version_is_named(generated, tmp_path, monkeypatch):
    monkeypatch.setattr(envs.import_robosuite(), "__version__", "1.4.1")
    _, text = inspect_data.replay_robomimic(LIFT, generated["lift"], 1)
    assert "differs    robosuite: 1.5.1 in the file, 1.4.1 here" in text
    shutil.copy(generated["lift"], tmp_path / "x.hdf5")
    with h5py.File(tmp_path / "x.hdf5", "r+") as file:
        del file["data/demo_0/states"]
    with pytest.raises(UserError, match="states"):
        inspect_data.replay_robomimic(LIFT, tmp_path / "x.hdf5", 1)


def test_recorded_states_of_ogbench_are_observed_again(generated, tmp_path):
    fits, text = inspect_data.replay_ogbench(CUBE, generated["cube-single-task2"], 1)
    assert fits and "50 states: 100% of the recomputed observations agree" in text
    with np.load(generated["cube-single-task2"]) as file:
        arrays = {name: file[name] for name in file.files}
    for name, change in (("qpos", 0.1), ("actions", np.random.default_rng(0).uniform(-1, 1, arrays["actions"].shape))):
        np.savez(tmp_path / "x.npz", **arrays | {name: np.clip(arrays[name] + change, -1, 1).astype("f4")})
        fits, text = inspect_data.replay_ogbench(CUBE, tmp_path / "x.npz", 1)
        assert not fits or name == "actions" and "differ by 0.0" not in text.split("\n")[1], text


def test_words_and_picture(generated, tmp_path, capsys):
    for task, size in (("lift", 3), ("cube-single-task2", 1400)):
        folder = generated[task].parent.parent
        config = build(dict(task=task, data="generated", data_size=size, data_dir=str(folder), goal_share=0.3))
        inspect_data.inspect(config, *data.load(config, lambda _: None), str(tmp_path), None)
    text = capsys.readouterr().out
    assert "lift: generated data" in text and "3 episodes reach the goal (100.0%)" in text and "30% aimed at the goal" in text
    assert f"generator {demos.VERSION}, seed 3000000000" in text and "'mujoco': '" in text and "actions    -" in text
    assert (tmp_path / "data-lift.png").stat().st_size > 5000 and (tmp_path / "data-cube-single-task2.png").exists()


def test_check_notices_what_size_and_time_do_not_show(generated, tmp_path, monkeypatch):
    import os
    path = tmp_path / "generated" / generated["lift"].name
    path.parent.mkdir()
    for suffix in ("", ".json"):
        shutil.copy2(str(generated["lift"]) + suffix, str(path) + suffix)
    config = build(dict(task="lift", data="generated", data_size=3, data_dir=str(tmp_path)))
    stat = path.stat()
    with h5py.File(path, "r+") as file:
        file["data/demo_0/actions"][0, 0] = 0.5
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    loaded = data.load(config, lambda _: None)                              # the same size and time: not noticed here
    with pytest.raises(UserError, match="no longer has the checksum"):
        inspect_data.inspect(config, *loaded, None, 1)
    with pytest.raises(UserError, match="at least one"):
        inspect_data.inspect(config, *loaded, None, 0)


def test_check_with_another_gain_fails_and_names_it(generated, monkeypatch, capsys):
    """What `python data.py --check 2` prints, first with the gain that recorded the file, then with another."""
    usual = envs.robosuite_args
    monkeypatch.setattr("sys.argv", ["data.py", *f"--task lift --data generated --data-size 3 --data-dir {generated['lift'].parents[1]} --check 2".split()])
    data.main()
    assert "2 of 2 demonstrations succeed (100%)" in capsys.readouterr().out

    def soft(name):
        args = copy.deepcopy(usual(name))
        args["controller_configs"]["body_parts"]["right"]["kp"] = 30
        return args
    monkeypatch.setattr(envs, "robosuite_args", soft)
    with pytest.raises(UserError, match="does not fit the simulator that is installed here"):
        data.main()
    assert "differs    controller_configs.body_parts.right.kp: 150 in the file, 30 here" in capsys.readouterr().out


@pytest.mark.parametrize("task", ["lift", pytest.param("can", marks=pytest.mark.slow), pytest.param("square", marks=pytest.mark.slow)])
def test_operators_go_different_ways_from_one_start(task):
    """Ways of one group (operator and side) lie close together, those of different groups apart: several ways, not one with noise."""
    env = envs.make_robosuite(task)
    tries = compare_operators.compare(env, task, 7, 3, approach_only=True)
    ways, groups = [t.approach for t in tries], [t.group for t in tries]
    assert len(set(groups)) >= 6
    ratio = compare_operators.spread(ways, groups)
    chance = [compare_operators.spread(ways, [groups[i] for i in np.random.default_rng(seed).permutation(len(groups))]) for seed in range(300)]
    print(f"{task}: between groups {ratio:.2f} times farther than within; shuffled {np.mean(chance):.2f}, 95 % below {np.quantile(chance, 0.95):.2f}")
    assert ratio > 1.5 and ratio > np.quantile(chance, 0.95)
    env.close()


def test_spread_of_known_paths():
    """Straight lines 10 apart between groups, 2 apart within, however fast and in however many steps they are walked."""
    line = lambda y, steps, power: np.stack([5 * np.linspace(0, 1, steps) ** power, np.full(steps, y)], 1)          # noqa: E731
    paths = [line(0, 7, 1), line(2, 20, 2), line(11, 9, 0.5), line(13, 2, 1)]
    assert compare_operators.spread(paths, "aabb") == pytest.approx(11 / 2)          # 9, 11, 11, 13 between, 2 and 2 within
    assert compare_operators.spread(paths, "abab") == pytest.approx(5.5 / 11)        # 2, 2, 9, 13 between, 11 and 11 within
