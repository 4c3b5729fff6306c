"""Many runs by one command: what it skips, resumes, shares, how many at a time, and what it names where one fails.

Real runs, of the toy task, where numbers matter; elsewhere a script in train_online.py's place that leaves a finished
run's tables.
"""
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
import time

import cloudpickle
import pytest
import torch

import config
import envs
import toy
import train_online
from conftest import ROOT
from test_report import make
from tools import sweep
from tools.training import command_line
from tools.training.tables import read_rows

TOY = ("--task toy --data toy.npz --preset quick --no-compile --hidden 16 --layers 2 --batch-size 8 --offline-steps 30 "
       "--online-steps 40 --warmup 5 --eval-every 12 --eval-episodes 3 --log-every 5 --workers 1 --threads 1 "
       "--precision fp32")
REAL = f"""
if __name__ == "__main__":
    import os, sys
    sys.path[:1] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
    import envs, toy, train_online
    from tools.training import command_line, stage
    save = stage.save
    def save_and_die(run, world=None):
        save(run, world)
        if run.step >= 48 and os.path.exists("kill " + run.config.method):
            os.unlink("kill " + run.config.method)
            os.kill(os.getpid(), 9)
    stage.save = save_and_die
    envs.register("toy", toy.Toy, toy.TASK.horizon)
    command_line.main(train_online.main)
"""
FAKE = f"""
import dataclasses, json, os, signal, sys, time
from pathlib import Path
sys.path[:1] = [{str(ROOT)!r}]
from tools.training import command_line
c, _ = command_line.parse("")
heard = Path("said").read_text() if Path("said").exists() else ""
def say(word):
    with open("said", "a") as file:
        print(word, c.method, c.seed, "gpu" + os.environ.get("CUDA_VISIBLE_DEVICES", ""), file=file)
def saved(*_):
    time.sleep(1)
    say("saved")
    os._exit(130)
say("begins")
print(c.workers, file=open("workers", "a"))
if c.seed == 13:
    raise SystemExit("error: the roof is on fire")
if c.seed == 17 and "saved" not in heard:                        # runs until it is stopped, for the first time
    signal.signal(signal.SIGTERM, saved)
    say("waits")
    time.sleep(600)
if (c.method, c.seed) == ("dfp", 0):                             # ends while the other one runs
    begun = time.time()
    while "begins qc-fql 0" not in Path("said").read_text() and time.time() < begun + 60:
        time.sleep(0.1)
folder = Path(c.out, c.task, c.method, "generated", c.preset, f"seed{{c.seed}}")
folder.mkdir(parents=True, exist_ok=True)
(folder / "config.json").write_text(json.dumps(dict(
    config=dataclasses.asdict(c), data=dict(kind="generated", sha256="a" * 64))))
(folder / "eval.csv").write_text("step,stage,success,episodes,length,return,seconds\\n"
    f"{{c.offline_steps}},offline,0.5,50,1,1,1\\n{{c.offline_steps + c.online_steps}},online,0.9,50,1,1,1\\n")
say("ends")
"""
LIFT = "--tasks lift --preset quick --data generated"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to be in, where the sweep finds its scripts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "ROOT", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "train_online.py").write_text(FAKE)
    (tmp_path / "data.py").write_text("print('data', file=open('said', 'a'))")
    cloudpickle.register_pickle_by_value(sweep)                  # as if it were __main__: its jobs need not import it
    yield tmp_path
    cloudpickle.unregister_pickle_by_value(sweep)


