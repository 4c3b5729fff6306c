"""Lines 1-2 of Algorithm 1: whole chunks, executed open loop, what enters the buffer, lost simulators, and Ctrl-C."""
import contextlib
import errno
import functools
import itertools
import multiprocessing.process
import os
import signal
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import envs
import toy
import train_online
from buffer import ReplayBuffer
from config import UserError, build
from data import read
from evaluate import mean, play
from run import algorithm
from tools.simulators import process
from tools.simulators.collector import Collector
from tools.simulators.evaluator import Evaluator
from tools.training.files import read_config, read_newest
from tools.training.saving import online_rows
from tools.training.stage import Stage


def collected(world, act, count: int) -> list:
    """The next outcomes, side by side: obs, action, reward, terminated, truncated, next_obs."""
    rows = []
    for _ in range(count):
        if not world.playing:
            world.play(act(world.obs[None])[0])
        rows.append(np.r_[world.outcome()])
    return rows


def episode(env, act, seed: int) -> list:
    """The rows that collected() must give of an episode, by a plain loop."""
    rows, obs, over, chunk = [], env.reset(seed=seed)[0], False, []
    while not over:
        chunk = chunk or [*act(torch.from_numpy(obs)[None])[0].numpy()]
        action = chunk.pop(0)
        next_obs, reward, terminated, truncated, _ = env.step(action)
        rows.append(np.r_[obs, action, reward, terminated, truncated, next_obs])
        obs, over = next_obs, terminated or truncated
    return rows


def taking_turns(task, act, count: int) -> list:
    """... and of a run of seed 7."""
    rows = []
    with contextlib.closing(envs.make(task)) as env:
        for number in itertools.count():
            rows += episode(env, act, envs.training_seed(7, number))
            if len(rows) >= count:
                return rows[:count]


def learner(task: envs.Task):
    """A policy whose chunks change with every call, as if it learned, and with the observation; reaches toy's goal."""
    generator = torch.Generator().manual_seed(4)

    def act(obs):
        noise = torch.rand(1, 3, task.action_dim, generator=generator) - 0.5
        return noise - 0.5 * obs[:, None, :task.action_dim].sign()
    return act


@pytest.mark.parametrize("name", ["toy", "cube-single-task2", "lift"])
def test_collecting_equals_taking_turns_and_goes_on_in_the_middle(name):
    """The simulator that works ahead gives what a plain loop gives, to the last bit; also where it is cut."""
    task = toy.TASK if name == "toy" else envs.find_task(name)
    act = learner(task)
    with Collector(task, 7) as world:
        rows = collected(world, act, 7)                                        # in the middle of the third chunk
    with Collector(task, 7, world.state_dict()) as world:
        rows += collected(world, act, 33)
    assert np.array_equal(rows, taking_turns(task, learner(task), 40))


def test_a_run_is_algorithm_1_step_by_step(train, tmp_path):
    """Transitions and weights of stage 2, to the last bit, by a plain loop: what chooses a chunk is the policy after
    the newest update, what it learns from includes the newest transition."""
    folder = train("run", offline_steps=0, seed=3)
    c, env, episode, over, chunk = read_config(folder)[0], envs.make("toy"), 0, True, []
    algo = algorithm(c, 3, 2, "cpu")
    algo.start_online()
    buffer = ReplayBuffer(read(tmp_path / "toy.npz", envs.find_task("toy")), c.online_steps, c.chunk, c.discount)
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
            algo.update(buffer.chunks(buffer.starts(c.batch_size, batches)))
    online = np.fromfile(folder / "online.f32", np.float32)
    assert np.array_equal(online, online_rows(buffer, 0).flatten().numpy())
    saved = read_newest(folder / "checkpoint.pt")["algorithm"]
    for network in ("actor", "actor_old", "critic", "critic_target"):
        for name, weight in getattr(algo, network).state_dict().items():
            assert torch.equal(weight, saved[network][name]), (network, name)


# ------------------------------------------------------------------------------- simulators that fail (tests/toy.py)
@pytest.fixture
def failing(tmp_path, monkeypatch):
    """A task that fails as ordered, and how to order it."""
    monkeypatch.setattr(process, "PATIENCE", 20)                               # longer than a process needs to start

    def order(*orders):
        for name in orders:
            (tmp_path / name).touch()
    return toy.failing_task(tmp_path), order


@pytest.fixture
def failing_run(train, failing, monkeypatch):
    """train(), whose simulator meets these orders in stage 2."""
    task, order = failing

    def start(out, *orders, **more):
        def ordered(*args):
            order(*orders)
            return Collector(*args)
        envs.TABLE["toy"] = task
        monkeypatch.setattr(train_online, "Collector", ordered)
        return train(out, eval_every=1000, **more)                             # or an evaluation's would meet them
    return start


