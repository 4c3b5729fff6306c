"""Many runs by one command: what it skips, resumes, shares, how many at a time, and what it names where one fails."""
import itertools
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time

import cloudpickle
import pytest
import torch

import toy
from conftest import ROOT
from test_report import make
from tools import sweep
from tools.training import command_line
from tools.training.files import read_rows

TOY = ("--task toy --data toy.npz --preset quick --no-compile --precision fp32 --hidden 16 --layers 2 --batch-size 8 "
       "--offline-steps 12 --online-steps 40 --warmup 10 --eval-every 20 --eval-episodes 3 --log-every 4 --workers 1 "
       "--threads 1")                                            # conftest's train()
REAL = f"""
if __name__ == "__main__":
    import os, sys
    sys.path[:1] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
    import envs, toy, train_online
    from tools.training import command_line, stage
    save = stage.save
    def save_and_die(run, world=None):
        save(run, world)
        if run.step >= 40 and os.path.exists("kill " + run.config.method):
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
signal.alarm(300)
def say(word):
    with open("said", "a") as file:
        print(word, c.method, c.seed, "gpu" + os.environ.get("CUDA_VISIBLE_DEVICES", ""), c.workers, file=file)
def saved(*_):
    time.sleep(1)
    say("saved")
    os._exit(130)
say("begins")
if c.seed == 13:
    raise SystemExit("error: the roof is on fire")
if c.seed == 17 and "saved" not in Path("said").read_text():     # runs until it is stopped, for the first time
    signal.signal(signal.SIGTERM, saved)
    say("waits")
    time.sleep(600)
while (c.method, c.seed) == ("dfp", 0) and "begins qc-fql 0" not in Path("said").read_text():
    time.sleep(0.1)                                              # it ends while the other one runs
folder = Path(c.out, c.task, c.method, "generated", c.preset, f"seed{{c.seed}}")
folder.mkdir(parents=True, exist_ok=True)
record = dict(config=dataclasses.asdict(c), data=dict(kind="generated", sha256="a" * 64))
(folder / "config.json").write_text(json.dumps(record))
(folder / "eval.csv").write_text("step,stage,success,episodes,length,return,seconds\\n"
    f"{{c.offline_steps}},offline,0.5,50,1,1,1\\n{{c.offline_steps + c.online_steps}},online,0.9,50,1,1,1\\n")
say("ends")
"""
LIFT = "--tasks lift --preset quick --data generated"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "ROOT", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "train_online.py").write_text(FAKE)
    cloudpickle.register_pickle_by_value(sweep)                  # as if it were __main__: its jobs need not import it
    yield tmp_path
    cloudpickle.unregister_pickle_by_value(sweep)


def swept(words: str):                                           # -> what it exits with
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["sweep", *words.split()])
        try:
            command_line.main(sweep.main)
        except SystemExit as stop:
            return stop.code
    return 0


def said() -> list[str]:
    return open("said").read().splitlines() if os.path.exists("said") else []


def wait_for(words: str) -> None:
    deadline = time.time() + 300
    while not any(line.startswith(words) for line in said()) and time.time() < deadline:
        time.sleep(0.1)


def stands(here, seed, step=None) -> None:
    """A run of LIFT is there: complete, or evaluated up to a step."""
    made = make(here / "made", seed=seed, until=step)
    shutil.copytree(made, here / f"runs/lift/dfp/generated/quick/seed{seed}")


def test_killed_resumed_and_shared(here, train, capsys):
    """The first of two siblings is killed within stage 2, the second takes its stage 1 all the same. The same command
    then ends the first and skips the second, and every number is that of a run that was left alone."""
    (here / "train_online.py").write_text(REAL)
    (here / "kill dfp").touch()
    words = f"{TOY} --methods dfp dfp-no-topk --cluster local"
    assert swept(words).startswith("failed: toy-dfp-seed0  (")
    assert "unfinished: toy, dfp, " in capsys.readouterr().out
    killed, sibling = (next(here.glob(f"runs/toy/{method}/own-toy/*/seed0")) for method in ("dfp", "dfp-no-topk"))
    assert int(read_rows(killed / "train.csv")[-1]["step"]) == 40

    assert swept(words) == 0
    out = capsys.readouterr().out
    assert "1 done, 1 to resume" in out and "toy-dfp-seed0: done" in out and "toy-dfp-no-topk-seed0: done" not in out
    assert list(here.glob("runs/toy/*/*/*/seed0/offline.pt")) == [killed / "offline.pt"]         # trained once
    assert read_rows(sibling / "train.csv")[:3] == read_rows(killed / "train.csv")[:3]
    toy.assert_same_runs(train("alone"), killed)


