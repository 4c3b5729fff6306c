"""Tasks x methods x seeds: many runs, as many at a time as fit here or as Slurm takes, then the report over exactly these.

    python -m tools.sweep --tasks lift square --methods dfp qc-fql --seeds 0 1 2 --preset quick --data generated
    python -m tools.sweep ... --dry-run              what is done, to resume, to start, and the hours it may take
    python -m tools.sweep ... --cluster slurm --slurm-partition gpu --slurm-hours 12

All other options are train_online.py's and hold for every run. The same command goes on where it was stopped: a finished run
is skipped, one that was cut is resumed. Runs that share stage 1 (dfp and dfp-no-topk, mvp and mvp-topk, of one seed) follow
each other in one job, so that it is trained once; data are made once anyway (data.load lets one process at a time).
Ctrl-C: every run saves and ends, on Slurm too. Logs: a folder for each sweep in <out>/sweep/.
"""
import argparse
import collections
import contextlib
import fcntl
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

import data
import envs
import run
import train_online
from config import METHODS, SOURCES, UserError
from tools import command_line, report, results
from tools.rows import read_rows

ROOT = Path(__file__).resolve().parent.parent


# ------------------------------------------------------------------------------------------------- what is to be done
class Planned:
    """One run, and where it stands."""
    shared = False                                               # whether stage 1 is that of a run before it, in the same job

    def __init__(self, words: list[str]):
        """words: of its command line. UserError for what cannot be run."""
        self.words, (self.config, self.given) = words, command_line.parse("", words)
        self.name = f"{self.config.task}-{self.config.method}-seed{self.config.seed}"
        if self.config.online_steps:
            train_online.outlast_warmup(self.config, "; 0 means stage 1 alone")
        self.look()

    def look(self) -> None:
        """Its folder, the step it has come to, and whether it is done, to resume or to start."""
        c, self.state, self.step = self.config, "to start", 0
        kinds = ["official", "generated"] if c.data == "auto" else [c.data if c.data in SOURCES else data.own_kind(c.data)]
        self.kind = run.kind_begun(c, self.given, kinds)
        self.folder = run.folder_of(c, self.given, self.kind or kinds[-1])
        if self.kind:
            trained, evaluated = ([int(row["step"]) for row in read_rows(self.folder / name)] for name in ("train.csv", "eval.csv"))
            begun = run.read_config(self.folder)[0]
            done = c.offline_steps + c.online_steps in evaluated and begun.offline_steps == c.offline_steps
            done = done and (begun.online_steps == c.online_steps if c.online_steps else (self.folder / "offline.pt").exists())
            self.state, self.step = "done" if done else "to resume", max(trained, default=0)

    def command(self, script: str, *words) -> list[str]:
        """Of a script, for this run; words give way to the run's own. Data that --data auto has once found stay the run's."""
        found = ["--data", self.kind] if self.kind and self.config.data == "auto" else []
        return [str(ROOT / script), *words, *self.words, *found]

    def training(self, workers: int) -> list[str]:
        """--resume where there is nothing simply starts."""
        return self.command("train_online.py" if self.config.online_steps else "train_offline.py", "--workers", str(workers), "--resume")


def plan(args, rest: list[str]) -> list[list[Planned]]:
    """Every run; those that share stage 1 together, the one that has come farthest first."""
    groups = collections.defaultdict(list)
    for task, seed, method in itertools.product(*map(dict.fromkeys, (args.tasks, args.seeds, args.methods))):
        planned = Planned([*rest, "--task", task, "--method", method, "--seed", str(seed)])
        groups[str(planned.config.stage1_knobs())].append(planned)
    for group in groups.values():
        group.sort(key=lambda p: (p.state != "done", -p.step))
        for planned in group[1:]:
            planned.shared = True
            if not planned.config.online_steps:
                raise UserError(f"{group[0].name} and {planned.name} differ in stage 2 alone, and there is none: leave one out")
    return [*groups.values()]


# ------------------------------------------------------------------------------------------------- how long it may take
def hours(planned: Planned, ms: dict) -> float | None:
    """Of what is left of a run; None where the benchmark has neither its method nor the family. What can overlap is counted one
    after the other, and the episodes of an evaluation at full length."""
    c = planned.config
    mode = f"{'compiled' if c.compile else 'plain'} {c.precision}"
    of = lambda what, mode: ms.get((what, c.method, mode), ms.get((what, METHODS[c.method][0], mode)))      # noqa: E731
    first, second, act = of("offline update", mode), of("online update", mode), of("act", "")
    if planned.state == "done" or None in (first, second, act):
        return 0 if planned.state == "done" else None
    step, end = max(planned.step, planned.shared * c.offline_steps), c.offline_steps + c.online_steps
    offline, online = max(0, c.offline_steps - step), end - max(step, c.offline_steps)
    episodes = (end - step) // c.eval_every * c.eval_episodes + ((offline > 0) + (online > 0)) * c.final_episodes
    simulator, evaluation = ms.get(("simulator step", "-", ""), 0), ms.get(("evaluation step", "dfp", ""), 0)
    return (offline * first + online * (second + act / c.chunk + simulator) + episodes * envs.task(c.task).horizon * evaluation) / 3.6e6


