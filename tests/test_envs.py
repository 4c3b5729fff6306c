"""The tasks: conventions and seeds."""
import gymnasium
import numpy as np
import pytest

import envs
from config import ROBOMIMIC, TASKS, UserError


def rollout(env, seed, steps=12):
    rng = np.random.default_rng(0)
    out = [env.reset(seed=seed)[0]]
    for _ in range(steps):
        obs, reward, terminated, _, info = env.step(rng.uniform(-1, 1, env.action_space.shape))
        out.append(obs)
        assert isinstance(reward, float) and info["success"] == terminated
    return np.stack(out)


@pytest.mark.parametrize("name", ["lift", "can", "square", "cube-double-task2", "puzzle-3x3-task4"])
def test_seeds_make_episodes(name):
    """The same seed gives the same episode, in another environment and after other episodes."""
    env, fresh = envs.make(name), envs.make(name)
    a, b, again = (rollout(env, seed) for seed in (5, 6, 5))
    assert np.array_equal(a, again) and np.array_equal(a, rollout(fresh, 5)) and not np.array_equal(a[0], b[0])
    assert a.dtype == np.float32 and a.shape[1] == envs.find_task(name).obs_dim
    assert name not in ROBOMIMIC or (a[0][9:16] != 0).any()                # not the stale zeros that follow a reset
    env.close()
    fresh.close()


def test_robomimic_reward_success_and_horizon(monkeypatch):
    env = envs.make("square")
    env.reset(seed=0)
    _, reward, terminated, truncated, _ = env.step(np.zeros(7))
    assert (reward, terminated, truncated) == (-1.0, False, False)
    env.steps = env.task.horizon - 1
    assert env.step(np.zeros(7))[2:4] == (False, True)                     # the time limit truncates
    monkeypatch.setattr(env.sim, "_check_success", lambda: True)
    monkeypatch.setattr(env.sim, "reward", lambda action=None: 1.0)
    env.steps = env.task.horizon - 1
    _, reward, terminated, truncated, info = env.step(np.zeros(7))
    assert (reward, terminated, truncated, info["success"]) == (0.0, True, False, True)
    env.close()


def test_ogbench_rewards_are_the_environments_own_after_the_step():
    ours = envs.make("cube-double-task2")
    theirs = gymnasium.make("cube-double-singletask-task2-v0", success_timing="post")
    ours.reset(seed=1)
    theirs.reset(seed=1)
    goal = ours.unwrapped.task_infos[1]["goal_xyzs"]
    for step in range(3):
        for env in (ours, theirs):                                         # put one cube, then both, on their goals
            for cube in range(min(step, 2)):
                env.unwrapped._data.joint(f"object_joint_{cube}").qpos[:3] = goal[cube]
                env.unwrapped._data.joint(f"object_joint_{cube}").qvel[:] = 0
        mine, other = ours.step(np.zeros(5)), theirs.step(np.zeros(5))
        assert mine[1] == other[1] == -(2 - step) and mine[2] == other[2] == (step == 2)
        assert np.allclose(mine[0], other[0])
    ours.close()
    theirs.close()


def test_every_task_has_its_sizes_and_horizon():
    horizons = {"lift": 300, "can": 300, "square": 400, "cube-single": 200, "cube-double": 500, "cube-triple": 1000,
                "cube-quadruple": 1000, "scene": 750, "puzzle-3x3": 500, "puzzle-4x4": 500}
    width = {}
    for name in TASKS:
        t = envs.find_task(name)
        assert t.horizon == horizons[name.rsplit("-task", 1)[0]]
        if t.suite == "ogbench":
            env = envs.make(name)
            if t.source not in width:                                      # the first reset takes a second
                width[t.source] = env.reset(seed=0)[0].shape
            assert width[t.source] == (t.obs_dim,) and env.get_wrapper_attr("_max_episode_steps") == t.horizon
            env.close()
    with pytest.raises(UserError, match="did you mean 'can'"):
        envs.make("cann")


def test_seeds_of_training_evaluation_and_data_never_meet():
    training = {envs.training_seed(run, e) for run in (0, 1, 999, 123456) for e in range(0, 100_000, 997)}
    assert max(training) < envs.DATA_SEED and envs.DATA_SEED + 10**9 <= envs.EVAL_SEED
    assert envs.EVAL_SEED + 10**6 < 2**32
