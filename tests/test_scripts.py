"""The scripts from end to end, tiny: both stages, resume, interruption, one-line errors, and what may change training."""
import contextlib
import csv
import gc
import importlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from unittest import mock

import numpy as np
import pytest
import torch

import run
from config import UserError, build
from conftest import ROOT
from tools.training import command_line, saving

SMALL = ("--preset quick --no-compile --data generated --data-size 1400 --goal-share 0.3 --hidden 16 --layers 2 --batch-size 8 --offline-steps 30 "
         "--online-steps 40 --warmup 10 --eval-every 30 --eval-episodes 1 --log-every 5 --workers 1 --threads 1 --precision fp32")


def script(name, folder, data, words="", task="cube-single-task2", code=0, fresh=False, **environment):
    """Runs a script in `folder` and returns its output; the exit code must be `code`, without a stack trace. In this process,
    which saves the start-up, or in a fresh one."""
    words = f"--task {task} {SMALL} --data-dir {data} {words}".split() if task else words.split()
    if fresh:
        result = subprocess.run([sys.executable, str(ROOT / name), *words], cwd=folder, capture_output=True, text=True, timeout=600)
        returned, output = result.returncode, result.stdout + result.stderr
    else:
        module, out = importlib.import_module(name[:-3]), io.StringIO()
        with contextlib.chdir(folder), mock.patch.object(sys, "argv", [name, *words]), mock.patch.dict(os.environ, environment), \
                contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            try:
                command_line.main(module.main)
                returned = 0
            except SystemExit as stop:
                returned = stop.code
        gc.collect()                                             # lets go of the run folder's lock
        output = out.getvalue()
    assert returned == code and "Traceback" not in output, output
    return output


def rows(folder, name, without=("seconds",)):
    with open(folder / name, newline="") as file:
        return [{k: v for k, v in row.items() if k not in without} for row in csv.DictReader(file)]


@pytest.fixture(scope="session")
def home(generated):
    return generated["cube-single-task2"].parent.parent


@pytest.fixture(scope="session")
def first(tmp_path_factory, home):
    """One whole run, for the tests below: (folder it was started in, run folder, output)."""
    folder = tmp_path_factory.mktemp("run")
    output = script("train_online.py", folder, home, fresh=True)
    return folder, next(folder.glob("runs/*/*/*/*/seed0")), output


def test_whole_run_leaves_a_whole_folder(first):
    folder, out, output = first
    assert {p.name for p in out.iterdir()} >= {"config.json", "train.csv", "eval.csv", "offline.pt", "checkpoint.pt", "curve.png"}
    assert out.parent.parent.name == "generated" and out.parent.name.startswith("quick,")
    evals = rows(out, "eval.csv", ())
    assert list(evals[0]) == ["step", "stage", "success", "episodes", "length", "return", "seconds"]
    assert [(r["step"], r["stage"]) for r in evals] == [("0", "offline"), ("30", "offline"), ("60", "online"), ("70", "online")]
    train = rows(out, "train.csv")
    assert list(train[0])[:2] == ["step", "stage"] and "critic_loss" in train[0]
    assert [int(r["step"]) for r in train] == [*range(5, 31, 5), *range(45, 71, 5)]        # nothing is trained in 31-40
    assert train[0]["topk_loss"] == "" and float(train[-1]["topk_loss"]) > 0
    record = json.loads((out / "config.json").read_text())
    assert record["data"]["kind"] == "generated" and len(record["data"]["sha256"]) == 64 and record["versions"]["torch"]
    assert "done: success" in output and "data: generated" in output
    # the bar says why it stands still, and then what came of it
    assert f"evaluating, {evals[0]['episodes']} episodes" in output and f"success={float(evals[0]['success']):.0%}" in output