LOSSES = ("start1 dies", "reset1 raises", "step4 hangs", "step5 dies", "reset2 dies")    # one simulator meets one


def test_lost_simulators_change_no_number_of_a_run(failing_run, capsys):
    whole = failing_run("whole")
    assert "was lost" not in capsys.readouterr().out
    toy.assert_same_runs(whole, failing_run("struck", *LOSSES))
    said = capsys.readouterr().out
    died = "its process ended with exit code 7"
    assert [part.split(")")[0] for part in said.split("was lost (")[1:]] == [
        died, "ValueError out of joint", "no answer in 20 seconds", died, died] and "replaced (5 of at most 5)" in said


def test_a_simulator_lost_while_it_is_brought_back_is_replaced_too_and_the_sixth_loss_is_an_error(failing):
    task, order = failing
    act = learner(task)
    with Collector(task, 7) as world:
        rows = collected(world, act, 4)
    order("start1 dies", "reset1 raises", "step3 dies", "step4 dies", "step5 raises")    # four actions are repeated
    with Collector(task, 7, world.state_dict()) as world:
        rows += collected(world, act, 18)
        assert world.lost == 5 and np.array_equal(rows, taking_turns(task, learner(task), 22))
        world.simulator.processes[0].kill()
        with pytest.raises(UserError, match="failed 6 times, the last with: its process ended with exit code -9"):
            collected(world, act, 4)


@pytest.mark.parametrize("seeds", [1, 2])
def test_where_none_comes_back_the_episode_ends_in_the_buffer(train, monkeypatch, capsys, seeds):
    """At the fifth step of the first episode: its simulator is lost, and another one gives another state."""
    outcome = Collector.outcome

    def lost(self):
        if self.episode == 0 and len(self.played) == 4:
            self.close()
            self.now = self.now + 1
        return outcome(self)
    monkeypatch.setattr(Collector, "outcome", lost)
    folders = train("run", seeds=seeds)
    for seed, folder in enumerate([folders] if seeds == 1 else folders):
        assert read_newest(folder / "checkpoint.pt")["online"]["cuts"] == [3]
        online = np.fromfile(folder / "online.f32", np.float32).reshape(40, 11)          # 40 steps, none less
        assert np.array_equal(online[4, :3], envs.make("toy").reset(seed=envs.training_seed(seed, 1))[0])
        assert online[3, 7] == 1 == online[3, 6]         # terminals: what follows is another episode; masks: no success
    assert capsys.readouterr().out.count("does not come back to where it was") == seeds


def test_a_start_that_never_answers_counts_as_hung(monkeypatch):
    monkeypatch.setattr(process, "PATIENCE", 0.2)
    task = envs.Task("slow", "own", "", 3, 2, 1, factory=functools.partial(time.sleep, 10_000))
    with pytest.raises(UserError, match="6 times, the last with: no answer in 0.2 seconds"):
        Collector(task, 7).obs


def test_a_process_that_cannot_be_started_counts_as_lost(monkeypatch):
    def refuse(self):
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", refuse)
    with pytest.raises(UserError, match="6 times, the last with: no process could be started: Resource temporarily"):
        Collector(toy.TASK, 7).obs


def homing(obs, generators=None, best_of=None):
    """Towards the goal, more or less, so that every episode has another length."""
    generators = generators if isinstance(generators, list) else [generators]
    noise = torch.stack([torch.rand(3, 2, generator=generator) for generator in generators])
    return -torch.as_tensor(obs[:, None, :2]).sign() * noise


def broken(*args):
    return homing(*args) * torch.tensor([[1], [float("nan")], [1]])


@pytest.mark.parametrize("act, orders, step, says", [
    (homing, ["step2 says nan"], 13, "an observation or reward of the simulator is not finite"),
    (homing, ["step2 pays inf"], 13, "an observation or reward of the simulator is not finite"),
    (broken, [], 12, "an action of the policy is not finite")])
def test_numbers_that_are_not_finite_are_an_error(failing, failing_run, monkeypatch, act, orders, step, says):
    task, order = failing
    monkeypatch.setattr(train_online, "fast_act", lambda algo: act)
    with pytest.raises(UserError, match=f"^step {step}: {says}; the last good state is .*checkpoint.pt"):
        failing_run("run", *orders)
    order(*orders)
    evaluator = Evaluator(task, 1, play)
    with pytest.raises(UserError, match=f"^{says}"):
        evaluator(act, 2)
    evaluator.close()


