"""The main job: offline to online  (Alg. 1). Starts from stage 1's checkpoint, or runs stage 1 first when there is none.

    python train_online.py --task square                        the paper's 1M + 1M steps
    python train_online.py --task square --preset quick         the same algorithm, small: minutes on a laptop CPU
"""
import collections
import functools
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import config as config_module
import envs
import train_offline
from config import UserError
from tools import command_line, states
from tools.graph import acting
from tools.simulators import SimulatorLost, Simulators
from train_offline import Interrupted, loop, offline_stage, one_update, prepare_all, saying_where


class Collector:
    """Lines 1-2 of Algorithm 1, one environment step at a time: whole chunks, executed open loop.

    The simulator has a process of its own and works while the update runs: once a step's outcome is there, the chunk's
    next action is sent off, or the next reset. Only where a new chunk begins does it wait, because that one is chosen by
    the policy after the newest update. So every number is the same as if the two took turns.
    """

    def __init__(self, t, state: dict | None = None, act=None):
        """state: a Collector's state_dict(), to go on in the middle of an episode. act: what stands in for the algorithm's."""
        state = state or {"first": None, "chunk": []}
        self.t, self.simulator, self.lost = t, None, 0
        self.act = act or t.algo.act
        self.first = state["first"]                              # row of the buffer where this episode begins; None: none has begun
        self.chunk = collections.deque(action.numpy() for action in state["chunk"])      # chosen actions, not stored yet

    def state_dict(self) -> dict:
        return {"first": self.first, "chunk": [torch.from_numpy(action) for action in self.chunk]}

    def step(self) -> None:
        """One environment step: one new transition in the buffer."""
        outcome = None
        while outcome is None:
            try:
                outcome = self.outcome()
            except SimulatorLost as error:                  # at whatever call, here and nowhere else
                self.t.busy = True
                self.give_up_episode(error)
        next_obs, reward, terminated, truncated, _ = outcome
        over, obs, action = terminated or truncated, self.obs, self.chunk.popleft()
        if self.chunk and not over:
            self.send_action()                                   # first of all: the simulator is what a fast GPU waits for
        self.obs = next_obs
        self.t.buffer.add(obs, action, reward, terminated, truncated, next_obs)                         # line 2
        if over:
            self.chunk.clear()                                   # what is left of a chunk dies with its episode
            self.new_episode()

    def outcome(self) -> tuple:
        """What the first action of self.chunk leads to, which is chosen here where a chunk begins."""
        if self.simulator is None:
            self.start()
        if self.obs is None:
            self.obs = self.answer()[0]
        if not self.chunk:                                       # line 1: the best of N' samples by Q_phi
            self.chunk.extend(self.act(self.obs[None], self.t.acting)[0].cpu().numpy())
            self.send_action()
        return self.answer()

    def answer(self) -> tuple:
        self.t.busy = False                                      # nothing is half done while it waits, perhaps for a simulator
        if self.t.interrupt:                                     # that hangs: Ctrl-C may end the run here
            raise Interrupted
        answer = self.simulator.answers()[0]
        self.t.busy = True
        return answer

    def send_action(self) -> None:
        self.simulator.send(0, "step", self.chunk[0])

    def new_episode(self) -> None:
        self.first, self.t.episode = self.t.buffer.size, self.t.episode + 1
        self.send_reset()

    def send_reset(self) -> None:                                # every episode has a seed of its own
        self.obs = None
        self.simulator.send(0, "reset", envs.training_seed(self.t.config.seed, self.t.episode - 1))

    def start(self) -> None:
        """A simulator; a resumed run replays its episode's actions from its seed to come back to the same state."""
        t, online = self.t, self.t.buffer.online
        self.simulator = Simulators(functools.partial(envs.make, envs.task(t.config.task)), 1)
        if self.first is None:
            return self.new_episode()
        self.send_reset()
        rows = range(self.first - t.buffer.offline_size, t.buffer.size - t.buffer.offline_size)
        for row in rows:
            self.answer()                                        # the reset's, then each action's
            self.simulator.send(0, "step", t.buffer.fields(online["steps"][row])["actions"].cpu().numpy())
        if rows or self.chunk:
            self.obs = self.answer()[0]
            if rows and not np.array_equal(self.obs, online["next_observations"][rows[-1]].cpu().numpy()):
                tqdm.write("the simulator does not come back to where it was (another version, another CPU?): a new episode begins")
                self.cut()
                return self.new_episode()
            if self.chunk:
                self.send_action()

    def cut(self) -> None:
        """The episode ends here. What it has given stays in the buffer, marked as cut."""
        self.chunk.clear()
        if self.first is not None and self.t.buffer.size > self.first:
            self.t.buffer.end_episode()
        self.first = None

    def give_up_episode(self, error: SimulatorLost) -> None:
        """After a loss: the next outcome() starts another simulator, and in it a new episode."""
        self.lost += 1
        self.close()
        self.cut()
        if self.lost > 5:
            states.save(self.t)
            raise UserError(f"{self.t.config.task}'s simulator failed {self.lost} times, the last with: {error}")
        tqdm.write(f"step {self.t.step}: the simulator was lost ({error}) and is replaced ({self.lost} of at most 5)")

    def close(self) -> None:
        if self.simulator is not None:
            self.simulator.close()
            self.simulator = None