def test_same_seed_same_run_and_evaluation_changes_nothing(first, tmp_path, home):
    _, out, _ = first
    script("train_online.py", tmp_path, home, "--eval-every 10")
    again = next(tmp_path.glob("runs/*/*/*/*/seed0"))
    assert rows(again, "train.csv") == rows(out, "train.csv")                               # to the last bit
    assert len(rows(again, "eval.csv")) > len(rows(out, "eval.csv"))
    # Stage 1 and 2 in two commands are the run in one.
    folder = tmp_path / "two"
    folder.mkdir()
    script("train_offline.py", folder, home)
    script("train_online.py", folder, home)
    assert rows(next(folder.glob("runs/*/*/*/*/seed0")), "train.csv") == rows(out, "train.csv")
    a, b = (run.read(p / "checkpoint.pt")["algorithm"]["actor"] for p in (again, out))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_another_seed_another_run_in_a_sibling_folder(first, home):
    folder, out, _ = first
    script("train_offline.py", folder, home, "--seed 1")
    assert rows(out.parent / "seed1", "train.csv") != rows(out, "train.csv")[:6]
    assert "offline.pt" in {p.name for p in (out.parent / "seed1").iterdir()}
    assert "already complete" in script("train_offline.py", folder, home, "--seed 1", code=2)
    script("train_online.py", folder, home, "--seed 1")                                     # takes it without --resume
    assert len(rows(out.parent / "seed1", "eval.csv")) == 4


def test_siblings_share_stage_1(first, home):
    folder, out, _ = first
    output = script("train_online.py", folder, home, "--method dfp-no-topk")
    assert "stage 1 taken from" in output
    sibling = next(folder.glob("runs/*/dfp-no-topk/*/*/seed0"))
    assert rows(sibling, "train.csv")[:6] == rows(out, "train.csv")[:6]
    assert float(rows(sibling, "train.csv")[-1]["actor_loss"]) == float(rows(sibling, "train.csv")[-1]["bc_loss"])      # lambda = 0
    assert [r["step"] for r in rows(sibling, "eval.csv")] == ["0", "30", "60", "70"]


@pytest.mark.parametrize("method, sibling", [pytest.param("qc-bfn", None, marks=pytest.mark.slow), ("fql", None), ("mvp-topk", "mvp")])
def test_baselines_run_from_end_to_end(method, sibling, tmp_path, home):
    short = "--eval-every 1000 --offline-steps 10 --online-steps 15 --warmup 5"
    script("train_online.py", tmp_path, home, f"--method {method} {short}")
    out = next(tmp_path.glob(f"runs/cube-single-task2/{method}/*/*/seed0"))
    assert [(r["step"], r["stage"]) for r in rows(out, "eval.csv")] == [("0", "offline"), ("10", "offline"), ("25", "online")]
    assert [r["step"] for r in rows(out, "train.csv")] == ["5", "10", "20", "25"]
    policy = run.load(out)
    assert policy.act(torch.zeros(2, 28)).shape == (2, policy.chunk, 5)
    if sibling:
        assert "stage 1 taken from" in script("train_online.py", tmp_path, home, f"--method {sibling} {short}")
        last = [rows(next(tmp_path.glob(f"runs/*/{m}/*/*/seed0")), "train.csv")[-1]["topk_loss"] for m in (method, sibling)]
        assert float(last[0]) > 0 and last[1] == ""


def test_existing_run_asks_for_resume_and_finished_one_can_be_extended(first, home):
    folder, out, _ = first
    before = rows(out, "train.csv")
    assert "--resume" in script("train_online.py", folder, home, code=2)
    assert "beyond the 50 asked for" in script("train_online.py", folder, home, "--resume --online-steps 20", code=2)
    assert "stage 1" in script("train_online.py", folder, home, "--resume --offline-steps 40", code=2)
    older = run.read(out / "checkpoint.pt")                      # saved before a knob was invented: nothing to disagree with
    older["config"].pop("flow_steps")
    run.save(out / "checkpoint.pt", older)
    script("train_online.py", folder, home, "--resume --online-steps 50")
    after = rows(out, "train.csv")
    assert after[: len(before)] == before and int(after[-1]["step"]) == 80


