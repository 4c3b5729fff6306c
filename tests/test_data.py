"""Reading data; rewards and masks against their sources; which data a run gets."""
import json
import os
import shutil

import h5py
import numpy as np
import pytest

import data
import envs
from config import UserError, build
from tools.official import fetch, files
from tools.simulators import robosuite_setup


# ---------------------------------------------------------------------------------------------------------- Robomimic
def with_next_obs(source, path):
    """A copy of a stand-in as the official sets are, with a next_obs that is not derived."""
    with h5py.File(shutil.copy(source, path), "r+") as file:
        for demo in file["data"].values():
            for key in envs.OBS_KEYS:
                obs = demo[f"obs/{key}"][()]
                demo[f"next_obs/{key}"] = np.concatenate([obs[1:], obs[-1:] + 0.5])
    return path


def test_robomimic_file_is_read_by_robomimic_itself(generated, tmp_path):
    import robomimic.utils.obs_utils as obs_utils
    from robomimic.utils.dataset import SequenceDataset
    kinds = {"low_dim": list(envs.OBS_KEYS), "rgb": [], "depth": [], "scan": []}
    obs_utils.initialize_obs_utils_with_obs_specs({"obs": kinds})
    path = with_next_obs(generated["lift"], tmp_path / "official.hdf5")
    theirs = SequenceDataset(str(path), obs_keys=list(envs.OBS_KEYS), seq_length=1, load_next_obs=True,
                             dataset_keys=("actions", "rewards", "dones"), filter_by_attribute="train",
                             hdf5_cache_mode="low_dim")
    ours = data.read(path, envs.find_task("lift"))
    assert len(theirs) == len(ours["rewards"])
    for i in range(0, len(theirs), 7):                     # robomimic orders demos as we do
        item = theirs[i]
        obs = np.concatenate([item["obs"][key][0] for key in envs.OBS_KEYS])
        after = np.concatenate([item["next_obs"][key][0] for key in envs.OBS_KEYS])
        assert np.allclose(obs, ours["observations"][i]) and np.allclose(after, ours["next_observations"][i])
        assert np.allclose(item["actions"][0], ours["actions"][i], atol=2e-5)
        assert item["rewards"][0] - 1 == ours["rewards"][i] and item["dones"][0] == ours["terminals"][i]


def test_robomimic_conventions(generated):
    d = data.read(generated["lift"], envs.find_task("lift"))
    assert set(np.unique(d["rewards"])) == {-1.0, 0.0}                          # r - 1
    assert np.array_equal(d["masks"], 1 - d["terminals"])                       # both from dones
    assert np.array_equal(d["rewards"] == 0, d["terminals"] == 1)               # only successes are kept
    assert d["terminals"].sum() == 3 and np.abs(d["actions"]).max() <= 1 - 9e-6
    inside = np.flatnonzero(d["terminals"][:-1] == 0)
    assert np.array_equal(d["next_observations"][inside], d["observations"][inside + 1])    # derived


@pytest.mark.parametrize("name", ["lift", "can", "square"])
def test_shipped_demonstrations(name, tmp_path):
    """The preset quick takes them and writes nothing beside them; all 300 succeed within the horizon."""
    path = fetch.SHIPPED / f"{name}.hdf5"
    beside = sorted(fetch.SHIPPED.iterdir())
    dataset, source = data.load(build(dict(task=name, preset="quick", data_dir=str(tmp_path))))
    assert source["kind"] == "generated" and source["path"] == str(path)
    assert source["episodes"] == source["successes"] == 300 and source["longest"] <= envs.find_task(name).horizon
    assert sorted(fetch.SHIPPED.iterdir()) == beside and path.stat().st_size < 9e6
    with h5py.File(path) as file:
        operators = [demo.attrs["operator"] for demo in file["data"].values()]
        assert file["data/demo_299/states"].dtype == np.float64 and operators.count(operators[0]) >= 40