def online_stage(t):
    """Stage 2, from where the run stands: a generator like all stages, see train_offline.loop."""
    c = t.config
    t.collector = collector = Collector(t, t.collecting, acting(t.algo))

    def one_step():
        with saying_where(t):
            collector.step()
        if t.step < c.offline_steps + c.warmup:                  # the first steps only collect, as released
            t.starts = None
            return (yield)
        return (yield from one_update(t))                                                        # lines 3-7
    try:
        yield from loop(t, "online", c.offline_steps + c.online_steps, one_step)
    finally:
        collector.close()


def take_offline(t) -> bool:
    """Loads stage 1 from this folder's offline.pt or a sibling's -> whether there was one."""
    siblings = sorted(Path(t.config.out).glob(f"{t.config.task}/*/*/*/seed{t.config.seed}/offline.pt"))
    path, state = next(((path, state) for path in [t.run.offline, *siblings] if (state := states.offline_state(t, path))), (None, None))
    if path is None:
        return False
    t.algo.load_state_dict(state["algorithm"])
    t.step = state["step"]
    t.run.cut_rows_after(t.step)
    if path != t.run.offline:
        print(f"stage 1 taken from {path}")
        t.run.take_rows(path.parent, t.step)
    return True


def train(**knobs):
    """From Python what the command line does: train(task="lift", preset="quick", seed=1) -> the run's folder (with seeds=5: all)."""
    knobs = {"resume": "--resume" in sys.argv} | knobs          # the line that an interrupted run prints works for your script too
    return run_all(config_module.build(knobs), set(knobs))


def both_stages(t):
    if t.stage == "offline":
        if not take_offline(t):
            yield from offline_stage(t)
        t.algo.start_online()
        t.batches.manual_seed(t.config.seed + 3)     # so that a run from a sibling's stage 1 equals one that ran it itself
    yield from online_stage(t)


def outlast_warmup(c, instead: str = "") -> None:
    if c.online_steps <= c.warmup:
        raise UserError(f"--online-steps {c.online_steps} do not exceed --warmup {c.warmup}: nothing would be trained online{instead}")


def run_all(c, given: set[str]):
    outlast_warmup(c, "; the pure offline setting is python train_offline.py" if c.preset == "offline-rl" else "")
    ts = prepare_all(c, given)
    for t in ts:
        t.run.write_config()
    train_offline.train(ts, both_stages)
    for t in ts:
        final = t.run.rows("eval.csv")[-1]
        print(f"done: success {float(final['success']):.0%} over {final['episodes']} episodes; {t.run.folder}/curve.png")
    return [t.run.folder for t in ts] if len(ts) > 1 else ts[0].run.folder


def main() -> None:
    run_all(*command_line.parse(__doc__.split("\n")[0]))


if __name__ == "__main__":
    command_line.main(main)
