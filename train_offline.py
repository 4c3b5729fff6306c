"""Stage 1: the drift policy and its critic from the data alone  (Sec. 5.1; Alg. 1 without lines 1-2; lambda = 0 but for Table 8).

    python train_offline.py --task square                       writes offline.pt, which train_online.py starts from

Also the home of what both stages share: prepare() builds a run's parts, loop() does the steps of a stage.
"""
import contextlib
import dataclasses
import os
import shlex
import signal
import sys
import time
from types import SimpleNamespace

import torch
from tqdm import tqdm

import data
import envs
import run as run_module
from config import Config, UserError
from tools import command_line, states
from tools.graph import graphed


def set_precision(config: Config) -> None:
    """Of passes that train: TF32 on CUDA, or fp32. (Candidates: DFP.candidate_precision.)"""
    torch.set_float32_matmul_precision("high" if config.precision == "auto" else "highest")


def prepare(config: Config, given: set[str], first=None):
    """Everything a stage works with. Of the run, nothing is written before all of it has been checked. first: a run of another
    seed, whose data and evaluating simulators this one shares."""
    for name in ("device", "data_device"):
        if getattr(config, name) == "cuda" and not torch.cuda.is_available():
            raise UserError(f"--{name.replace('_', '-')} cuda: this torch sees no GPU; auto takes what there is")
    device = torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")
    if config.threads:
        torch.set_num_threads(config.threads)
    set_precision(config)

    task = envs.task(config.task)
    if config.resume and config.data == "auto":                  # means the data it began with, whichever hosts answer by now
        config = dataclasses.replace(config, data=run_module.kind_begun(config, given) or "auto")
    dataset, source = (first.buffer.data, first.run.source) if first else data.load(config)
    if source["longest"] < config.chunk:
        raise UserError(f"--chunk {config.chunk} is longer than every episode of the data (the longest has {source['longest']} steps)")
    folder = run_module.folder_of(config, given, source["kind"])
    run = run_module.Run(folder, config, source)
    buffer = data.make_buffer(config, dataset, device)
    algo = run_module.algorithm(config, task.obs_dim, task.action_dim, device)
    return SimpleNamespace(
        config=config, run=run, buffer=buffer, algo=algo, device=device, step=0, episode=0, stage="offline",
        info=None, starts=None, collecting=None, collector=None, busy=False, interrupt=False, asked=False,
        # One generator per purpose, so that no purpose disturbs another (initial weights and training noise: dfp.py).
        batches=torch.Generator(buffer.device).manual_seed(config.seed + 1),
        acting=torch.Generator().manual_seed(config.seed + 2),
        evaluator=first.evaluator if first else envs.Evaluator(task, config.chunk, config.workers or os.cpu_count()))


