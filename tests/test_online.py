"""Lines 1-2 of Algorithm 1: whole chunks, executed open loop, what enters the buffer, and stopping in the middle."""
import copy
import functools
import os
import signal
import threading
import time
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch

import envs
import run
import toy
import train_offline
import train_online
from config import UserError
from data import ReplayBuffer, read
from tools import simulators, states


class ThreeSteps(gymnasium.Env):
    """Ends after three steps, by success after an odd seed and by the time limit after an even one. obs = (seed, step)."""
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        self.seed, self.n = seed, 0
        return np.array([seed, 0.0], np.float32), {}

    def step(self, action):
        self.n += 1
        assert self.n <= 3, "stepped after its episode's end"
        success = self.n == 3 and self.seed % 2 == 1
        return np.array([self.seed, self.n], np.float32), float(action[0]), success, self.n == 3 and not success, {}


def parts(act, obs_dim=2, action_dim=1, task="lift", seed=7):
    """What a Collector uses of a run, with four rows of data."""
    width = {"observations": (obs_dim,), "next_observations": (obs_dim,), "actions": (action_dim,)}
    dataset = {name: np.zeros((4, *width.get(name, ())), np.float32)
               for name in ("observations", "actions", "rewards", "masks", "terminals", "next_observations")}
    dataset["terminals"][-1] = 1
    return SimpleNamespace(config=SimpleNamespace(task=task, seed=seed), algo=SimpleNamespace(act=act), acting=None, episode=0,
                           step=0, run=None, busy=False, interrupt=False, asked=False,
                           buffer=ReplayBuffer(dataset, 300, 2, 0.9))


def online(t):
    """What t's buffer holds of its own, by field."""
    return t.buffer.transitions(torch.arange(4, t.buffer.size))


def stored(t):
    """obs, action, reward, next_obs of each, side by side."""
    return np.concatenate([online(t)[n].reshape(t.buffer.size - 4, -1) for n in ("observations", "actions", "rewards", "next_observations")], 1)


def test_chunks_are_executed_whole_and_die_with_their_episode(monkeypatch):
    monkeypatch.setattr(envs, "make", lambda task: ThreeSteps())
    asked = []

    def act(obs, generator):
        asked.append(obs[0].tolist())
        return 10.0 * len(asked) + torch.arange(2.0).reshape(1, 2, 1)          # chunk number and position in it
    t = parts(act)
    collector = train_online.Collector(t)
    for _ in range(9):
        collector.step()
    collector.close()
    rows = {name: array.tolist() for name, array in online(t).items()}
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
    collector.close()
    t = parts(functools.partial(act, calls), obs_dim, action_dim, task)
    t.buffer.load_online(kept, [])
    t.episode = first.episode
    collector = train_online.Collector(t, state)
    for _ in range(13):
        collector.step()
    collector.close()
    assert np.array_equal(stored(t), np.float32(rows[:20]))


def test_a_run_is_algorithm_1_step_by_step(train, tmp_path):
    """Transitions and weights of stage 2, to the last bit, by a plain loop: what chooses a chunk is the policy after the newest
    update, what it learns from includes the newest transition."""
    folder = train("run", offline_steps=0, seed=3)
    c, env, episode, over, chunk = run.read_config(folder)[0], envs.make("toy"), 0, True, []
    algo = run.algorithm(c, 3, 2, torch.device("cpu"))
    algo.start_online()
    buffer = ReplayBuffer(read(tmp_path / "toy.npz", envs.task("toy")), c.online_steps, c.chunk, c.discount)
    acting, batches = (torch.Generator().manual_seed(c.seed + k) for k in (2, 3))
    for step in range(c.online_steps):
        if over:
            obs, episode, chunk = env.reset(seed=envs.training_seed(c.seed, episode))[0], episode + 1, []
        chunk = chunk or list(algo.act(obs[None], acting)[0].numpy())
        action = chunk.pop(0)
        next_obs, reward, terminated, truncated, _ = env.step(action)
        buffer.add(obs, action, reward, terminated, truncated, next_obs)
        obs, over = next_obs, terminated or truncated
        if step >= c.warmup:
            algo.update(buffer.sample(c.batch_size, batches))
    assert np.array_equal(np.fromfile(folder / "online.f32", np.float32), buffer.online_rows(0).flatten().numpy())
    saved = run.read_newest(folder / "checkpoint.pt")["algorithm"]
    for network in ("actor", "actor_old", "critic", "critic_target"):
        assert all(torch.equal(p, saved[network][name]) for name, p in getattr(algo, network).state_dict().items()), network


