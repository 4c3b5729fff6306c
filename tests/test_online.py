"""Lines 1-2 of Algorithm 1: whole chunks, executed open loop, and what enters the buffer."""
from types import SimpleNamespace

import numpy as np
import torch

import envs
import train_online
from data import ReplayBuffer


class ThreeSteps:
    """Ends after three steps, by success in even episodes and by the time limit in odd ones. obs = (episode, step)."""
    seeds = []

    def reset(self, seed):
        self.seeds.append(seed)
        self.episode, self.n = len(self.seeds) - 1, 0
        return np.array([self.episode, 0.0], np.float32), {}

    def step(self, action):
        self.n += 1
        success = self.n == 3 and self.episode % 2 == 0
        return (np.array([self.episode, self.n], np.float32), float(action[0]), success, self.n == 3 and not success, {})


def test_chunks_are_executed_whole_and_die_with_their_episode(monkeypatch):
    monkeypatch.setattr(envs, "make", lambda name: ThreeSteps())
    ThreeSteps.seeds.clear()
    asked = []

    def act(obs, generator):
        asked.append(obs[0].tolist())
        return 10.0 * len(asked) + torch.arange(2.0).reshape(1, 2, 1)          # chunk number and position in it
    dataset = {name: np.zeros((4, 2) if "obs" in name else (4, 1) if name == "actions" else 4, np.float32)
               for name in ("observations", "actions", "rewards", "masks", "terminals", "next_observations")}
    buffer = ReplayBuffer(dataset, 9, 2, 0.9)
    t = SimpleNamespace(config=SimpleNamespace(task="x", seed=7), algo=SimpleNamespace(act=act), acting=None, buffer=buffer, episode=0)
    collector = train_online.Collector(t)
    for _ in range(9):
        collector.step()
    rows = {name: array[4:].tolist() for name, array in buffer.arrays.items()}
    # asked at steps 0 and 2 of each episode; the second chunk's second action is thrown away with the episode
    assert asked == [[e, n] for e in range(3) for n in (0, 2)]
    assert [a[0] for a in rows["actions"]] == [10, 11, 20, 30, 31, 40, 50, 51, 60]
    assert rows["observations"] == [[e, n] for e in range(3) for n in range(3)]
    assert rows["next_observations"] == [[e, n + 1] for e in range(3) for n in range(3)]
    assert rows["terminals"] == [0, 0, 1] * 3 and rows["masks"] == [1, 1, 0, 1, 1, 1, 1, 1, 0]
    assert ThreeSteps.seeds == [envs.training_seed(7, e) for e in range(3)] and t.episode == 3


def test_seeds_of_training_evaluation_and_data_never_meet():
    training = {envs.training_seed(run, e) for run in (0, 1, 999, 123456) for e in range(0, 100_000, 997)}
    assert max(training) < envs.DATA_SEED and envs.DATA_SEED + 10**9 <= envs.EVAL_SEED and envs.EVAL_SEED + 10**6 < 2**32
