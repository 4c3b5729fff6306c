"""Reading and generating data; rewards and masks against their sources; which data a run gets."""
import concurrent.futures
import json
import shutil

import h5py
import numpy as np
import pytest

import data
import envs
from config import UserError, build
from test_files import play
from tools.official import files
from tools.standins import generate


# ---------------------------------------------------------------------------------------------------------- Robomimic
def test_robomimic_file_is_read_by_robomimic_itself(generated):
    import robomimic.utils.obs_utils as obs_utils
    from robomimic.utils.dataset import SequenceDataset
    kinds = {"low_dim": list(envs.OBS_KEYS), "rgb": [], "depth": [], "scan": []}
    obs_utils.initialize_obs_utils_with_obs_specs({"obs": kinds})
    theirs = SequenceDataset(str(generated["lift"]), obs_keys=list(envs.OBS_KEYS), seq_length=1, load_next_obs=True,
                             dataset_keys=("actions", "rewards", "dones"), filter_by_attribute="train",
                             hdf5_cache_mode="low_dim")
    ours = data.read(generated["lift"], envs.task("lift"))
    assert len(theirs) == len(ours["rewards"])
    # robomimic orders demos as we do; compare row by row
    for i in range(0, len(theirs), 7):
        item = theirs[i]
        obs = np.concatenate([item["obs"][key][0] for key in envs.OBS_KEYS])
        after = np.concatenate([item["next_obs"][key][0] for key in envs.OBS_KEYS])
        assert np.allclose(obs, ours["observations"][i]) and np.allclose(after, ours["next_observations"][i])
        assert np.allclose(item["actions"][0], ours["actions"][i], atol=2e-5)
        assert item["rewards"][0] - 1 == ours["rewards"][i] and item["dones"][0] == ours["terminals"][i]


def test_robomimic_conventions(generated):
    d = data.read(generated["lift"], envs.task("lift"))
    assert set(np.unique(d["rewards"])) == {-1.0, 0.0}                          # r - 1
    assert np.array_equal(d["masks"], 1 - d["terminals"])                       # both from dones
    assert np.array_equal(d["rewards"] == 0, d["terminals"] == 1)               # only successes are kept
    assert d["terminals"].sum() == 3 and np.abs(d["actions"]).max() <= 1 - 9e-6
    inside = np.flatnonzero(d["terminals"][:-1] == 0)
    assert np.array_equal(d["next_observations"][inside], d["observations"][inside + 1])


def test_demonstrations_replay_in_the_environment(generated):
    """Recorded actions, played open loop from the recorded seed's state, lead to the recorded observations."""
    with h5py.File(generated["lift"], "r") as file:
        demo = file["data/demo_1"]
        actions, states = demo["actions"][()], demo["states"][()]
        recorded = np.concatenate([demo["next_obs"][key][()] for key in envs.OBS_KEYS], axis=1)
        args = json.loads(file["data"].attrs["env_args"])
        # robosuite.make(env_name, **env_kwargs) is this very environment
        assert args["env_name"] == "Lift" and args["env_kwargs"] == json.loads(json.dumps(envs.robosuite_args("lift")))
        assert set(file["mask"]) >= {"train", "valid"} and demo.attrs["num_samples"] == len(actions) == len(states)
    env = envs.make("lift")
    env.reset(seed=envs.DATA_SEED + 1)
    for t, action in enumerate(actions):
        obs, reward, terminated, _, _ = env.step(action)
        assert np.allclose(obs, recorded[t], atol=1e-5)
    assert terminated and reward == 0
    env.close()


def test_generation_is_deterministic_cached_and_resumes(generated, tmp_path):
    path = generated["lift"]
    stamp = path.stat().st_mtime
    assert generate.generate(envs.task("lift"), 3, path.parent) == [path] and path.stat().st_mtime == stamp
    # As if interrupted: one finished part, one torn one. The set that comes out is the same.
    parts = tmp_path / (path.name + ".parts")
    parts.mkdir()
    generate._attempt(lambda index: generate._demonstration("lift", index), parts / "demo-000001.npz", 1)
    (parts / "demo-000000.tmp").write_bytes(b"half")
    again, = generate.generate(envs.task("lift"), 3, tmp_path, workers=1)
    assert again.read_bytes() == path.read_bytes()
    assert not parts.exists()


def test_who_makes_the_same_set_at_the_same_time_waits_for_it(generated):
    folder, task = generated["lift"].parent, envs.task("lift")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        with files.one_at_a_time(folder):
            second = pool.submit(generate.generate, task, 3, folder)
            with pytest.raises(concurrent.futures.TimeoutError):
                second.result(0.5)
        assert second.result(60) == [generated["lift"]]


