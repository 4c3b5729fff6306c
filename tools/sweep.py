"""Tasks x methods x seeds: many runs, as many at a time as fit here or as Slurm takes, then the report over these.

    python -m tools.sweep --tasks lift square --methods dfp qc-fql --seeds 0 1 2 --preset quick --data generated
    python -m tools.sweep ... --dry-run              what is done, to resume, to start
    python -m tools.sweep ... --cluster slurm --slurm-partition gpu --slurm-hours 12

All other options are train_online.py's and hold for every run. The same command goes on where it was stopped: a
finished run is skipped, one that was cut is resumed. Runs that share stage 1 (dfp and dfp-no-topk, mvp and mvp-topk, of
one seed) follow each other in one job, so that it is trained once; data are made once anyway (data.load lets one
process at a time).
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
import run
from config import SOURCES, UserError
from tools.report.__main__ import main as report
from tools.training import command_line
from tools.training.prepare import require_updates
from tools.training.tables import read_rows

ROOT = Path(__file__).resolve().parent.parent


# ------------------------------------------------------------------------------------------------- what is to be done
class Planned:
    """One run, and where it stands."""

    def __init__(self, words: list[str]):
        """words: of its command line. UserError for what cannot be run."""
        self.words, (self.config, self.given) = words, command_line.parse("", words)
        self.name = f"{self.config.task}-{self.config.method}-seed{self.config.seed}"
        if self.config.online_steps:
            require_updates(self.config, "; 0 means stage 1 alone")
        self.look()

    def look(self) -> None:
        """Its folder, the step it has come to, and whether it is done, to resume or to start."""
        c, self.state, self.step = self.config, "to start", 0
        kinds = ["official", "generated"] if c.data == "auto" else [c.data]
        if c.data not in SOURCES:
            kinds = [data.own_kind(c.data)]
        self.kind = run.kind_begun(c, self.given, kinds)
        self.folder = run.folder_of(c, self.given, self.kind or kinds[-1])
        if self.kind:
            self.step = max((int(row["step"]) for row in read_rows(self.folder / "train.csv")), default=0)
            self.state = "done" if self.is_done() else "to resume"

    def is_done(self) -> bool:
        """Both stages of the lengths asked for, evaluated at their end."""
        c, begun = self.config, run.read_config(self.folder)[0]
        evaluated = [int(row["step"]) for row in read_rows(self.folder / "eval.csv")]
        if c.offline_steps + c.online_steps not in evaluated or c.offline_steps != begun.offline_steps:
            return False
        return c.online_steps == begun.online_steps if c.online_steps else (self.folder / "offline.pt").exists()

    def command(self, script: str, *words) -> list[str]:
        """Of a script, for this run; words give way to the run's own. Data that --data auto has once found stay its."""
        found = ["--data", self.kind] if self.kind and self.config.data == "auto" else []
        return [str(ROOT / script), *words, *self.words, *found]

    def training(self, workers: int) -> list[str]:
        """--resume where there is nothing simply starts."""
        script = "train_online.py" if self.config.online_steps else "train_offline.py"
        return self.command(script, "--workers", str(workers), "--resume")


def plan(args, rest: list[str]) -> list[list[Planned]]:
    """Every run; those that share stage 1 together, the one that has come farthest first."""
    groups = collections.defaultdict(list)
    for task, seed, method in itertools.product(*map(dict.fromkeys, (args.tasks, args.seeds, args.methods))):
        planned = Planned([*rest, "--task", task, "--method", method, "--seed", str(seed)])
        groups[str(planned.config.stage1_knobs())].append(planned)
    for group in groups.values():
        group.sort(key=lambda planned: (planned.state != "done", -planned.step))
        if len(group) > 1 and not group[0].config.online_steps:
            names = " and ".join(planned.name for planned in group)
            raise UserError(f"{names} differ in stage 2 alone, and there is none: leave one out")
    return [*groups.values()]


def show(runs: list[Planned]) -> None:
    for planned in runs:
        step = f"  step {planned.step:,}" if planned.step else ""
        print(f"{planned.state:9}  {planned.name:30}  {planned.folder}{step}")
    counts = collections.Counter(planned.state for planned in runs)
    print(", ".join(f"{counts[state]} {state}" for state in ("done", "to resume", "to start")))


# ------------------------------------------------------------------------------------------------- doing it
class Job:
    """What submitit starts, here or on a node: commands one after the other, each with its log."""

    def __init__(self, commands: list[tuple], gpu: str | None, lock: Path | None):
        """gpu: None for the node's. lock: the sweep holds it while it lives; on its machine the runs end with it."""
        self.commands, self.gpu, self.lock, self.stopped = commands, gpu, lock, False

    def __call__(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "stopped", True))                 # scancel's
        environment = os.environ | {"TQDM_MININTERVAL": "60"}
        if self.gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpu
        for command, log in self.commands:
            with open(log, "ab", buffering=0) as out:
                # SIGUSR2, for checkpoint() below, reaches every process of a job, and only this one may hear it.
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
        """submitit asks before Slurm's time is up, and queues what it gets: the same commands, which resume."""
        import submitit
        self.child.terminate()
        self.child.wait()
        return submitit.helpers.DelayedSubmission(Job(self.commands, self.gpu, self.lock))