def swept(words: str) -> int:
    """-> the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["sweep", *words.split()])
        try:
            command_line.main(sweep.main)
        except SystemExit as stop:
            return stop.code
    return 0


def said() -> list[str]:
    return open("said").read().splitlines() if os.path.exists("said") else []


def wait_for(line: str) -> None:
    deadline = time.time() + 600
    while line not in said():
        assert time.time() < deadline, said()
        time.sleep(0.1)


def stands(here, seed, step=None) -> None:
    """A run of LIFT is there: complete, or trained up to a step."""
    folder = here / "runs/lift/dfp/generated/quick"
    folder.mkdir(parents=True, exist_ok=True)
    made = make(here / "made", seed=seed, until=step).rename(folder / f"seed{seed}")
    (made / "train.csv").write_text(f"step,stage\n{step or 24000},online\n")


# ---------------------------------------------------------------------------------------------------------- real runs
def test_killed_resumed_and_shared(here, capsys):
    """The first of two siblings is killed in the middle of stage 2, and the second takes its stage 1 all the same. The
    same command then ends the first and skips the second, and every number is that of a run that was left alone."""
    envs.register("toy", toy.Toy, toy.TASK.horizon)
    try:
        (here / "train_online.py").write_text(REAL)
        (here / "kill dfp").touch()
        toy.write_data(here / "toy.npz")
        words = f"{TOY} --methods dfp dfp-no-topk --cluster local"
        assert swept(words) == 1
        out, err = capsys.readouterr()
        assert "toy-dfp-no-topk-seed0: done" in out and "unfinished: toy, dfp, " in out
        assert re.search(r"^failed: toy-dfp-seed0: ended by SIGKILL  \(.*/toy-dfp-seed0.log\)\n\Z", err, re.MULTILINE)
        killed, sibling = (next(here.glob(f"runs/toy/{method}/own-toy/*/seed0")) for method in ("dfp", "dfp-no-topk"))
        assert int(read_rows(killed / "train.csv")[-1]["step"]) == 45
        before = (sibling / "train.csv").stat().st_mtime_ns

        assert swept(words) == 0
        out, _ = capsys.readouterr()
        assert "1 done, 1 to resume, 0 to start" in out
        assert "toy-dfp-seed0: done" in out and "toy-dfp-no-topk-seed0: done" not in out
        assert (sibling / "train.csv").stat().st_mtime_ns == before
        assert (here / "results/sweep/table.md").read_text().count("| toy |") == 2

        assert list(here.glob("runs/toy/*/*/*/seed0/offline.pt")) == [killed / "offline.pt"]     # trained once
        assert read_rows(sibling / "train.csv")[:6] == read_rows(killed / "train.csv")[:6]
        c, given = command_line.parse("", TOY.split())
        alone = train_online.train(**{name: getattr(c, name) for name in given}, out="alone", resume=False)
        for name in ("train.csv", "eval.csv"):
            ours, theirs = ([row | dict(seconds="") for row in read_rows(folder / name)] for folder in (killed, alone))
            assert ours == theirs

        assert swept(words) == 0                                 # nothing is left but the report
        assert "2 done, 0 to resume, 0 to start" in capsys.readouterr()[0]
    finally:
        del envs.TABLE["toy"]
        config.TASKS.remove("toy")


# --------------------------------------------------------------------------------------------------------------- jobs
def test_side_by_side_and_failing(here, monkeypatch, capsys):
    """Six runs in four jobs on two GPUs and eight cores: each with one GPU and half of the cores, siblings one after
    the other. Those that fail are named, and end no other."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    words = f"{LIFT} --methods dfp qc-fql dfp-no-topk --seeds 0 13 --cluster local"
    assert swept(words) == 1
    out, err = capsys.readouterr()
    assert [line.split("  (")[0] for line in err.splitlines() if line.startswith("failed")] == [
        f"failed: lift-{method}-seed13: error: the roof is on fire" for method in ("dfp", "dfp-no-topk", "qc-fql")]
    assert (here / "results/sweep/table.md").read_text().count("| 90 (90) |") == 3
    lines = said()
    assert {"begins dfp 0 gpu3", "begins qc-fql 0 gpu5"} < set(lines) and lines.count("data") == 4
    assert {line.split()[-1] for line in lines if line.startswith("begins")} == {"gpu3", "gpu5"}
    assert (lines.index("ends dfp 0 gpu3") < lines.index("begins dfp-no-topk 0 gpu3")
            < lines.index("ends dfp-no-topk 0 gpu3"))
    assert swept(f"{words} --seeds 0") == 0 and said() == lines                          # done: not started again
    at_once = alive = 0
    for line in lines:
        alive += line.startswith("begins") and "13" not in line
        at_once, alive = max(at_once, alive), alive - line.startswith("ends")
    assert at_once == 2
    assert swept(f"{words} --seeds 0 5 --methods dfp") == 0 and said()[-1] == "ends dfp 5 gpu3"
    assert open("workers").read().split() == 6 * ["4"] + ["0"]                           # one run alone: all cores


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped(here, how):
    """However the sweep ends, its runs save and end, before it where it can wait; the same command goes on."""
    words = f"{LIFT} --seeds 17 --cluster local --jobs 1"

    def at_a_terminal():
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)         # pytest behind a shell is deaf to it
        sys.exit(swept(words))

    process = multiprocessing.get_context("fork").Process(target=at_a_terminal)
    process.start()
    wait_for("waits dfp 17 gpu")
    if how == signal.SIGINT:
        os.killpg(process.pid, how)                              # as a terminal does: what it started gets it too
    else:
        os.kill(process.pid, how)
    process.join()
    if how == signal.SIGKILL:
        wait_for("saved dfp 17 gpu")
    assert process.exitcode == (-9 if how == signal.SIGKILL else 130)
    assert said() == ["begins dfp 17 gpu", "waits dfp 17 gpu", "saved dfp 17 gpu"]
    assert swept(words) == 0 and said()[3:] == ["begins dfp 17 gpu", "ends dfp 17 gpu"]