# ------------------------------------------------------------------------------------------------------------ OGBench
def test_ogbench_rows_equal_its_own_relabelling(generated, tmp_path):
    import ogbench
    path = generated["cube-single-task2"]
    for name in ("x.npz", "x-val.npz"):
        shutil.copy(path, tmp_path / name)
    _, theirs, _ = ogbench.make_env_and_datasets("cube-single-play-singletask-task2-v0",
                                                 dataset_path=str(tmp_path / "x.npz"))
    ours = data.read(path, envs.task("cube-single-task2"))
    for name in ("observations", "next_observations", "rewards", "masks", "terminals"):
        assert np.array_equal(ours[name], theirs[name]), name
    assert np.allclose(ours["actions"], theirs["actions"], atol=2e-5)
    assert (ours["masks"] == 0).any() and np.array_equal(ours["masks"] == 0, ours["rewards"] == 0)
    # from the cube's position alone: within 4 cm of the goal
    rows = np.load(path)
    keep = ~rows["terminals"]
    env = envs.make("cube-single-task2")
    goal = env.unwrapped.task_infos[1]["goal_xyzs"][0]
    assert np.array_equal(np.linalg.norm(rows["qpos"][keep][:, 14:17] - goal, axis=1) <= 0.04, ours["masks"] == 0)
    env.close()


def test_large_sets_come_in_several_files(tmp_path, monkeypatch):
    """Which attempts make which file, with the episodes themselves left out."""
    asked, task = [], envs.task("cube-single-task2")

    def attempts(make, parts, kind, wanted, workers, label, first):
        asked.append((kind, wanted, first))
        np.savez(parts / f"{kind}.npz", **play(rows=wanted + 1, every=wanted + 1, seed=len(asked)))
        return [parts / f"{kind}.npz"], 1
    monkeypatch.setattr(generate, "_attempts", attempts)
    paths = generate.generate(task, 2500, tmp_path, 0.2, shard=1000)
    name, each = f"cube-single-play-v{generate.VERSION}", generate.SEEDS
    assert paths == [tmp_path / f"{name}-2500-goal2x0.2" / f"{name}-{i:03d}.npz" for i in range(3)]
    assert asked == [("play", 800, 0), ("goal", 200, 0), ("play", 800, each), ("goal", 200, each),
                     ("play", 400, 2 * each), ("goal", 100, 2 * each)]
    assert [(~np.load(path)["terminals"]).sum() for path in paths] == [1000, 1000, 500]                 # transitions
    record = json.loads(files.record_of(paths[1]).read_text())
    told = [record[key] for key in ("first", "asked", "goal_share", "generator")]
    assert told == [each, 1000, 0.2, generate.VERSION]
    assert 100 * each < 500_000_000                        # numbers of attempts never meet, 100 files or more
    assert generate.generate(task, 2500, tmp_path, 0.2, shard=1000) == paths and len(asked) == 6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cube-single-task2", "cube-double-task2", "cube-triple-task3", "cube-quadruple-task4",
                                  "scene-task2", "puzzle-3x3-task4", "puzzle-4x4-task4"])
def test_play_of_every_environment(name, tmp_path):
    """It is read, its states are observed again, and of three episodes aimed at the goal two at least get there."""
    from tools.official.check import replay_ogbench
    from tools.standins.play import goal_episode, play_episode
    task = envs.task(name)
    generate.write_ogbench(tmp_path / "play.npz", [play_episode(task.source, seed, 201) for seed in (0, 1)])
    fits, text = replay_ogbench(task, tmp_path / "play.npz", 2)
    assert fits, text
    dataset = data.read(tmp_path / "play.npz", task)
    assert np.array_equal(np.flatnonzero(dataset["terminals"]), [199, 399])
    assert dataset["observations"].shape == (400, task.obs_dim)
    generate.write_ogbench(tmp_path / "goal.npz", [goal_episode(task.source, task.task_id, seed) for seed in range(3)])
    aimed = data.read(tmp_path / "goal.npz", task)
    reached = files.count(aimed["terminals"], aimed["masks"] == 0)
    print(f"\n{name}: {reached}")
    assert reached["successes"] >= 2


# ------------------------------------------------------------------------------------------ which data a run gets
def test_auto_falls_back_loudly_official_insists(generated, monkeypatch, tmp_path):
    monkeypatch.setattr("tools.official.fetch.fetch", lambda *_: ([], "host: unreachable"))
    folder = generated["lift"].parent.parent
    said = []
    config = build(dict(task="lift", preset="quick", data_size=3, data_dir=str(folder)))
    _, source = data.load(config, said.append)
    assert source["kind"] == "generated" and source["episodes"] == source["successes"] == 3
    assert "NO OFFICIAL DATA" in said[0] and "unreachable" in said[0] and "unreachable" in source["why"]
    with pytest.raises(UserError, match="could not be obtained"):
        data.load(build(dict(task="lift", data="official", data_dir=str(folder))))


def test_official_files_of_other_projects_are_found(generated, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    place = tmp_path / ".robomimic/lift/mh/low_dim_v15.hdf5"
    place.parent.mkdir(parents=True)
    shutil.copy(generated["lift"], place)
    _, source = data.load(build(dict(task="lift", data_dir=str(tmp_path / "data"))), lambda _: None)
    assert source["kind"] == "official" and source["path"] == str(place)