def test_interrupted_run_says_how_to_go_on_and_does(tmp_path, home):
    words = f"--task cube-single-task2 {SMALL} --data-dir {home} --offline-steps 100000 --eval-every 100000".split()
    process = subprocess.Popen([sys.executable, str(ROOT / "train_online.py"), *words], cwd=tmp_path, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    deadline = time.time() + 120
    while not list(tmp_path.glob("runs/*/*/*/*/seed0/train.csv")) and time.time() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)                    # as a terminal does: workers get it too
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in output and "continue with:" in output
    command = output.split("continue with:")[1].split()
    assert command[-1] == "--resume"
    out = next(tmp_path.glob("runs/*/*/*/*/seed0"))
    stopped = run.read(out / "checkpoint.pt")["step"]
    result = subprocess.run([sys.executable, *command[1:], "--offline-steps", str(stopped + 20)], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    steps = [int(r["step"]) for r in rows(out, "train.csv")]
    assert steps == sorted(set(steps)) and steps[-1] == stopped + 20 + 40


def test_evaluate_and_load_from_python(first):
    folder, out, _ = first
    output = script("evaluate.py", folder, None, f"{out} --episodes 2 --workers 1 --best-of 1", task=None, fresh=True)
    assert "success" in output and "over 2 episodes" in output and "best of 1" in output
    policy = run.load(out)
    assert policy.act(torch.zeros(3, 28)).shape == (3, 5, 5)
    # the policy that was saved is the one that is loaded
    saved = run.read(out / "checkpoint.pt")["algorithm"]["actor"]
    assert all(torch.equal(saved[k], v) for k, v in policy.actor.state_dict().items())


@pytest.mark.parametrize("words, says", [
    ("--online-steps 10", "do not exceed --warmup"), ("--preset offline-rl --online-steps 0 --warmup 0", "train_offline.py"),
    ("--device cuda", "no GPU"), ("--out /proc/nowhere", "cannot write"), ("--chunk 1300", "longer than every episode"),
    ("--data official --data-dir elsewhere", "could not be obtained"),
    ("--seed 99999999999999999999", "--seed must be below")])
def test_impossible_wishes_are_one_line(tmp_path, home, words, says):
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    output = script("train_online.py", tmp_path, home, words, code=2, HOME=str(tmp_path), https_proxy="http://127.0.0.1:9")
    assert says in output and output.count("error:") == 1
    assert not list(tmp_path.glob("runs/**/config.json"))                     # refused before anything was written


def test_unknown_task_lists_the_tasks(tmp_path):
    output = script("train_online.py", tmp_path, None, "--task sqare", task=None, code=2, fresh=True)
    assert "did you mean 'square'" in output and "cube-quadruple-task4" in output


def test_broken_checkpoints_are_one_line(first, tmp_path, home):
    _, out, _ = first
    whole = (out / "checkpoint.pt").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1                                              # one bit, in the middle of a weight
    for content, says in ((b"garbage", "not a readable checkpoint"), (b"", "not a readable checkpoint"),
                          (whole[:-100], "not a readable checkpoint"), (bytes(flipped), "not a readable checkpoint")):
        folder = tmp_path / "broken"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_bytes((out / "config.json").read_bytes())
        (folder / "checkpoint.pt").write_bytes(content)
        with pytest.raises(UserError, match=says):
            run.load(folder)
    torch.save({"format": 0}, folder / "checkpoint.pt")
    with pytest.raises(UserError, match="format 0"):
        run.load(folder)
    (folder / "checkpoint.pt.previous").write_bytes(whole)                     # the one before is whole
    assert run.load(folder).step == run.read(out / "checkpoint.pt")["step"]
    with pytest.raises(UserError, match="not a run's folder"):
        run.load(tmp_path)


def test_checkpoints_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)
    torch.save({"format": run.FORMAT, "x": Evil()}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="not a readable checkpoint"):
        run.read(tmp_path / "x.pt")
    assert not (tmp_path / "ran").exists()


def test_two_processes_in_one_folder(tmp_path):
    config = build({"task": "lift"})
    one = run.Run(tmp_path, config, {})
    with pytest.raises(UserError, match="another process"):
        run.Run(tmp_path, config, {})
    one.lock.close()
    run.Run(tmp_path, config, {}).lock.close()


def test_restart_without_a_checkpoint_starts_its_tables_over(tmp_path):
    one = run.Run(tmp_path, build({"task": "lift"}), {})
    for step in (0, 5, 10):
        one.append("train.csv", dict(step=step, stage="offline", loss=1.0))
    one.append("train.csv", dict(step=15, stage="online", loss=1.0, topk_loss=2.0))          # a new column, in place
    assert [r["topk_loss"] for r in one.rows("train.csv")] == ["", "", "", "2.0"]
    one.cut_rows_after(5)
    assert [r["step"] for r in one.rows("train.csv")] == ["0", "5"]