def show(groups: list, at_a_time: int, benchmark: Path | None) -> None:
    """Every run and where it stands, and hours by the benchmark's table, if any."""
    try:
        rows = results.read_csv(benchmark) if benchmark else ()
        if benchmark and not rows:
            raise ValueError("it has no row")
        ms = {(row["what"].split(",")[0], row["method"], row["mode"] if row["what"].endswith("update") else ""): float(row["ms"])
              for row in rows if row["ms"]}
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{benchmark} is no table of python -m tools.benchmark ({type(error).__name__}: {error})") from None
    left = {p: hours(p, ms) for group in groups for p in group}
    for p, h in left.items():
        print(f"{p.state:9}  {p.name:30}  {p.folder}" + (f"  step {p.step:,}" if p.step else "") + (f"  {h:.2f} h" if h else ""))
    print(", ".join(f"{sum(p.state == state for p in left)} {state}" for state in ("done", "to resume", "to start")))
    if lacking := dict.fromkeys(p.config.method for p, h in left.items() if h is None):
        why = f"{benchmark} has no times of {', '.join(lacking)} as these runs compute" if benchmark else "results/benchmark.csv is missing"
        print(f"no estimate of hours: {why}; python -m tools.benchmark makes such a table")
    elif any(left.values()):
        chains = [sum(left[p] for p in group) for group in groups]
        print(f"about {sum(chains):.2f} hours of work, {max(sum(chains) / at_a_time, *chains):.2f} with {at_a_time} at a time, by {benchmark}: "
              "for the machine, task and preset that it was measured with")


# ------------------------------------------------------------------------------------------------- doing it
class Job:
    """What submitit starts, here or on a node: commands one after the other, each with its log."""

    def __init__(self, commands: list[tuple], gpu: str | None, lock: Path | None):
        """gpu: None for the node's. lock: the sweep holds it as long as it lives, and with it end the runs on its machine."""
        self.commands, self.gpu, self.lock, self.stopped = commands, gpu, lock, False

    def __call__(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "stopped", True))                 # scancel's
        environment = os.environ | {"TQDM_MININTERVAL": "60"} | ({} if self.gpu is None else {"CUDA_VISIBLE_DEVICES": self.gpu})
        for command, log in self.commands:
            with open(log, "ab", buffering=0) as out:            # SIGUSR2, for checkpoint() below, reaches every process of a job
                self.child = subprocess.Popen([sys.executable, *command], stdout=out, stderr=out, env=environment,
                                              preexec_fn=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN))
                while self.child.poll() is None and not self.stopped:
                    time.sleep(0.5)
                    self.stopped |= self.left_alone()
                if self.stopped:
                    self.child.terminate()                       # it saves
                if self.child.wait() < 0:
                    out.write(f"\nended by {signal.Signals(-self.child.returncode).name}\n".encode())
            if self.stopped:
                return

    def left_alone(self) -> bool:
        with contextlib.suppress(BlockingIOError), open(self.lock or os.devnull) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return self.lock is not None
        return False

    def checkpoint(self):
        """submitit asks before Slurm's time is up, and puts what it gets into the queue: the same commands, which resume."""
        import submitit
        self.child.terminate()
        self.child.wait()
        return submitit.helpers.DelayedSubmission(Job(self.commands, self.gpu, self.lock))


def last_line(*logs: Path) -> str:
    """Of the last of these files that says anything."""
    lines = [line for log in logs if log.exists() for line in re.split(r"[\r\n]+", log.read_text(errors="replace")) if line.strip()]
    return lines[-1].strip() if lines else "nothing was said"


