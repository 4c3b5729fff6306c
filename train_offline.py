"""Stage 1: the drift policy and its critic from the data alone  (Sec. 5.1; lines 3-6 of Alg. 1).

    python train_offline.py --task square               writes offline.pt, which train_online.py starts from

The loop is the whole stage. What surrounds it: tools/training/stage.py. What an update does: dfp.DFP.update.
"""
from run import Run
from tools.speed.fast import fast_update
from tools.training import command_line
from tools.training.prepare import prepare, write_config
from tools.training.saving import refuse_complete, save_offline
from tools.training.stage import Stage, tell_end


def offline_stage(run: Run) -> None:
    """Stage 1, from where the run stands; ends in offline.pt. The policy's loss is L_BC alone. Table 8's pure
    offline setting adds L_topK; only there does pi_old move."""
    c = run.config
    # update(starts) is dfp.DFP.update on the chunks that begin in the rows `starts` of the buffer. tools/speed/fast.py
    # makes it fast; --no-compile runs dfp.py as it is written, for breakpoints.
    update = fast_update(run.algo, run.buffer)

    with Stage(run, "offline", c.offline_steps) as stage:                # bar, tables, evaluations, checkpoints, Ctrl-C
        for step in stage.steps:                    # Ctrl-C saves, and ends the script here
            # Line 3. A mini-batch: the rows where its B chunks begin, uniformly over D.
            starts = run.buffer.starts(c.batch_size, run.batch_rng)

            # Lines 4-6. The gradient step: samples, the losses of theta and phi, Adam, the target critic's average.
            info = update(starts)

            stage.end_step(info)
    save_offline(run)


def main() -> None:
    config, given = command_line.parse(__doc__.split("\n")[0])
    if config.seeds > 1:
        from tools.speed import seeds
        return seeds.train(config, given, online=False)
    with prepare(config, given) as run:
        refuse_complete(run)             # a finished stage 1 is not begun anew
        write_config(run)
        offline_stage(run)
        tell_end(run)


if __name__ == "__main__":
    command_line.main(main)