# ------------------------------------------------------------------------------------- simulators that fail (tests/toy.py)
def toy_rows(episode, count, act):
    """The first transitions of an episode of toy, by hand: obs, action, reward, next_obs side by side."""
    env, rows = envs.OwnEnv(toy.TASK), []
    obs, _ = env.reset(seed=envs.training_seed(7, episode))
    while len(rows) < count:
        for action in act(obs[None], None)[0].numpy():
            next_obs, reward, terminated, truncated, _ = env.step(action)
            rows.append(np.r_[obs, action, reward, next_obs])
            obs = next_obs
            if terminated or truncated:
                return rows[:count]
    return rows[:count]


def steady(obs, generator, best_of=None):
    """Moves away from the goal, so that no episode is short."""
    return torch.sign(torch.as_tensor(obs[:, None, :2]) + 1e-3).expand(-1, 3, 2) * 0.3


@pytest.fixture
def failing(tmp_path, monkeypatch):
    """A Collector's parts on a task that fails as ordered, and how to order it."""
    monkeypatch.setattr(simulators, "PATIENCE", 3)
    monkeypatch.setattr(envs, "make", functools.partial(lambda folder, task: toy.make_failing(folder), str(tmp_path)))
    t = parts(steady, 3, 2)
    t.saved = []                                                               # the collector's states, copied as a file would
    monkeypatch.setattr(states, "save", lambda t: t.saved.append(copy.deepcopy(t.collector.state_dict())))
    t.run = SimpleNamespace(checkpoint=tmp_path / "checkpoint.pt")
    return t, lambda *orders: [(tmp_path / order).touch() for order in orders]


def test_lost_simulators_are_replaced_and_no_transition_is_stored_twice_or_lost(failing, capsys):
    t, order = failing
    t.collector = collector = train_online.Collector(t)
    order("start1 dies", "reset1 raises", "step4 hangs", "step5 dies", "reset2 dies")        # one process after another meets one
    for _ in range(21):
        collector.step()
    expected = [row for episode, count in ((2, 3), (3, 4), (4, 13), (6, 1)) for row in toy_rows(episode, count, steady)]
    assert np.array_equal(stored(t), np.float32(expected))
    assert t.buffer.cuts == [2, 6] and online(t)["terminals"].tolist() == [float(i in (2, 6, 19)) for i in range(21)]
    said = capsys.readouterr().out
    assert [part.split(")")[0] for part in said.split("was lost (")[1:]] == [
        "its process ended with exit code 7", "ValueError out of joint", "no answer in 3 seconds", "its process ended with exit code 7",
        "its process ended with exit code 7"] and "is replaced (5 of at most 5)" in said
    collector.simulator.processes[0].kill()                                    # the sixth
    with pytest.raises(UserError, match="failed 6 times, the last with: its process ended with exit code -9"):
        for _ in range(3):
            collector.step()
    assert t.saved == [{"first": None, "chunk": []}] and t.buffer.cuts == [2, 6, t.buffer.size - 5]      # nothing collected is lost


@pytest.mark.parametrize("where", ["start1", "reset1", "step1", "step4", "step7"])
def test_ctrl_c_need_not_wait_for_a_simulator_that_hangs(failing, where, tmp_path, monkeypatch, capsys):
    """It is saved as it stands: between a chunk's choice and its first outcome, or in the middle of a chunk."""
    t, order = failing
    monkeypatch.setattr(simulators, "PATIENCE", 60)
    monkeypatch.setattr(simulators, "START_PATIENCE", 60)
    asked = []
    t.algo.act = lambda obs, generator: asked.append(0) or steady(obs, generator) * (1 + len(asked) / 10)      # as if it learned
    t.config.data, t.run.lock, t.evaluator = "toy.npz", SimpleNamespace(close=int), SimpleNamespace(close=int)
    order(f"{where} hangs")

    def ring():
        while (tmp_path / f"{where} hangs").exists():                          # until the simulator has read its order
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)
    t.collector = train_online.Collector(t)
    with pytest.raises(SystemExit), train_offline.interruptible([t]):
        threading.Thread(target=ring).start()
        for _ in range(9):
            t.busy = True
            t.collector.step()
            t.busy = False
    t.collector.close()
    assert "stopped at step 0 and saved" in capsys.readouterr().out and len(t.saved) == 1
    t.interrupt = False
    t.collector = train_online.Collector(t, t.saved[0])
    while t.buffer.size < 4 + 9:
        t.collector.step()
    t.collector.close()
    asked.clear()
    assert np.array_equal(stored(t), np.float32(toy_rows(0, 9, t.algo.act))) and t.buffer.cuts == []


