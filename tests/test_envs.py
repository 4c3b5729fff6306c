"""The tasks: conventions, seeds, and rollouts that do not depend on the number of processes."""
import gymnasium
import numpy as np
import pytest
import torch

import envs
from config import ROBOMIMIC, TASKS, UserError
from tools.simulators.evaluator import Evaluator
from tools.simulators.process import Simulators


def rollout(name, seed, steps=12):
    env = envs.make(name)
    rng = np.random.default_rng(0)
    out = [env.reset(seed=seed)[0]]
    for _ in range(steps):
        obs, reward, terminated, truncated, info = env.step(rng.uniform(-1, 1, env.action_space.shape))
        out.append(obs)
        assert isinstance(reward, float) and info["success"] == terminated
    env.close()
    return np.stack(out)


@pytest.mark.parametrize("name", ["lift", "square", "cube-double-task2", "puzzle-3x3-task4"])
def test_seeds_make_episodes(name):
    a, b, c = rollout(name, 5), rollout(name, 5), rollout(name, 6)
    assert np.array_equal(a, b) and not np.array_equal(a[0], c[0])
    assert a.dtype == np.float32 and a.shape[1] == envs.task(name).obs_dim
    assert name not in ROBOMIMIC or (a[0][9:16] != 0).any()                # not the stale zeros that follow a reset


def test_reset_after_other_episodes_is_the_same_episode():
    env = envs.make("can")
    first = env.reset(seed=3)[0]
    for _ in range(5):
        env.step(np.ones(7))
    env.reset(seed=4)
    assert np.array_equal(first, env.reset(seed=3)[0])
    env.close()


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
        t = envs.task(name)
        assert t.horizon == horizons[name.rsplit("-task", 1)[0]]
        if t.suite == "ogbench":
            env = envs.make(name)
            if t.source not in width:                                      # the first reset takes a second
                width[t.source] = env.reset(seed=0)[0].shape
            assert width[t.source] == (t.obs_dim,) and env.get_wrapper_attr("_max_episode_steps") == t.horizon
            env.close()
    with pytest.raises(UserError, match="did you mean 'can'"):
        envs.make("cann")


class Seeded(gymnasium.Env):
    """Length, reward and success depend on the episode's seed and on the actions; the observation counts."""
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        self.n, self.length = 0, 2 + (seed * 7) % 11
        return np.full(1, seed % 1000, np.float32), {}

    def step(self, action):
        self.n += 1
        over = self.n >= self.length
        success = over and self.length % 2 == 0
        return np.full(1, self.n, np.float32), float(action.sum()), success, over and not success, {"success": success}


def make_seeded(name="any"):
    return Seeded()


def test_chunks_run_open_loop_and_stop_with_the_episode():
    simulators = Simulators(make_seeded, 1)
    for seed, answers in ((11, 2), (4, 3)):                                # over after two steps, and after eight
        simulators.send(0, "reset", seed)
        simulators.send(0, "play", np.array([[1, 0], [2, 0], [4, 0]]))
        assert simulators.receive(0)[0] == seed
        seen = [simulators.receive(0) for _ in range(answers)]
        assert [(obs[0], reward) for obs, reward, *_ in seen] == [(1, 1), (2, 2), (3, 4)][:answers]
        assert [terminated for _, _, terminated, *_ in seen] == [False, seed == 11, False][:answers]
    simulators.close()


def test_evaluation_plays_every_episode_once_whatever_the_number_of_workers():
    episodes, chunk = 13, 3

    def act(obs, generators, best_of):
        return torch.stack([torch.rand(chunk, 2, generator=g) * 2 - 1 for g in generators])
    lengths, returns = [], []
    for i in range(episodes):                                              # by hand, one after the other
        generator, env = torch.Generator().manual_seed(envs.EVAL_SEED + i), Seeded()
        env.reset(seed=envs.EVAL_SEED + i)
        total, over = 0.0, False
        while not over:
            for action in act(None, [generator], None)[0].numpy():
                _, reward, terminated, truncated, _ = env.step(action)
                total, over = total + reward, terminated or truncated
                if over:
                    break
        lengths.append(env.n)
        returns.append(total)
    assert len(set(lengths)) > 3
    for workers in (1, 3):
        evaluator = Evaluator("any", workers, make_seeded)
        state = torch.random.get_rng_state()
        for _ in range(2):                                                 # evaluating again gives the same again
            result = evaluator(act, episodes)
            assert result["length"] == np.mean(lengths) and result["success"] == np.mean([n % 2 == 0 for n in lengths])
            assert abs(result["return"] - np.mean(returns)) < 1e-5
        assert torch.equal(state, torch.random.get_rng_state())             # training's random numbers are not touched
        evaluator.close()
