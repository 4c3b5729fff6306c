"""Stand-in data: one name is one set, however it was made; operators go their own ways; play reaches goals."""
import concurrent.futures
import json
import os

import numpy as np
import pytest

import data
import envs
from config import UserError
from tools.official import files
from tools.simulators import robosuite_setup
from tools.standins import generate, operators
from tools.training.files import one_at_a_time

LIFT, CUBE = envs.find_task("lift"), envs.find_task("cube-single-task2")


def test_generation_is_deterministic_cached_and_resumes(generated, tmp_path):
    path = generated["lift"]
    stamp = path.stat().st_mtime
    assert generate.generate(LIFT, 3, path.parent) == [path] and path.stat().st_mtime == stamp
    # As if interrupted: one finished part, one torn one. The set that comes out is the same.
    parts = tmp_path / (path.name + ".parts")
    parts.mkdir()
    generate._attempt(lambda index: generate._demonstration("lift", index), parts / "demo-000001.npz", 1)
    (parts / "demo-000000.tmp").write_bytes(b"half")
    again, = generate.generate(LIFT, 3, tmp_path, workers=1)
    assert again.read_bytes() == path.read_bytes()
    assert not parts.exists()


def test_who_makes_the_same_set_at_the_same_time_is_told_to_wait(generated, capsys):
    folder = generated["lift"].parent
    with concurrent.futures.ThreadPoolExecutor() as pool:
        with one_at_a_time(folder):
            second = pool.submit(generate.generate, LIFT, 3, folder)
            with pytest.raises(concurrent.futures.TimeoutError):
                second.result(0.5)
            assert f"another process fetches, makes or reads data in {folder}" in capsys.readouterr().out
        assert second.result(60) == [generated["lift"]]


def test_large_sets_come_in_several_files(tmp_path, monkeypatch):
    """Which attempts make which file, with the episodes themselves left out."""
    asked = []

    def attempts(make, parts, kind, wanted, workers, first):
        asked.append((kind, wanted, first))
        np.savez(parts / f"{kind}.npz", terminals=np.arange(wanted + 1) == wanted)
        return [parts / f"{kind}.npz"], 1
    monkeypatch.setattr(generate, "_attempts", attempts)
    paths = generate.generate(CUBE, 2500, tmp_path, 0.2, shard=1000)
    name, each = f"cube-single-play-v{generate.VERSION}", generate.SEEDS
    assert paths == [tmp_path / f"{name}-2500-goal2x0.2" / f"{name}-{i:03d}.npz" for i in range(3)]
    assert asked == [("play", 800, 0), ("goal", 200, 0), ("play", 800, each), ("goal", 200, each),
                     ("play", 400, 2 * each), ("goal", 100, 2 * each)]
    assert [(~np.load(path)["terminals"]).sum() for path in paths] == [1000, 1000, 500]        # transitions
    record, origin = json.loads(files.record_path(paths[1]).read_text()), dict(
        first=each, asked=1000, goal_share=0.2, generator=generate.VERSION, attempts={"play": 1, "goal": 1})
    assert record["origin"] | origin == record["origin"]
    assert 100 * each < 500_000_000                            # where the seeds of aimed episodes begin
    assert generate.generate(CUBE, 2500, tmp_path, 0.2, shard=1000) == paths and len(asked) == 6


def dies(*_):
    os._exit(1)


def fails(*_):
    return None


@pytest.mark.parametrize("episode, message", [
    (dies, "a generating process died .out of memory.*--workers 1$"), (fails, "^100 attempts at .* and no success: .*")])
def test_processes_that_make_no_episode_end_in_one_line(episode, message, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "_play", episode)
    with pytest.raises(UserError, match=message) as error:
        generate.generate(CUBE, 1000, tmp_path, workers=1)
    assert "\n" not in str(error.value)


def test_episodes_are_aimed_at_a_goal_for_cubes_only(tmp_path):
    with pytest.raises(UserError, match="^--goal-share: episodes are aimed at a goal for cubes only$"):
        generate.generate(envs.find_task("scene-task2"), 1000, tmp_path, 0.5)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cube-single-task2", "cube-double-task2", "cube-triple-task3", "cube-quadruple-task4",
                                  "scene-task2", "puzzle-3x3-task4", "puzzle-4x4-task4"])