def prepare_all(config: Config, given: set[str]) -> list:
    """prepare() for each of --seeds, brought back where it is an unfinished run."""
    ts = []
    for seed in range(config.seed, config.seed + config.seeds):
        ts.append(prepare(dataclasses.replace(config, seed=seed), given, ts[0] if ts else None))
        states.restore(ts[-1])
    return ts


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM, raised between two steps: never in the middle of an update, and caught by no `except Exception`."""


@contextlib.contextmanager
def interruptible(ts):
    """Turns signals into Interrupted at a safe place. Several runs in lock-step (tools/seeds.py) must all stop after the same
    step: seeds.py asks for it then."""
    def handler(*_):
        ts[0].asked = True
        if len(ts) == 1:
            ts[0].interrupt = True
            if not ts[0].busy:
                raise Interrupted
    old = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except Interrupted:
        for s in old:
            signal.signal(s, signal.SIG_IGN)                     # a second Ctrl-C must not spoil the saving
        for t in ts:
            if not t.busy:                                       # busy: one of several, stopped in mid-step on its way to lock-step
                states.save(t)
        words = [w for w in sys.argv if w != "--resume"] + ["--resume"]
        if t.config.data == "auto":                              # hosts may come and go; the run's data do not
            words += ["--data", t.run.source["kind"]]
        print(f"\nstopped at step {t.step} and saved; continue with:  python {shlex.join(words)}", flush=True)
        raise SystemExit(130) from None
    finally:
        for s, h in old.items():
            signal.signal(s, h)
        ts[0].evaluator.close()
        for t in ts:
            t.run.lock.close()                                   # for the next run from the same Python process


@contextlib.contextmanager
def saying_where(t):
    """Adds the step to errors of simulators and of the evaluation."""
    try:
        yield
    except UserError as error:
        raise UserError("; ".join(filter(None, (f"step {t.step}: {error}", states.last_good(t))))) from None


def evaluate(t, bar) -> None:
    """One row of eval.csv, if this step is due one and has none, and the curve."""
    c = t.config
    ends = (c.offline_steps, c.offline_steps + c.online_steps)
    if t.step % c.eval_every and t.step not in ends:
        return
    if not any(int(row["step"]) == t.step for row in t.run.rows("eval.csv")):
        episodes = c.final_episodes if t.step in ends else c.eval_episodes
        bar.set_postfix_str(f"evaluating, {episodes} episodes")
        with saying_where(t):
            result = t.evaluator(t.algo.act, episodes)
        bar.set_postfix_str(f"success={result['success']:.0%}")
        t.run.append("eval.csv", dict(step=t.step, stage=t.stage, success=result["success"], episodes=episodes,
                                      length=result["length"], **{"return": result["return"]},
                                      seconds=round(time.time() - t.run.started, 1)))
    t.run.draw()                                                  # also where a run died while drawing


# A stage is a generator: it yields where t.starts says which batch is next (None: none yet), and is sent the update's info. So
# one run is driven by train() below, and several go in lock-step, their batches in one update, without a loop of their own.
def loop(t, stage: str, last: int, one_step):
    """one_step() until t.step == last, with a bar, train.csv, evaluation and saving. one_step, a generator too, returns the
    update's info (or None where nothing was trained)."""
    c, t.stage, t.info = t.config, stage, None
    saved, trained, began = time.time(), 0, 0.0
    with tqdm(total=last, initial=t.step, desc=f"{c.task} {stage}", dynamic_ncols=True, smoothing=0.05) as bar:
        evaluate(t, bar)                                          # step 0, the start of stage 2, or one that was cut short
        while t.step < last:
            t.busy = True
            t.info = yield from one_step()
            t.step += 1
            bar.update()
            trained += t.info is not None
            if trained == 5:                                      # the first update may have compiled for a minute
                began = time.time()
            if trained == 25 and t.info and t.device.type == "cpu":
                hours = (time.time() - began) / 20 * (c.offline_steps + c.online_steps - t.step) / 3600
                if hours > 3:
                    bar.write(f"about {hours:.0f} hours at this speed on this CPU for all that is left; --preset quick "
                              "runs the same algorithm at a smaller size in minutes")
            if t.info and (t.step % c.log_every == 0 or t.step == last):
                t.run.append("train.csv", dict(step=t.step, stage=stage, **states.check_finite(t)))
            t.busy = False                                        # from here on this step is whole, its row included
            if t.interrupt:
                raise Interrupted
            due = t.step % c.eval_every == 0 or t.step == last
            if due or time.time() - saved > 600:                  # before evaluating, which is where processes may die
                states.save(t)
                saved = time.time()
            if due:
                evaluate(t, bar)


def one_update(t):
    """One update, on a fresh batch; returns its info."""
    t.starts = t.buffer.starts(t.config.batch_size, t.batches)
    return (yield)


def offline_stage(t):
    """Stage 1, from where the run stands; ends in offline.pt."""
    yield from loop(t, "offline", t.config.offline_steps, lambda: one_update(t))
    run_module.save(t.run.offline, dict(algorithm=t.algo.state_dict(), step=t.step, identity=t.run.identity()))


def train(ts: list, stages) -> None:
    """Runs the generator stages(t) of each t to its end."""
    with interruptible(ts):
        if len(ts) > 1:
            from tools.seeds import in_lock_step
            return in_lock_step(ts, stages)
        t, steps, info = ts[0], stages(ts[0]), None
        update = graphed(t.algo, [t.buffer], t.buffer.chunks)
        with contextlib.suppress(StopIteration):
            while True:
                steps.send(info)
                info = None if t.starts is None else update(t.starts)


def main() -> None:
    ts = prepare_all(*command_line.parse(__doc__.split("\n")[0]))
    for t in ts:
        if t.stage == "online" or states.offline_state(t, t.run.offline):
            raise UserError(f"stage 1 is already complete in {t.run.folder}; python train_online.py goes on from it")
    for t in ts:
        t.run.write_config()
    train(ts, offline_stage)
    for t in ts:
        print(f"stage 1 done: {t.run.offline}")


if __name__ == "__main__":
    command_line.main(main)
