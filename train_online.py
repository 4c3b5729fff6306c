"""Algorithm 1, offline to online: the main job. Starts from stage 1's checkpoint, or runs stage 1 first.

    python train_online.py --task square                        the paper's 1M + 1M steps
    python train_online.py --task square --preset quick         the same algorithm, small: under an hour on a laptop

Read online_stage(): its loop is Algorithm 1, one environment step and one update at a time. (--seeds 5 does not run it,
but one of the same shape in tools/speed/seeds.py.)

    line 1   observe s, draw N' actions from pi_theta, execute the best by Q_phi     here, and dfp.DFP.act
    line 2   append the transition to D, which starts as the offline data            here, and buffer.py
    line 3   sample a mini-batch of D                                                here, and buffer.py
    line 4   draw samples of pi_theta and candidates of pi_old, keep the top K       dfp.DFP.actor_loss
    line 5   step theta on L_BC + lambda L_topK                                      dfp.DFP.actor_loss, gradient_step
    line 6   step phi on the Bellman error                                           dfp.DFP.critic_loss, gradient_step
    line 7   pi_old follows pi_theta                                                 dfp.DFP.gradient_step
"""
from pathlib import Path

from config import Config, build
from run import Run
from tools.checks import end_in_one_line
from tools.simulators.collector import Collector
from tools.speed.fast import fast_act, fast_update
from tools.training import command_line
from tools.training.prepare import prepare, require_updates, write_config
from tools.training.saving import take_offline
from tools.training.stage import Stage, tell_end
from train_offline import offline_stage


def online_stage(run: Run) -> None:
    """Stage 2, from where the run stands."""
    c = run.config
    # act is dfp.DFP.act. update(starts) is dfp.DFP.update on the chunks that begin in the rows `starts` of the buffer.
    # tools/speed/fast.py makes them fast, act on a GPU; --no-compile runs dfp.py as it is written, for breakpoints.
    act, update = fast_act(run.algo), fast_update(run.algo, run.buffer)
    world = Collector(c.task, c.seed, run.world_state)     # the simulator, in a process of its own
    first_update = c.offline_steps + c.warmup + 1    # the first online steps only collect, as in the released code
    last = c.offline_steps + c.online_steps

    with world, Stage(run, "online", last, world) as stage:              # bar, tables, evaluations, checkpoints, Ctrl-C
        for step in stage.steps:                    # numbered on from stage 1. Ctrl-C saves, and ends the script.
            # play() sends a chunk off and returns at once: the simulator plays it while updates run. outcome() waits
            # until the chunk's next action has been played. The chunk is fixed before these updates, so every number is
            # as if simulator and updates took turns.

            # Line 1. The policy acts: the best of N' chunks by Q_phi, executed open loop, one action a step.
            if not world.playing:
                chunk = act(world.obs[None], run.acting_rng)[0]                  # [H, A]
                world.play(chunk)

            # Line 2. The buffer grows: D <- D + (s, a, r, s'), one step of the chunk.
            # At an episode's end the world drops the rest of the chunk and resets itself.
            transition = world.outcome()             # obs, action, reward, terminated, truncated, next_obs
            if transition is None:                   # rare: the simulator was lost and could not be restored
                run.buffer.end_episode()             # a new episode has begun; stage.steps gives this step again
                continue
            run.buffer.add(*transition)

            info = None
            if step >= first_update:
                # Line 3. A mini-batch: the rows where its B chunks begin, uniformly over D, what is new included.
                starts = run.buffer.starts(c.batch_size, run.batch_rng)

                # Lines 4-7. The gradient step, dfp.DFP.update: samples, losses of theta and phi, Adam, the averages.
                info = update(starts)                # = algo.update(buffer.chunks(starts)), made fast

            stage.end_step(info)                     # counts it, logs, and saves and evaluates when that is due


def both_stages(config: Config, given: set[str]) -> Path | list[Path]:
    """The whole run -> its folder; with several seeds, theirs. given: the knobs set by hand, which name the folder."""
    require_updates(config)
    if config.seeds > 1:
        from tools.speed import seeds                # a loop of the same shape over several runs: seeds.loop
        return seeds.train(config, given, online=True)
    with prepare(config, given) as run:
        write_config(run)
        if run.stage == "offline":
            # Stage 1 of this run, or one with equal settings of another run. Nothing tells that code has changed since:
            # then take a new --out.
            if not take_offline(run):
                offline_stage(run)
            run.start_online()
        online_stage(run)
        tell_end(run)
    return run.folder


def train(**knobs) -> Path | list[Path]:
    """From Python: train(task="lift", preset="quick", seed=1) -> the run's folder (with seeds=5: all). Every knob of
    config.py. UserError for what cannot work."""
    end_in_one_line()                                # a UserError that your script does not catch is one line, no trace
    command_line.print_anywhere()                    # whatever the terminal's encoding
    return both_stages(build(knobs), set(knobs))


def main() -> None:
    both_stages(*command_line.parse(__doc__.split("\n")[0]))


if __name__ == "__main__":
    command_line.main(main)
