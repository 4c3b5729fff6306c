"""Tasks x methods x seeds: many runs, as many at a time as fit here or as Slurm takes, then the report over these.

    python -m tools.sweep --tasks lift square --methods dfp qc-fql --seeds 0 1 2 --preset quick --data generated

The same command goes on where it was stopped. Runs that share stage 1, like dfp and dfp-no-topk of one seed, follow
each other in one job, so that it is trained once. Ctrl-C: every run saves and ends. Logs: in <out>/sweep/.
"""
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from config import SOURCES, UserError
from tools.report.__main__ import main as report
from tools.simulators.process import cores
from tools.official.files import own_kind
from tools.training import command_line
from tools.training.files import read_config, read_rows
from tools.training.saving import folder_of, kind_begun, stage1_knobs

ROOT = Path(__file__).resolve().parent.parent
STATES = ("done", "to resume", "to start")


class Planned:
    """One run, from the words of its command line, and where it stands. UserError for words that mean none."""

    def __init__(self, words: list[str]):
        self.words, (self.config, self.given) = words, command_line.parse("", words)
        self.name = f"{self.config.task}-{self.config.method}-seed{self.config.seed}"

    @property
    def folder(self) -> Path:
        kind = self.config.data if self.config.data in SOURCES else own_kind(self.config.data)
        kinds = ("official", "generated") if kind == "auto" else (kind,)
        return folder_of(self.config, self.given, kind_begun(self.config, self.given, kinds) or kinds[-1])

    @property
    def state(self) -> str:
        """Done are both stages, of the lengths asked for, when they are evaluated at their end."""
        if not (self.folder / "config.json").exists():
            return "to start"
        begun, steps = read_config(self.folder)[0], (self.config.offline_steps, self.config.online_steps)
        evaluated = str(sum(steps)) in [row["step"] for row in read_rows(self.folder / "eval.csv")]
        complete = evaluated and (steps[1] or (self.folder / "offline.pt").exists())
        return "done" if complete and steps == (begun.offline_steps, begun.online_steps) else "to resume"

    def command(self, workers: int) -> list[str]:
        """--workers gives way to the run's own; --resume where there is nothing simply starts."""
        script = ROOT / ("train_online.py" if self.config.online_steps else "train_offline.py")
        return [sys.executable, str(script), "--workers", str(workers), *self.words, "--resume"]


class Job:
    """What submitit starts: commands one after the other, each with its log, until SIGTERM."""
    stopped = False

    def __call__(self, commands: list[tuple], environment: dict) -> None:
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "stopped", True))
        environment = os.environ | {"TQDM_MININTERVAL": "60"} | environment
        for command, log in commands:
            with open(log, "ab", buffering=0) as out:
                # SIGUSR2, for checkpoint() below, reaches every process of a job, and only this one may hear it.
                self.child = subprocess.Popen(command, stdout=out, stderr=out, env=environment,
                                              preexec_fn=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN))
                while self.child.poll() is None and not self.stopped:
                    time.sleep(0.5)
                if self.stopped:
                    return self.save()

    def save(self) -> None:
        self.child.terminate()
        self.child.wait()

    def checkpoint(self, *same):
        """submitit asks before Slurm's time is up, and queues what it gets: the same commands, which resume."""
        import submitit
        self.save()
        return submitit.helpers.DelayedSubmission(Job(), *same)