def job_slots(args, slurm: bool, runs: list[Planned]) -> list[str | None]:
    """An element for each job that may run at a time: its GPU, "" for none, None for what Slurm gives it."""
    if slurm:
        return [None] * (args.jobs or len(runs))
    gpus = []
    if torch.cuda.is_available() and any(planned.config.device != "cpu" for planned in runs):
        every = ",".join(map(str, range(torch.cuda.device_count())))
        gpus = (os.environ.get("CUDA_VISIBLE_DEVICES") or every).split(",")
    threads = max(planned.config.threads or os.cpu_count() for planned in runs)
    jobs = args.jobs or len(gpus) or max(1, os.cpu_count() // threads)
    return [gpus[i % len(gpus)] if gpus else "" for i in range(jobs)]


def work(executor, groups: list, slots: list, workers: int, logs: Path) -> dict[Planned, str]:
    """Every group a job, as many at a time as there are slots -> {a run that is not done then: its log's last line}."""
    slurm, waiting, running, failed = executor.cluster == "slurm", collections.deque(groups), {}, {}
    lock = open(logs / "lock", "w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        while waiting or running:
            while waiting and slots:
                group, slot = [planned for planned in waiting.popleft() if planned.state != "done"], slots.pop(0)
                commands = [(planned.training(workers), logs / f"{planned.name}.log") for planned in group]
                if workers and not slurm and group[0].config.data in SOURCES:
                    # Data by all cores; who comes later waits for them.
                    commands.insert(0, (group[0].command("data.py"), logs / f"{group[0].name}-data.log"))
                # Ctrl-C is for the sweep alone, which ends its jobs in order: they inherit that it is blocked.
                before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
                running[executor.submit(Job(commands, slot, None if slurm else logs / "lock"))] = group, slot
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            time.sleep(1)
            for job in [job for job in running if job.done()]:
                group, slot = running.pop(job)
                slots.append(slot)
                for planned in group:
                    planned.look()
                    if planned.state != "done":
                        failed[planned] = last_line(job.paths.stderr, logs / f"{planned.name}.log")
                    print(f"{planned.name}: {failed.get(planned, 'done')}", flush=True)
        return failed
    finally:                                                     # after an interrupt there are jobs: they save and end
        lock.close()
        for job in running:
            if slurm:
                job.cancel(check=False)
            while not slurm and not job.done():
                time.sleep(0.2)


def last_line(*logs: Path) -> str:
    """Of the last of these files that says anything."""
    said = [line for log in logs if log.exists() for line in re.split(r"[\r\n]+", log.read_text(errors="replace"))]
    return next((line.strip() for line in reversed(said) if line.strip()), "nothing was said")


def make_executor(args, slurm: bool, logs: Path):
    # Without this its import closes other libraries' handlers, and with absl's our stdout.
    os.environ.setdefault("SUBMITIT_LOG_LEVEL", "NOCONFIG")
    import submitit
    executor = submitit.AutoExecutor(logs / "jobs", "slurm" if slurm else "local", slurm_max_num_timeout=100)
    if slurm:
        executor.update_parameters(
            timeout_min=int(60 * args.slurm_hours), gpus_per_node=args.slurm_gpus or None,
            slurm_partition=args.slurm_partition, cpus_per_task=args.slurm_cpus,
            slurm_srun_args=[f"--cpus-per-task={args.slurm_cpus}"])      # srun asks anew for its cores
    else:
        executor.update_parameters(timeout_min=10**7)
    return executor


# ------------------------------------------------------------------------------------------------- the command
def parse() -> tuple[argparse.Namespace, list[str]]:
    """-> (the sweep's options, the words that are every run's)"""
    parser = command_line.OneLineParser(
        description=__doc__.split("\n")[0], allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog="Every other option is train_online.py's and holds for all runs.")
    option = parser.add_argument
    option("--tasks", "--task", nargs="+", required=True, help="names, as of --task")
    option("--methods", "--method", nargs="+", default=["dfp"], help="names, as of --method")
    option("--seeds", "--seed", nargs="+", type=int, default=[0], help="each is a run")
    option("--jobs", type=int, help="at a time; None: one a GPU, else as cores allow with --threads each, on Slurm all")
    option("--dry-run", action="store_true", help="print the runs and where they stand, and stop")
    option("--report", default="results/sweep", help="folder of the report")
    option("--cluster", default="auto", choices=("auto", "local", "slurm"), help="auto: Slurm where there is one")
    option("--slurm-partition", help="of the jobs; account, memory and so on: sbatch's variables, SBATCH_ACCOUNT ...")
    option("--slurm-hours", type=float, default=24, help="of a job; what needs longer goes into the queue again")
    option("--slurm-gpus", type=int, default=1, help="of a job")
    option("--slurm-cpus", type=int, default=8, help="of a job; so many simulators evaluate")
    return parser.parse_known_args()


def main() -> None:
    args, rest = parse()
    slurm = args.cluster != "local" and shutil.which("srun") is not None
    if args.cluster == "slurm" and not slurm:
        raise UserError("--cluster slurm: this machine has no srun")
    if args.jobs is not None and args.jobs < 1:
        raise UserError("--jobs must be positive")
    groups = plan(args, rest)
    runs = [planned for group in groups for planned in group]
    show(runs)
    if args.dry_run:
        return
    failed, left = {}, [group for group in groups if any(planned.state != "done" for planned in group)]
    if left:
        logs = Path(runs[0].config.out).resolve() / "sweep" / time.strftime(f"%Y%m%d-%H%M%S-{os.getpid()}")
        logs.mkdir(parents=True)
        print(f"logs: {logs}", flush=True)
        slots = job_slots(args, slurm, runs)[: len(left)]
        alone = 0 if len(slots) == 1 else max(1, os.cpu_count() // len(slots))                   # 0: all cores
        failed = work(make_executor(args, slurm, logs), left, slots, args.slurm_cpus if slurm else alone, logs)
    if begun := [str(planned.folder) for planned in runs if read_rows(planned.folder / "eval.csv")]:
        report([*begun, "--out", args.report])
    for planned in filter(failed.get, runs):
        print(f"failed: {planned.name}: {failed[planned]}  ({logs}/{planned.name}.log)", file=sys.stderr)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    command_line.main(main)