def test_demonstrations_replay_in_the_environment(generated):
    """Recorded actions, played open loop from the recorded seed's state, lead to the recorded observations."""
    rows = data.read(generated["lift"], envs.find_task("lift"))
    first, end = np.flatnonzero(rows["terminals"])[:2] + 1                     # of the second demonstration
    env = envs.make("lift")
    env.reset(seed=envs.DATA_SEED + 1)
    for row in range(first, end):
        obs, reward, terminated, _, _ = env.step(rows["actions"][row])
        assert terminated or np.allclose(obs, rows["next_observations"][row], atol=1e-4)
    assert terminated and reward == 0
    env.close()
    with h5py.File(generated["lift"], "r") as file:        # robosuite.make(env_name, **env_kwargs) is that environment
        args = json.loads(file["data"].attrs["env_args"])
        assert args["env_name"] == "Lift" and args["env_kwargs"] == json.loads(json.dumps(robosuite_setup.arguments("Lift")))
        assert file["data/demo_1"].attrs["num_samples"] == end - first and set(file["mask"]) >= {"train", "valid"}


# ------------------------------------------------------------------------------------------------------------ OGBench
def test_ogbench_rows_equal_its_own_relabelling(generated, tmp_path):
    import ogbench
    path = generated["cube-single-task2"]
    for name in ("x.npz", "x-val.npz"):
        shutil.copy(path, tmp_path / name)
    _, theirs, _ = ogbench.make_env_and_datasets("cube-single-play-singletask-task2-v0",
                                                 dataset_path=str(tmp_path / "x.npz"))
    ours = data.read(path, envs.find_task("cube-single-task2"))
    for name in ("observations", "next_observations", "rewards", "masks", "terminals"):
        assert np.array_equal(ours[name], theirs[name]), name
    assert np.allclose(ours["actions"], theirs["actions"], atol=2e-5)
    assert (ours["masks"] == 0).any() and np.array_equal(ours["masks"] == 0, ours["rewards"] == 0)
    rows = np.load(path)                                   # from the cube's position alone: within 4 cm of the goal
    goal = data.simulator_of(envs.find_task("cube-single-task2")).unwrapped.task_infos[1]["goal_xyzs"][0]
    cube = rows["qpos"][~rows["terminals"]][:, 14:17]
    assert np.array_equal(np.linalg.norm(cube - goal, axis=1) <= 0.04, ours["masks"] == 0)


# ------------------------------------------------------------------------------------------ which data a run gets
def test_auto_falls_back_loudly_official_insists(generated, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("tools.official.fetch.fetch", lambda *_, **__: ([], "host: unreachable"))
    folder = generated["lift"].parent.parent
    config = build(dict(task="lift", preset="quick", data="auto", data_size=3, data_dir=str(folder)))
    _, source = data.load(config)
    said = capsys.readouterr().out
    assert source["kind"] == "generated" and source["episodes"] == source["successes"] == 3
    assert "NO OFFICIAL DATA" in said and "unreachable" in said and "unreachable" in source["why"]
    shipped = data.load(build(dict(task="lift", data_dir=str(tmp_path))))[1]["path"]
    assert shipped == str(fetch.SHIPPED / "lift.hdf5") and "NO OFFICIAL DATA" in capsys.readouterr().out
    with pytest.raises(UserError, match="could not be obtained"):
        data.load(build(dict(task="lift", data="official", data_dir=str(folder))))


def test_official_files_of_other_projects_are_found(generated, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    place = tmp_path / ".robomimic/lift/mh/low_dim_v15.hdf5"
    place.parent.mkdir(parents=True)
    shutil.copy(generated["lift"], place)
    _, source = data.load(build(dict(task="lift", data_dir=str(tmp_path / "data"))))
    assert source["kind"] == "official" and source["path"] == str(place)


def test_names_of_own_data_are_text():
    assert files.own_kind("a/de mo.hdf5") == "own-de mo" and files.own_kind(os.fsdecode(b"d\xffmo.npz")) == "own-d?mo"
