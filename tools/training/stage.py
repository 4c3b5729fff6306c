"""What surrounds the loop of a stage: bar, tables, evaluations, checkpoints, an end by Ctrl-C that loses nothing."""
import shlex
import signal
import sys
import threading
import time
from pathlib import Path

from tqdm import tqdm

import envs
from config import UserError
from evaluate import mean, play
from run import Run
from tools.simulators.evaluator import Evaluator
from tools.simulators.process import cores
from tools.training.files import EVAL_COLUMNS, append_row, read_rows
from tools.training.saving import check_finite, save

SAVE_EVERY = 600        # seconds between checkpoints


class Stop:
    """Whether a stop was asked for, by Ctrl-C or SIGTERM. The second one ends the process at once."""
    asked = False

    def listen(self) -> None:
        numbers = (signal.SIGINT, signal.SIGTERM)
        if threading.current_thread() is not threading.main_thread():
            numbers = ()                             # Python lets no other one hear signals
        self.before = {number: signal.signal(number, self.ask) for number in numbers}

    def ask(self, *_) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


class Stage:
    """One stage of a run, up to step `last`. world: the Collector, in stage 2."""

    def __init__(self, run: Run, name: str, last: int, world=None):
        self.run, self.name, self.last, self.world, self.stop = run, name, last, world, Stop()
        c = run.config
        self.ends = (c.offline_steps, c.offline_steps + c.online_steps)          # of both stages
        workers = min(c.workers or cores(), max(c.eval_episodes, c.final_episodes))
        self.evaluator = Evaluator(envs.find_task(c.task), workers, play)

    def __enter__(self):
        self.open()
        self.stop.listen()
        return self

    def open(self) -> None:
        self.run.stage, self.saved = self.name, time.time()
        self.bar = tqdm(total=self.last, initial=self.run.step, desc=f"{self.run.config.task} {self.name}",
                        dynamic_ncols=True, smoothing=0.05)

    @property
    def steps(self):
        """The numbers of the steps that are left. A step whose end_step() was not called comes again."""
        self.evaluate()                      # step 0, or an evaluation that was cut short
        while self.run.step < self.last and not self.stop.asked:
            yield self.run.step + 1

    def end_step(self, info: dict | None = None) -> None:
        """Counts the step and does what is due after it. info: what its update returned, if there was one."""
        run, c = self.run, self.run.config
        run.step += 1
        self.bar.update()
        if info and (run.step % c.log_every == 0 or run.step in self.ends):
            self.append("train.csv", dict(step=run.step, stage=self.name, **check_finite(run, info)))
        due = run.step % c.eval_every == 0 or run.step in self.ends
        if due or time.time() - self.saved > SAVE_EVERY:         # before evaluating, which is where processes may die
            save(run, self.world)
            self.saved = time.time()
        if due:
            self.evaluate()

    def evaluate(self) -> None:
        """One row of eval.csv, if this step is due one and has none, and the curve. A stop ends it without."""
        run, c = self.run, self.run.config
        if self.stop.asked or run.step % c.eval_every and run.step not in self.ends:
            return
        if not any(int(row["step"]) == run.step for row in read_rows(run.folder / "eval.csv")):
            episodes = c.final_episodes if run.step in self.ends else c.eval_episodes
            if run.step == 0:
                episodes = 1         # shows that the simulator works; an untrained policy's run up to the time limit
            self.bar.set_postfix_str(f"evaluating, {episodes} episodes")
            played = self.evaluator(run.algo.act, episodes, stop=lambda: self.stop.asked)
            if played is None:
                return
            result = mean(played)
            self.bar.set_postfix_str(f"success={result['success']:.0%}")
            row = result | dict(step=run.step, stage=self.name, seconds=round(time.time() - run.started, 1))
            self.append("eval.csv", {name: row[name] for name in EVAL_COLUMNS})
        from tools.report.run_curve import draw_curve            # late: matplotlib takes a second to import
        draw_curve(run.folder, run.folder / "curve.png")         # also where a run died while drawing

    def append(self, name: str, row: dict) -> None:
        append_row(self.run.folder / name, row)
        if self.run.tracker:
            self.run.tracker({f"{name[:-4]}/{k}": v for k, v in row.items() if isinstance(v, float)}, row["step"])

    def __exit__(self, kind, error, _) -> None:
        run, good = self.run, self.run.folder / "checkpoint.pt"
        self.bar.close()
        self.evaluator.close()
        stopped = self.stop.asked and kind is None
        if stopped:
            save(run, self.world)
        self.stop.restore()
        if stopped:
            print(f"\nstopped at step {run.step} and saved; continue with:  {resume_command(run)}", flush=True)
            raise SystemExit(130)
        if isinstance(error, UserError):
            where = f"; the last good state is {good}" if good.exists() else ""
            raise UserError(f"step {run.step}: {error}{where}") from None


def resume_command(run: Run) -> str:
    """The line that goes on with the run: the script's options, or train()'s from wherever that was called."""
    # Hosts may come and go; the run's data do not.
    data = run.data["kind"] if run.config.data == "auto" else ""
    if Path(sys.argv[0]).name not in ("train_offline.py", "train_online.py"):
        return f"train(..., resume=True{data and f', data={data!r}'})"
    words = [w for w in sys.argv if w != "--resume"] + ["--resume", *(["--data", data] if data else [])]
    return f"python {shlex.join(words)}"


def tell_end(run: Run) -> None:
    if run.stage == "offline":
        return print(f"stage 1 done: {run.folder / 'offline.pt'}")
    final = read_rows(run.folder / "eval.csv")[-1]
    print(f"done: success {float(final['success']):.0%} over {final['episodes']} episodes; {run.folder}/curve.png")
