"""The main job: offline to online  (Alg. 1). Starts from stage 1's checkpoint, or runs stage 1 first when there is none.

    python train_online.py --task square                        the paper's 1M + 1M steps
    python train_online.py --task square --preset quick         the same algorithm, small: minutes on a laptop CPU
"""
import collections
import sys

import config as config_module
import envs
import run as run_module
from config import UserError
from train_offline import interruptible, loop, offline_stage, prepare, restore


class Collector:
    """Lines 1-2 of Algorithm 1, one environment step at a time: whole chunks, executed open loop."""

    def __init__(self, t):
        self.t, self.env, self.obs, self.chunk = t, envs.make(t.config.task), None, collections.deque()

    def step(self) -> None:
        t = self.t
        if self.obs is None:                                     # every episode has a seed of its own
            self.obs, _ = self.env.reset(seed=envs.training_seed(t.config.seed, t.episode))
            t.episode += 1
        if not self.chunk:                                       # line 1: the best of N' samples by Q_phi
            self.chunk.extend(t.algo.act(self.obs[None], t.acting)[0].cpu().numpy())
        action = self.chunk.popleft()
        next_obs, reward, terminated, truncated, _ = self.env.step(action)
        t.buffer.add(self.obs, action, reward, terminated, truncated, next_obs)                  # line 2
        self.obs = next_obs
        if terminated or truncated:
            self.obs = None
            self.chunk.clear()                                   # what is left of a chunk dies with its episode


def online_stage(t) -> None:
    c, collector = t.config, Collector(t)

    def one_step():
        collector.step()
        if t.step >= c.offline_steps + c.warmup:                 # the first steps only collect, as released
            return t.algo.update(t.buffer.sample(c.batch_size, t.batches))                       # lines 3-7
    try:
        loop(t, "online", c.offline_steps + c.online_steps, one_step)
    finally:
        collector.env.close()


def take_offline(t) -> bool:
    """Loads stage 1 from this folder's offline.pt or a sibling's -> whether there was one."""
    path = t.run.find_offline()
    if path is None:
        return False
    state = run_module.read(path)
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
