"""Lines 1-2 of Algorithm 1: whole chunks, executed open loop, what enters the buffer, and stopping in the middle."""
import functools
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch

import envs
import train_online
from data import ReplayBuffer


class ThreeSteps(gymnasium.Env):
    """Ends after three steps, by success after an odd seed and by the time limit after an even one. obs = (seed, step)."""
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        self.seed, self.n = seed, 0
        return np.array([seed, 0.0], np.float32), {}

    def step(self, action):
        self.n += 1
        success = self.n == 3 and self.seed % 2 == 1
        return np.array([self.seed, self.n], np.float32), float(action[0]), success, self.n == 3 and not success, {}


def parts(act, obs_dim=2, action_dim=1, task="x", seed=7):
    """What a Collector uses of a run, with four rows of data."""
    width = {"observations": (obs_dim,), "next_observations": (obs_dim,), "actions": (action_dim,)}
    dataset = {name: np.zeros((4, *width.get(name, ())), np.float32)
               for name in ("observations", "actions", "rewards", "masks", "terminals", "next_observations")}
    dataset["terminals"][-1] = 1
    return SimpleNamespace(config=SimpleNamespace(task=task, seed=seed), algo=SimpleNamespace(act=act), acting=None, episode=0,
                           buffer=ReplayBuffer(dataset, 300, 2, 0.9))


def test_chunks_are_executed_whole_and_die_with_their_episode(monkeypatch):
    monkeypatch.setattr(envs, "in_background", lambda name: envs.in_processes(ThreeSteps, 1))
    asked = []

    def act(obs, generator):
        asked.append(obs[0].tolist())
        return 10.0 * len(asked) + torch.arange(2.0).reshape(1, 2, 1)          # chunk number and position in it
    t = parts(act)
    collector = train_online.Collector(t)
    for _ in range(9):
        collector.step()
    envs.end_processes(collector.env)
    rows = {name: array[: t.buffer.size - 4].tolist() for name, array in t.buffer.online.items()}
    seeds = [envs.training_seed(7, e) for e in range(3)]
    # asked at steps 0 and 2 of each episode; the second chunk's second action is thrown away with the episode
    assert asked == [[seed, n] for seed in np.float32(seeds) for n in (0, 2)]
    assert [a[0] for a in rows["actions"]] == [10, 11, 20, 30, 31, 40, 50, 51, 60] == rows["rewards"]
    assert rows["observations"] == [[seed, n] for seed in np.float32(seeds) for n in range(3)]
    assert rows["next_observations"] == [[seed, n + 1] for seed in np.float32(seeds) for n in range(3)]
    won = [seed % 2 for seed in seeds]
    assert rows["terminals"] == [0, 0, 1] * 3 and rows["masks"] == [m for w in won for m in (1, 1, 1 - w)]
    assert t.episode == 4                                                      # the fourth has been sent for


@pytest.mark.parametrize("task", ["cube-single-task2", "lift"])
def test_collecting_equals_taking_turns_and_goes_on_in_the_middle(task):
    """The simulator that works ahead gives what a plain loop gives, to the last bit; so does a run cut after 7 steps."""
    obs_dim, action_dim, chunk = envs.task(task).obs_dim, envs.task(task).action_dim, 3

    def act(calls, obs, generator):                                            # changes with every call and observation
        calls.append(0)
        noise = np.random.default_rng(len(calls)).uniform(-1, 1, (1, chunk, action_dim)).astype(np.float32)
        return torch.from_numpy(0.5 * noise + 0.1 * np.sin(obs.sum()))

    calls, rows, episode, env = [], [], 0, envs.make(task)
    while len(rows) < 20:
        obs, over, episode = env.reset(seed=envs.training_seed(7, episode))[0], False, episode + 1
        while not over and len(rows) < 20:
            for action in act(calls, obs[None], None)[0].numpy():
                next_obs, reward, terminated, truncated, _ = env.step(action)
                rows.append(np.r_[obs, action, reward, next_obs])
                obs, over = next_obs, terminated or truncated
                if over:
                    break
    env.close()

    calls = []
    first = parts(functools.partial(act, calls), obs_dim, action_dim, task)
    collector = train_online.Collector(first)
    for _ in range(7):                                                         # in the middle of the third chunk
        collector.step()
    state, kept = collector.state_dict(), first.buffer.online_rows(0)
    envs.end_processes(collector.env)
    t = parts(functools.partial(act, calls), obs_dim, action_dim, task)
    t.buffer.load_online(kept, [])
    t.episode = first.episode
    collector = train_online.Collector(t, state)
    for _ in range(13):
        collector.step()
    envs.end_processes(collector.env)
    found = [t.buffer.online[name][:20].reshape(20, -1).numpy() for name in ("observations", "actions", "rewards", "next_observations")]
    assert np.array_equal(np.concatenate(found, 1), np.float32(rows[:20]))


def test_seeds_of_training_evaluation_and_data_never_meet():
    training = {envs.training_seed(run, e) for run in (0, 1, 999, 123456) for e in range(0, 100_000, 997)}
    assert max(training) < envs.DATA_SEED and envs.DATA_SEED + 10**9 <= envs.EVAL_SEED and envs.EVAL_SEED + 10**6 < 2**32