def test_evaluation_plays_every_episode_once_whatever_the_number_of_workers():
    episodes, env = [], envs.make(toy.TASK)
    for seed in range(envs.EVAL_SEED, envs.EVAL_SEED + 13):
        noise = torch.Generator().manual_seed(seed)
        episodes.append(np.array(episode(env, lambda obs: homing(obs, noise), seed)))
    lengths, returns, successes = zip(*((len(rows), rows[:, 5].sum(), rows[-1, 6]) for rows in episodes))
    assert len(set(lengths)) > 3 and 0 < sum(successes) < 13
    expected = {"length": np.mean(lengths), "return": np.mean(returns), "success": np.mean(successes)}
    busy = threading.Lock()

    def act(*arguments):
        assert busy.acquire(blocking=False), "two act at once"
        time.sleep(0.001)
        busy.release()
        return homing(*arguments)
    for workers in (1, 3):
        evaluator, state = Evaluator(toy.TASK, workers, play), torch.random.get_rng_state()
        for _ in range(2):                                                     # evaluating again gives the same again
            result = mean(evaluator(act, 13))
            assert {name: result[name] for name in expected} == pytest.approx(expected)
        assert torch.equal(state, torch.random.get_rng_state())                # training's generator is left alone
        evaluator.close()


def test_as_many_processes_as_cores_and_no_more_than_episodes(train, tmp_path, monkeypatch):
    monkeypatch.setattr(process.os, "sched_getaffinity", lambda _: set(range(6)))
    for text, count in (("max 100000", 6), ("250000 100000", 3), ("900000 100000", 6)):
        (tmp_path / "cpu.max").write_text(text)
        monkeypatch.setattr(process, "CGROUP", tmp_path / "cpu.max")
        assert process.cores() == count
    monkeypatch.setattr(process, "CGROUP", tmp_path / "nowhere")
    for workers, count in ((0, 2), (1, 1), (5, 2)):
        run = SimpleNamespace(config=build(dict(task="toy", data="auto", workers=workers, eval_episodes=2)))
        assert Stage(run, "offline", 1).evaluator.workers == count


def test_evaluation_gives_the_same_when_simulators_fail_and_stops_when_they_keep_failing(failing, tmp_path):
    task, order = failing
    evaluator = Evaluator(task, 2, play)
    expected = evaluator(homing, 5)
    order("reset3 raises")                                                     # that of its next episode but one
    evaluator.close()
    order("step4 hangs")
    assert evaluator(homing, 5) == expected
    processes = evaluator.simulators.processes
    processes[1].kill()
    assert evaluator(homing, 5) == expected and evaluator.simulators.processes != processes
    evaluator.close()
    assert not list(tmp_path.glob("* *")) and not any(p.is_alive() for p in processes)
    (tmp_path / "start1 raises").mkdir()                                       # stays: unlink fails, an exception too
    with pytest.raises(UserError, match="failed in three tries"):
        evaluator(homing, 5)


def test_evaluation_stops_between_chunks():
    evaluator, asked = Evaluator(toy.TASK, 1, play), []

    def act(*args):
        asked.append(1)
        return homing(*args)
    assert evaluator(act, 5, stop=lambda: len(asked) == 2) is None and len(asked) == 2
    assert evaluator.simulators is None


# ------------------------------------------------------------------------------------------------------------- Ctrl-C
STOPS = [(Evaluator, "play_all", 1, 0), (ReplayBuffer, "starts", 9, 9), (ReplayBuffer, "add", 5, 17),
         (Evaluator, "play_all", 1, 20), (ReplayBuffer, "starts", 14, 36)]     # at the nth call, stops after this step


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_run_that_is_stopped_goes_on_exactly(train, tmp_path, capsys, seeds):
    """Whatever it was doing. Seeds that run together all stop after the same step."""
    whole = train("whole", seeds=seeds)
    for owner, name, nth, step in STOPS:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
            toy.ring(patch, owner, name, (nth - 1) * seeds + 1)                # while the first seed is at it
            train("cut", seeds=seeds, resume=True)
        assert end.value.code == 130
        assert capsys.readouterr().out.count(f"stopped at step {step} and saved; continue with:") == seeds
        assert [read_newest(path)["step"] for path in tmp_path.glob("cut/**/checkpoint.pt")] == [step] * seeds
    again = train("cut", seeds=seeds, resume=True)
    for one, two in zip(whole, again) if seeds > 1 else [(whole, again)]:
        toy.assert_same_runs(one, two)


def test_a_second_ctrl_c_waits_for_nothing(failing_run, tmp_path, monkeypatch):
    """Neither for a simulator that hangs nor for a checkpoint: the last one stands."""
    whole, before = failing_run("whole"), signal.getsignal(signal.SIGINT)

    def ring_twice():
        for there in (True, False):                                            # until the simulator has read its order
            while (tmp_path / "step1 hangs").exists() != there:
                time.sleep(0.02)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)
    threading.Thread(target=ring_twice, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        failing_run("cut", "step1 hangs")
    assert signal.getsignal(signal.SIGINT) is before
    assert read_newest(next(tmp_path.glob("cut/**/checkpoint.pt")))["step"] == 12
    toy.assert_same_runs(whole, failing_run("cut", resume=True))