def test_a_broken_number_stops_and_keeps_the_last_good_state(tmp_path):
    from types import SimpleNamespace

    kept = tmp_path / "checkpoint.pt"
    kept.write_bytes(b"good")
    weight = torch.zeros(2)
    t = SimpleNamespace(step=7, info={"critic_loss": torch.tensor(float("nan")), "q": torch.tensor(1.0)}, starts=torch.zeros(3),
                        buffer=SimpleNamespace(chunks=lambda starts: {"rewards": starts + 1}),
                        run=SimpleNamespace(checkpoint=kept, folder=tmp_path),
                        algo=SimpleNamespace(state_dict=lambda: {"actor": {"w": weight}, "improving": True}))
    with pytest.raises(UserError, match="step 7: critic_loss not finite; batch and networks are in .*, the last good state is"):
        states.save(t)
    assert kept.read_bytes() == b"good" and run.read(tmp_path / "broken.pt")["batch"]["rewards"].tolist() == [1, 1, 1]
    t.info, weight[1] = {"q": torch.tensor(1.0)}, float("inf")                 # a loss that was fine, and a gradient that was not
    with pytest.raises(UserError, match="actor.w not finite"):
        states.save(t)


def test_report_from_run_folders(first, tmp_path):
    folder, out, _ = first
    script("evaluate.py", folder, None, f"{out} --episodes 1 --workers 1 --best-of 1", task=None)
    result = subprocess.run([sys.executable, "-m", "tools.report", str(out), "--out", str(tmp_path / "r")], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    table = (tmp_path / "r/table.md").read_text()
    assert "cube-single-task2 | dfp" in table and "generated | 1 |" in table and (tmp_path / "r/curves.png").exists()
    again = subprocess.run([sys.executable, "-m", "tools.report", str(tmp_path / "r/runs.csv"), "--out", str(tmp_path / "s")], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0 and (tmp_path / "s/table.md").read_text() == table


@pytest.mark.slow
@pytest.mark.parametrize("task", ["lift", "can", "square", "cube-double-task2", "cube-triple-task3", "cube-quadruple-task4",
                                  "scene-task2", "puzzle-3x3-task4", "puzzle-4x4-task4"])
def test_every_task_runs(task, tmp_path):
    """A few hundred steps of each task, data included."""
    size = "4" if task in ("lift", "can", "square") else "2000"
    script("train_online.py", tmp_path, tmp_path, f"--data-size {size} --goal-share 0 --offline-steps 150 --online-steps 150 --eval-every 500 --workers 2", task=task)
    assert len(rows(next(tmp_path.glob("runs/*/*/*/*/seed0")), "eval.csv")) == 3


def test_a_run_that_goes_on_keeps_its_data(home, tmp_path, monkeypatch):
    """--data auto fetched nothing when it began; a host that answers by now must not make another run of it."""
    script("train_online.py", tmp_path, home, "--online-steps 20")
    monkeypatch.setattr("data.fetch", lambda *_: pytest.fail("looked for official data"))
    output = script("train_online.py", tmp_path, home, "--online-steps 40 --data auto --resume")
    assert "data: generated" in output and "done" in output
    assert [p.name for p in (tmp_path / "runs/cube-single-task2/dfp").iterdir()] == ["generated"]


def test_a_set_in_many_files_trains(generated, tmp_path, monkeypatch):
    """cube-quadruple's way of coming, with cube-single's data: official files in another project's folder, as many as asked for."""
    from tools import fetch
    names = [f"set/part-{i}.npz" for i in range(3)]
    (tmp_path / "theirs/set").mkdir(parents=True)
    for name in names:
        shutil.copy(generated["cube-single-task2"], tmp_path / "theirs" / name)
    monkeypatch.setattr(fetch, "official", lambda task: (names, [], tmp_path / "theirs"))
    output = script("train_online.py", tmp_path, tmp_path / "data", "--data official --data-size 2000000 --goal-share 0")
    run_folder = next(tmp_path.glob("runs/*/*/*/*/seed0"))
    record = json.loads((run_folder / "config.json").read_text())["data"]
    with np.load(generated["cube-single-task2"]) as file:
        transitions = 2 * int((~file["terminals"]).sum())
    assert "data: official" in output and len(record["files"]) == 2 and record["transitions"] == transitions
    assert float(rows(run_folder, "train.csv")[-1]["topk_loss"]) > 0
    assert {p.name for p in (tmp_path / "data/maps/set").iterdir()} == {"ends.f32", "index.json", "lasts.i64", "rows.f32"}
