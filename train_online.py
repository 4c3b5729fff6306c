"""The main job: offline to online  (Alg. 1). Starts from stage 1's checkpoint, or runs stage 1 first when there is none.

    python train_online.py --task square                        the paper's 1M + 1M steps
    python train_online.py --task square --preset quick         the same algorithm, small: minutes on a laptop CPU
"""
import collections
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import config as config_module
import envs
import run as run_module
from config import UserError
from train_offline import interruptible, loop, offline_stage, offline_state, one_update, prepare, restore


class Collector:
    """Lines 1-2 of Algorithm 1, one environment step at a time: whole chunks, executed open loop.

    The simulator has a process of its own and works while the update runs: once a step's outcome is stored, the chunk's
    next action is sent off, or the next reset. Only where a new chunk begins does it wait, because that one is chosen by
    the policy after the newest update. So every number is the same as if the two took turns.
    """

    def __init__(self, t, state: dict | None = None):
        """state: a Collector's state_dict(), to go on in the middle of an episode."""
        self.t, self.env, self.lost = t, envs.in_background(t.config.task), 0
        self.chunk = collections.deque()                         # actions that are chosen and not stored yet
        if state is None:
            self.new_episode()
        else:
            self.back_to(state)

    def step(self) -> None:
        """One environment step: one new transition in the buffer."""
        t = self.t
        if self.obs is None:
            self.obs = envs.ask(self.env.reset_wait, envs.PATIENCE)[0][0]
        if not self.chunk:                                       # line 1: the best of N' samples by Q_phi
            self.chunk.extend(t.algo.act(self.obs[None], t.acting)[0].cpu().numpy())
            self.send()
        next_obs, reward, terminated, truncated = (x[0] for x in envs.ask(self.env.step_wait, envs.PATIENCE)[:4])
        if not (np.isfinite(next_obs).all() and np.isfinite(reward)):
            raise UserError(f"step {t.step}: {t.config.task}'s simulator gave a number that is not finite; the last good "
                            f"state is {t.run.checkpoint}")
        t.buffer.add(self.obs, self.chunk.popleft(), reward, terminated, truncated, next_obs)    # line 2
        self.obs = next_obs
        if terminated or truncated:
            self.chunk.clear()                                   # what is left of a chunk dies with its episode
            self.new_episode()
        elif self.chunk:
            self.send()

    def send(self) -> None:
        envs.ask(self.env.step_async, self.chunk[0][None])

    def new_episode(self) -> None:
        t = self.t                                               # every episode has a seed of its own
        self.obs, self.first, t.episode = None, t.buffer.size, t.episode + 1
        envs.ask(self.env.reset_async, seed=[envs.training_seed(t.config.seed, t.episode - 1)])

    def replace(self, error: envs.SimulatorLost) -> None:
        """Another simulator for one that was lost. What its episode has given stays, marked as cut; a new one begins."""
        self.lost += 1
        if self.lost > 5:
            raise UserError(f"{self.t.config.task}'s simulator failed {self.lost} times, the last with: {error}")
        tqdm.write(f"step {self.t.step}: the simulator was lost ({error}) and is replaced, for the {self.lost}. time of at most 5")
        envs.end_processes(self.env)
        self.t.buffer.end_episode()
        self.chunk.clear()
        self.env = envs.in_background(self.t.config.task)
        self.new_episode()

    # ---- stopping and going on in the middle of an episode: from its seed, its actions lead to the same state again
    def state_dict(self) -> dict:
        return {"first": self.first, "chunk": [torch.from_numpy(action) for action in self.chunk]}

    def back_to(self, state: dict) -> None:
        t, stored = self.t, self.t.buffer.online
        t.episode -= 1
        self.new_episode()
        self.first, end = state["first"], t.buffer.size - t.buffer.offline_size
        for row in range(self.first - t.buffer.offline_size, end):
            self.obs = self.env.reset_wait()[0][0] if self.obs is None else self.obs
            self.obs = self.env.step(stored["actions"][row : row + 1].cpu().numpy())[0][0]
        if self.obs is not None and not np.array_equal(self.obs, stored["next_observations"][end - 1].cpu().numpy()):
            print("the simulator does not come back to where it was (another version, another CPU?): a new episode begins")
            t.buffer.end_episode()
            self.new_episode()
            return
        self.chunk.extend(action.numpy() for action in state["chunk"])
        if self.chunk:
            self.send()


def online_stage(t) -> None:
    c = t.config
    t.collector = collector = Collector(t, t.collecting)

    def one_step():
        while True:
            try:
                collector.step()
                break
            except envs.SimulatorLost as error:
                collector.replace(error)
        if t.step >= c.offline_steps + c.warmup:                 # the first steps only collect, as released
            return one_update(t)                                                                 # lines 3-7
    try:
        loop(t, "online", c.offline_steps + c.online_steps, one_step)
    finally:
        envs.end_processes(collector.env)


def take_offline(t) -> bool:
    """Loads stage 1 from this folder's offline.pt or a sibling's -> whether there was one."""
    siblings = sorted(Path(t.config.out).glob(f"{t.config.task}/*/*/*/seed{t.config.seed}/offline.pt"))
    path, state = next(((path, state) for path in [t.run.offline, *siblings] if (state := offline_state(t, path))), (None, None))
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
    """From Python what the command line does: train(task="lift", preset="quick", seed=1) -> the run's folder."""
    knobs = {"resume": "--resume" in sys.argv} | knobs          # the line that an interrupted run prints works for your script too
    return both_stages(config_module.build(knobs), set(knobs))


def both_stages(c, given: set[str]):
    if c.online_steps <= c.warmup:
        raise UserError(f"--online-steps {c.online_steps} do not exceed --warmup {c.warmup}: nothing would be trained online"
                        + ("; the pure offline setting is python train_offline.py" if c.preset == "offline-rl" else ""))
    t = prepare(c, given)
    restore(t)
    t.run.write_config()
    with interruptible(t):
        if t.stage == "offline":
            if not take_offline(t):
                offline_stage(t)
            t.algo.start_online()
            t.batches.manual_seed(c.seed + 3)        # so that a run from a sibling's stage 1 equals one that ran it itself
        online_stage(t)
    final = t.run.rows("eval.csv")[-1]
    print(f"done: success {float(final['success']):.0%} over {final['episodes']} episodes; {t.run.folder}/curve.png")
    return t.run.folder


def main() -> None:
    both_stages(*config_module.parse(__doc__.split("\n")[0]))


if __name__ == "__main__":
    config_module.main(main)