def work(executor, groups: list, slots: list, workers: int, logs: Path) -> dict[Planned, str]:
    """Every group a job, as many at a time as there are slots (a GPU, "" for none, None for Slurm's) -> {a run that is not done
    then: its log's last line}."""
    slurm, waiting, running, failed = executor.cluster == "slurm", collections.deque(groups), {}, {}
    lock = open(logs / "lock", "w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        while waiting or running:
            while waiting and slots:
                group, slot = [p for p in waiting.popleft() if p.state != "done"], slots.pop(0)
                commands = [(p.training(workers), logs / f"{p.name}.log") for p in group]
                if workers and not slurm and group[0].config.data in SOURCES:     # data by all cores; who comes later waits for them
                    commands.insert(0, (group[0].command("data.py"), logs / f"{group[0].name}-data.log"))
                # Ctrl-C is for the sweep alone, which ends its jobs in order: they inherit that it is blocked.
                before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
                running[executor.submit(Job(commands, slot, None if slurm else logs / "lock"))] = group, slot
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            time.sleep(1)
            for job in [job for job in running if job.done()]:
                group, slot = running.pop(job)
                slots.append(slot)
                for p in group:
                    p.look()
                    if p.state != "done":
                        failed[p] = last_line(job.paths.stderr, logs / f"{p.name}.log")
                    print(f"{p.name}: {failed.get(p, 'done')}", flush=True)
        return failed
    finally:                                                     # after an interrupt there are jobs: they save and end
        lock.close()
        for job in running:
            if slurm:
                job.cancel(check=False)
            while not slurm and not job.done():
                time.sleep(0.2)


def main() -> None:
    parser = command_line.OneLineParser(description=__doc__.split("\n")[0], allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter,
                                  epilog="Every other option is train_online.py's and holds for all runs.")
    parser.add_argument("--tasks", "--task", nargs="+", required=True, help="names, as of --task")
    parser.add_argument("--methods", "--method", nargs="+", default=["dfp"], help="names, as of --method")
    parser.add_argument("--seeds", "--seed", nargs="+", type=int, default=[0], help="each is a run")
    parser.add_argument("--jobs", type=int, help="at a time; None: one a GPU, else what the cores allow with --threads each, on Slurm all")
    parser.add_argument("--dry-run", action="store_true", help="print the runs and an estimate of hours, and stop")
    parser.add_argument("--benchmark", type=Path, help="table to estimate by; None: results/benchmark.csv, else, on GPUs, results/h200's")
    parser.add_argument("--report", default="results/sweep", help="folder of the report")
    parser.add_argument("--cluster", default="auto", choices=("auto", "local", "slurm"), help="auto: Slurm where there is one")
    parser.add_argument("--slurm-partition", help="of the jobs; account, memory and the like: sbatch's variables, SBATCH_ACCOUNT ...")
    parser.add_argument("--slurm-hours", type=float, default=24, help="of a job; what needs longer goes into the queue again")
    parser.add_argument("--slurm-gpus", type=int, default=1, help="of a job")
    parser.add_argument("--slurm-cpus", type=int, default=8, help="of a job; so many simulators evaluate")
    args, rest = parser.parse_known_args()
    slurm = args.cluster != "local" and shutil.which("srun") is not None
    if args.cluster == "slurm" and not slurm:
        raise UserError("--cluster slurm: this machine has no srun")
    if args.jobs is not None and args.jobs < 1:
        raise UserError("--jobs must be positive")
    groups = plan(args, rest)
    runs, left = [p for group in groups for p in group], [group for group in groups if any(p.state != "done" for p in group)]

    gpus, cores = [], os.cpu_count()
    if not slurm and torch.cuda.is_available() and any(p.config.device != "cpu" for p in runs):
        gpus = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))).split(",")
    jobs = args.jobs or (len(left) if slurm else len(gpus) or max(1, cores // max(p.config.threads or cores for p in runs)))
    jobs = max(1, min(jobs, len(left)))
    slots = [None] * jobs if slurm else [gpus[i % len(gpus)] if gpus else "" for i in range(jobs)]
    workers = args.slurm_cpus if slurm else 0 if jobs == 1 else max(1, cores // jobs)              # 0: all cores
    own, theirs = Path("results/benchmark.csv"), ROOT / "results/h200/benchmark.csv"
    show(groups, jobs, args.benchmark or (own if own.exists() else theirs if gpus or slurm and args.slurm_gpus else None))
    if args.dry_run:
        return

    failed = {}
    if left:
        os.environ.setdefault("SUBMITIT_LOG_LEVEL", "NOCONFIG")  # else its import closes other libraries' handlers, and with absl's our stdout
        import submitit
        logs = Path(runs[0].config.out).resolve() / "sweep" / time.strftime(f"%Y%m%d-%H%M%S-{os.getpid()}")
        logs.mkdir(parents=True)
        print(f"logs: {logs}", flush=True)
        executor = submitit.AutoExecutor(logs / "jobs", "slurm" if slurm else "local", slurm_max_num_timeout=100)
        executor.update_parameters(**dict(                       # srun asks anew for its cores
            timeout_min=int(60 * args.slurm_hours), gpus_per_node=args.slurm_gpus or None, slurm_partition=args.slurm_partition,
            cpus_per_task=args.slurm_cpus, slurm_srun_args=[f"--cpus-per-task={args.slurm_cpus}"]) if slurm else dict(timeout_min=10**7))
        failed = work(executor, left, slots, workers, logs)
    if begun := [str(p.folder) for p in runs if read_rows(p.folder / "eval.csv")]:
        report.main([*begun, "--out", args.report])
    for p in filter(failed.get, runs):
        print(f"failed: {p.name}: {failed[p]}  ({logs}/{p.name}.log)", file=sys.stderr)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    command_line.main(main)