def test_side_by_side_and_failing(here, monkeypatch, capsys):
    """Six runs in four jobs, two at a time: each with one GPU and half of the cores. Those that fail end no other."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sweep, "cores", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    words = f"{LIFT} --methods dfp qc-fql dfp-no-topk --seeds 0 13 --cluster local"
    failed, logs = swept(words).split("  (what they said: ")
    assert failed == "failed: lift-dfp-seed13, lift-dfp-no-topk-seed13, lift-qc-fql-seed13"
    assert "the roof is on fire" in open(f"{logs[:-1]}/lift-dfp-seed13.log").read()
    assert (here / "results/sweep/table.md").read_text().count("| 90 (90) |") == 3
    lines = said()
    assert {"begins dfp 0 gpu3 4", "begins qc-fql 0 gpu5 4", "ends dfp-no-topk 0 gpu3 4"} < set(lines)
    assert {line.split()[3] for line in lines} == {"gpu3", "gpu5"} and {line.split()[4] for line in lines} == {"4"}
    assert lines.index("ends dfp 0 gpu3 4") < lines.index("begins dfp-no-topk 0 gpu3 4")
    changes = [line.startswith("begins") - line.startswith("ends") for line in lines if " 13 " not in line]
    assert max(itertools.accumulate(changes)) == 2
    assert swept(f"{words} --seeds 0") == 0 and said() == lines                          # done: not started again
    assert swept(f"{words} --seeds 0 5 --methods dfp") == 0 and said()[-1] == "ends dfp 5 gpu3 8"    # alone: all cores


def test_stopped(here):
    """Ctrl-C: a run saves and ends, before the sweep does; the same command goes on."""
    words = f"{LIFT} --seeds 17 --cluster local"

    def at_a_terminal():
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)         # pytest behind a shell is deaf to it
        sys.exit(swept(words))

    process = multiprocessing.get_context("fork").Process(target=at_a_terminal)
    process.start()
    wait_for("waits dfp 17")
    os.killpg(process.pid, signal.SIGINT)                        # as a terminal does: what it started gets it too
    process.join()
    assert process.exitcode == 130 and [line.split()[0] for line in said()] == ["begins", "waits", "saved"]
    assert swept(words) == 0 and [line.split()[0] for line in said()[3:]] == ["begins", "ends"]


def test_on_slurm(here, monkeypatch):
    """Slurm as four scripts. A job whose time is up is warned: its run saves, is queued again, and ends there."""
    for name, text in dict(
            sbatch='cp "$1" asked; SLURM_JOB_ID=77 SLURM_PROCID=0 setsid bash asked > /dev/null 2>&1 & '
                   'echo "Submitted batch job 77"',
            srun='echo $$ > pid; while [[ $1 == -* ]]; do [[ $1 =~ put|error ]] && shift; shift; done; exec "$@"',
            scontrol='[ "$*" = "requeue 77" ] && setsid bash asked > /dev/null 2>&1 &', sacct="").items():
        (here / name).write_text(f"#!/bin/bash\n{text}\n")
        (here / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(here), prepend=os.pathsep)

    def warn():
        wait_for("waits dfp 17")
        os.killpg(os.getpgid(int((here / "pid").read_text())), signal.SIGUSR2)
    threading.Thread(target=warn).start()
    assert swept(f"{LIFT} --seeds 17 --slurm-partition long --slurm-hours 2 --slurm-gpus 0 --slurm-cpus 3") == 0
    assert [line.split()[0] for line in said()] == ["begins", "waits", "saved", "begins", "ends"]
    asked = (here / "asked").read_text()
    assert all(f"#SBATCH --{words}\n" in asked for words in ("partition=long", "time=120", "cpus-per-task=3"))


def test_dry_run(here, capsys):
    stands(here, 1)
    stands(here, 2, 16000)
    assert swept(f"{LIFT} --seeds 0 1 2 --methods dfp-no-topk dfp --dry-run --cluster local") == 0
    *lines, counts = capsys.readouterr()[0].splitlines()
    assert [line[:5] for line in lines] == ["to st", "to st", "done ", "to st", "to re", "to st"]
    assert "lift-dfp-seed2" in lines[4] and lines[4].endswith("  runs/lift/dfp/generated/quick/seed2")
    assert counts == "1 done, 1 to resume, 4 to start" and not (here / "runs/sweep").exists() and not said()


@pytest.mark.parametrize("words, says", [
    ("--task sqare", "did you mean 'square'"), ("--seeds 0 x", "invalid int value"), ("--sead 1", "--sead"),
    ("--methods dfp qc-fql --top-k 3", "qc-fql does not"), ("--jobs 0", "positive"), ("--cluster slurm", "no srun")])
def test_impossible_wishes_are_one_line(here, monkeypatch, capsys, words, says):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert swept(f"{LIFT} {words}") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and says in err and not (here / "runs").exists()


def test_when_a_run_is_done(here):
    stands(here, 1)
    for knobs, state in (
            ("", "done"), ("--online-steps 15000", "to resume"), ("--online-steps 8000", "to resume"),
            ("--offline-steps 9000 --online-steps 15000", "to resume"), ("--hidden 64", "to start"),
            ("--data official", "to start"), ("--online-steps 0", "to resume")):
        planned = sweep.Planned(f"--task lift --preset quick --seed 1 {knobs}".split())
        assert planned.state == state, knobs
    assert planned.command(2)[1] == str(here / "train_offline.py")