def test_play_of_every_environment(name, tmp_path):
    """An official reader takes it, its states are observed again, and for cubes two at least of three episodes aimed at
    the goal get there."""
    from tools.report.dataset import replay_ogbench
    from tools.standins.play import goal_episode, play_episode
    task = envs.find_task(name)
    generate.write_ogbench(tmp_path / "play.npz", [play_episode(task.source, seed, 201) for seed in (0, 1)])
    fits, text = replay_ogbench(task, tmp_path / "play.npz", 2)
    assert fits, text
    dataset = data.read(tmp_path / "play.npz", task)
    assert np.array_equal(np.flatnonzero(dataset["terminals"]), [199, 399])
    assert dataset["observations"].shape == (400, task.obs_dim)
    if name.startswith("cube"):
        episodes = [goal_episode(task.source, task.task_id, seed) for seed in range(3)]
        generate.write_ogbench(tmp_path / "goal.npz", episodes)
        aimed = data.read(tmp_path / "goal.npz", task)
        assert files.count(aimed["terminals"], aimed["masks"] == 0)["successes"] >= 2


# ----------------------------------------------------------------------------------------- the operators' ways
NEAR = 0.10      # metres: nearer, slips and what undoes them are longer than the way itself and would drown it


def ways(env, task, scene, times):
    """Each operator `times` times from one start, till the hand is near the object -> paths [T, 3], and the group of
    each: the operator, and whether its habits were mirrored."""
    paths, groups = [], []
    for number, operator in enumerate(operators.OPERATORS):
        for time in range(times):
            raw, hand = operators.begin(env, task, operator, scene, np.random.default_rng([scene, number, time]))
            path = []
            while np.linalg.norm(raw["robot0_eef_pos"] - raw[operators.BODY[task] + "_pos"]) >= NEAR:
                path.append(raw["robot0_eef_pos"])
                raw = env.step(hand.act(raw))[0]
            paths.append(np.array(path))
            groups.append((operator.name, hand.bend * operator.bend < 0))
    return paths, groups


def spread(paths, groups) -> float:
    """How many times farther apart paths are between groups than within one (medians of the mean distance)."""
    def resample(path):                           # by the way travelled, so that speed makes no difference
        travelled = np.r_[0, np.linalg.norm(np.diff(path, axis=0), axis=1).cumsum()]
        return np.stack([np.interp(np.linspace(0, travelled[-1], 30), travelled, column) for column in path.T], 1)
    paths = np.array([resample(path) for path in paths])
    distance = np.linalg.norm(paths[:, None] - paths[None], axis=-1).mean(-1)
    within = np.array([[a == b for a in groups] for b in groups])
    return np.median(distance[~within]) / np.median(distance[within & ~np.eye(len(paths), dtype=bool)])


@pytest.mark.parametrize("task, scenes, times, known", [
    ("lift", (7,), 3, None), *(pytest.param(*words, marks=pytest.mark.slow) for words in (
        ("lift", (7, 8, 9), 5, 2.0), ("can", (7, 8, 9), 5, 2.2), ("square", (7, 8, 9), 5, 2.1)))])
def test_operators_go_different_ways_from_one_start(task, scenes, times, known):
    """Ways of one group lie close together, those of different groups apart: several ways, not one with noise. known:
    the median that PAPER.md tells."""
    env, ratios = robosuite_setup.make(envs.find_task(task).source), []
    for scene in scenes:
        paths, groups = ways(env, task, scene, times)
        ratios.append(spread(paths, groups))
        shuffled = (np.random.default_rng(seed).permutation(len(groups)) for seed in range(300))
        chance = [spread(paths, [groups[i] for i in order]) for order in shuffled]
        assert len(set(groups)) >= 6 and ratios[-1] > np.quantile(chance, 0.95)
    print(f"{task}: {np.round(ratios, 2)} times farther apart between groups than within")
    assert np.median(ratios) > 1.5 and (known is None or np.median(ratios) == pytest.approx(known, abs=0.1))
    env.close()