def work(args, slurm: bool, groups: list, logs: Path) -> None:
    """Every group a job, as many at a time as there are slots: what a job's environment has besides, its GPU."""
    config = groups[0][0].config                                                 # one --device and --threads for all
    gpus, jobs = [""], max(1, cores() // (config.threads or cores()))
    if torch.cuda.is_available() and config.device != "cpu":
        every = ",".join(map(str, range(torch.cuda.device_count())))
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", every).split(",")
        jobs = len(gpus)
    count, running = min(args.jobs or (len(groups) if slurm else jobs), len(groups)), {}
    slots = [{} if slurm else {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} for i in range(count)]
    workers = args.slurm_cpus if slurm else max(1, cores() // count)
    os.environ.setdefault("SUBMITIT_LOG_LEVEL", "NOCONFIG")      # else its import closes other libraries' handlers
    import submitit
    executor = submitit.AutoExecutor(logs / "jobs", "slurm" if slurm else "local", slurm_max_num_timeout=100)
    executor.update_parameters(
        timeout_min=int(60 * args.slurm_hours) if slurm else 10**7, slurm_gpus_per_node=args.slurm_gpus or None,
        slurm_partition=args.slurm_partition, slurm_cpus_per_task=args.slurm_cpus,
        slurm_srun_args=[f"--cpus-per-task={args.slurm_cpus}"])          # srun asks anew for its cores
    try:
        while groups or running:
            while groups and slots:
                group, slot = groups.pop(0), slots.pop(0)
                commands = [(planned.command(workers), logs / f"{planned.name}.log") for planned in group]
                # Ctrl-C is for the sweep alone, which ends its jobs in order: they inherit that it is blocked.
                before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
                running[executor.submit(Job(), commands, slot)] = group, slot
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            time.sleep(1)
            for job in [job for job in running if job.done()]:
                group, slot = running.pop(job)
                slots.append(slot)
                for planned in group:
                    print(f"{planned.name}: {'done' if planned.state == 'done' else 'failed'}", flush=True)
    finally:                                                     # after an interrupt there are jobs: they save and end
        while left := [job for job in running if not (slurm or job.done())]:
            for job in left:
                os.kill(int(job.job_id), signal.SIGTERM)         # again and again: one that just starts is deaf to it
            time.sleep(1)
        for job in running:
            job.cancel(check=False)


def main() -> None:
    parser = command_line.OneLineParser(description="Every other option is train_online.py's.", allow_abbrev=False)
    option = parser.add_argument
    option("--tasks", "--task", nargs="+", required=True, help="names, as of --task")
    option("--methods", "--method", nargs="+", default=["dfp"], help="names, as of --method (dfp)")
    option("--seeds", "--seed", nargs="+", type=int, default=[0], help="each is a run (0)")
    option("--jobs", type=int, help="at a time (one a GPU, else as the cores allow, on Slurm all)")
    option("--dry-run", action="store_true", help="print the runs and where they stand, and stop")
    option("--report", default="results/sweep", help="folder of the report (results/sweep)")
    option("--cluster", default="auto", choices=("auto", "local", "slurm"), help="auto: Slurm where there is one")
    option("--slurm-partition", help="of the jobs; account, memory and so on: sbatch's variables, SBATCH_ACCOUNT ...")
    option("--slurm-hours", type=float, default=24, help="of a job; what needs longer is queued again (24)")
    option("--slurm-gpus", type=int, default=1, help="of a job (1)")
    option("--slurm-cpus", type=int, default=8, help="of a job; so many simulators evaluate (8)")
    args, rest = parser.parse_known_args()
    slurm = args.cluster != "local" and shutil.which("srun") is not None
    if args.cluster == "slurm" and not slurm:
        raise UserError("--cluster slurm: this machine has no srun")
    if args.jobs is not None and args.jobs < 1:
        raise UserError("--jobs must be positive")
    groups = {}                                                  # of runs that share stage 1
    for task, seed, method in itertools.product(*map(dict.fromkeys, (args.tasks, args.seeds, args.methods))):
        planned = Planned([*rest, "--task", task, "--method", method, "--seed", str(seed)])
        groups.setdefault(str(stage1_knobs(planned.config)), []).append(planned)
    groups = [sorted(group, key=lambda planned: STATES.index(planned.state)) for group in groups.values()]
    runs = sum(groups, [])
    for planned in runs:
        print(f"{planned.state:9}  {planned.name:30}  {planned.folder}")
    print(", ".join(f"{[planned.state for planned in runs].count(state)} {state}" for state in STATES))
    if args.dry_run:
        return
    left = [[planned for planned in group if planned.state != "done"] for group in groups]
    if any(left):
        logs = Path(runs[0].config.out).resolve() / "sweep" / time.strftime(f"%Y%m%d-%H%M%S-{os.getpid()}")
        print(f"logs: {logs}", flush=True)
        work(args, slurm, [group for group in left if group], logs)
    if begun := [str(planned.folder) for planned in runs if read_rows(planned.folder / "eval.csv")]:
        report([*begun, "--out", args.report])
    if failed := [planned.name for planned in runs if planned.state != "done"]:
        raise SystemExit(f"failed: {', '.join(failed)}  (what they said: {logs})")


if __name__ == "__main__":
    command_line.main(main)