def test_on_slurm(here, monkeypatch):
    """Slurm as four scripts: what sbatch is asked, and a job whose time is up. It is warned, as are all its processes;
    the run saves, the job goes into the queue again, and the run ends there."""
    for name, text in dict(
            sbatch='cp "$1" asked; SLURM_JOB_ID=77 SLURM_PROCID=0 setsid bash asked > /dev/null 2>&1 & '
                   'echo "Submitted batch job 77"',
            srun='echo $$ > pid; while [[ $1 == -* ]]; do [[ $1 =~ put|error ]] && shift; shift; done; exec "$@"',
            scontrol='[ "$*" = "requeue 77" ] && setsid bash asked > /dev/null 2>&1 &', sacct="").items():
        (here / name).write_text(f"#!/bin/bash\n{text}\n")
        (here / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(here), prepend=os.pathsep)

    def warn():
        wait_for("waits dfp 17 gpu")
        os.killpg(os.getpgid(int((here / "pid").read_text())), signal.SIGUSR2)
    threading.Thread(target=warn).start()
    assert swept(f"{LIFT} --seeds 17 --slurm-partition long --slurm-hours 2 --slurm-gpus 0 --slurm-cpus 3") == 0
    assert [line.split()[0] for line in said()] == ["begins", "waits", "saved", "begins", "ends"]
    asked = (here / "asked").read_text()
    assert all(f"#SBATCH --{words}\n" in asked for words in ("partition=long", "time=120", "cpus-per-task=3"))
    assert "gpus" not in asked


# ------------------------------------------------------------------------------------------------- what is to be done
def test_dry_run(here, capsys):
    stands(here, 1)
    stands(here, 2, 16000)
    assert swept(f"{LIFT} --seeds 0 1 2 --methods dfp-no-topk dfp --dry-run --cluster local --jobs 2") == 0
    *lines, counts = capsys.readouterr()[0].splitlines()
    states = [line.split("  ")[0] for line in lines]
    assert states == ["to start", "to start", "done", "to start", "to resume", "to start"]
    assert "lift-dfp-seed2" in lines[4] and lines[4].endswith("  runs/lift/dfp/generated/quick/seed2  step 16,000")
    assert lines[3].endswith("/lift/dfp-no-topk/generated/quick/seed1") and counts == "1 done, 1 to resume, 4 to start"
    assert not (here / "runs/sweep").exists() and not said()


@pytest.mark.parametrize("words, says", [
    ("--task sqare", "did you mean 'square'"), ("--methods dfp qc-fpl", "unknown method 'qc-fpl'"),
    ("--seeds 0 x", "invalid int value"), ("--methods dfp qc-fql --top-k 3", "qc-fql does not read --top-k"),
    ("--seeds 0 -1", "--seed must not be negative"), ("--sead 1", "--sead"), ("--jobs 0", "--jobs must be positive"),
    ("--online-steps 400", "do not exceed --warmup 500"), ("--cluster slurm", "no srun"),
    ("--methods mvp mvp-topk --online-steps 0", "differ in stage 2 alone")])
def test_impossible_wishes_are_one_line(here, monkeypatch, capsys, words, says):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert swept(f"{LIFT} {words}") == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1 and says in err
    assert not (here / "runs").exists() and not said()


def test_what_a_run_is_told(here):
    """The script, the data that --data auto has found before, and simulators as it pleases the user, else the sweep."""
    def told(planned, script):
        path, *words = planned.command("data.py") if script == "data.py" else planned.training(2)
        c, _ = command_line.parse("", words)
        assert path == str(here / script)
        return c.workers, c.resume, c.data

    planned = sweep.Planned("--task cube-single-task2 --preset offline-rl --workers 7".split())
    assert told(planned, "train_offline.py") == (7, True, "auto")
    stands(here, 0, 16000)
    planned = sweep.Planned("--task lift --preset quick".split())
    assert told(planned, "train_online.py") == (2, True, "generated") and planned.state == "to resume"
    assert told(planned, "data.py") == (0, False, "generated")
    stands(here, 1)
    for knobs, state in (
            ("", "done"), ("--online-steps 15000", "to resume"), ("--online-steps 8000", "to resume"),
            ("--offline-steps 9000 --online-steps 15000", "to resume"), ("--hidden 64", "to start"),
            ("--data official", "to start")):
        assert sweep.Planned(f"--task lift --preset quick --seed 1 {knobs}".split()).state == state, knobs