def test_a_simulator_lost_while_it_is_brought_back_costs_its_episode_only(failing):
    t, order = failing
    first = train_online.Collector(t)
    for _ in range(4):
        first.step()
    state = first.state_dict()
    first.close()
    order("step3 dies")                                                        # while its four actions are repeated
    collector = train_online.Collector(t, state)
    collector.step()
    collector.close()
    assert t.buffer.cuts == [3] and collector.lost == 1
    assert np.array_equal(stored(t), np.float32(toy_rows(0, 4, steady) + toy_rows(1, 1, steady)))


def test_a_start_that_never_answers_counts_as_hung(failing, monkeypatch):
    t, _ = failing
    monkeypatch.setattr(simulators, "START_PATIENCE", 0.2)
    monkeypatch.setattr(envs, "make", lambda task: time.sleep(10_000))
    t.collector = train_online.Collector(t)
    with pytest.raises(UserError, match="failed 6 times, the last with: no answer in 0.2 seconds"):
        t.collector.step()


def test_a_process_that_cannot_be_started_counts_as_lost(failing, monkeypatch):
    import errno
    import multiprocessing.process

    def refuse(self):
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", refuse)
    t, _ = failing
    t.collector = train_online.Collector(t)
    with pytest.raises(UserError, match="failed 6 times, the last with: no process could be started: Resource"):
        t.collector.step()


@pytest.mark.parametrize("failure, says", [("step2 says nan", "observation or reward"), ("step2 pays inf", "observation or reward"),
                                          (None, "action of the policy")])
def test_numbers_that_are_not_finite_stop_collecting_and_evaluating(failing, tmp_path, failure, says):
    t, order = failing
    t.run.checkpoint.touch()
    if failure:
        order(failure)
    else:
        t.algo.act = lambda obs, generator, best_of=None: steady(obs, generator) * torch.tensor([[[1.0], [float("nan")], [1]]])
    collector = train_online.Collector(t)
    with pytest.raises(UserError, match=f"step 0: an {says}.* not finite; the last good state is .*checkpoint.pt"):
        for _ in range(2):
            with train_offline.saying_where(t):
                collector.step()
    collector.close()
    assert t.buffer.size - 4 <= 1
    if failure:
        order(failure)
    with pytest.raises(UserError, match=says):
        evaluator = envs.Evaluator(str(tmp_path), 3, 1, toy.make_failing)
        evaluator(t.algo.act, 2)
    evaluator.close()


def test_evaluation_gives_the_same_when_simulators_fail_and_stops_when_they_keep_failing(failing, tmp_path):
    t, order = failing
    evaluator = envs.Evaluator(str(tmp_path), 3, 2, toy.make_failing)
    expected = evaluator(steady, 5)
    order("reset3 raises")                                                     # that of its next episode but one
    evaluator.close()
    order("step4 hangs")
    assert evaluator(steady, 5) == expected
    processes = evaluator.simulators.processes
    processes[1].kill()
    assert evaluator(steady, 5) == expected and evaluator.simulators.processes != processes
    evaluator.close()
    assert not list(tmp_path.glob("* *")) and not any(p.is_alive() for p in processes)
    (tmp_path / "start1 raises").mkdir()                                       # stays: unlink fails, which is an exception too
    with pytest.raises(UserError, match="failed in three tries"):
        evaluator(steady, 5)


def test_seeds_of_training_evaluation_and_data_never_meet():
    training = {envs.training_seed(run, e) for run in (0, 1, 999, 123456) for e in range(0, 100_000, 997)}
    assert max(training) < envs.DATA_SEED and envs.DATA_SEED + 10**9 <= envs.EVAL_SEED and envs.EVAL_SEED + 10**6 < 2**32
