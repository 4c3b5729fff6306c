"""The scripts from end to end, tiny: both stages, resume, interruption, one-line errors, what may change training."""
import contextlib
import importlib
import io
import itertools
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
import toy
from config import UserError, build
from conftest import ROOT
from dfp import DFP
from tools.official import fetch
from tools.report.tracker import tracker
from tools.training import command_line, files
from tools.training.files import one_at_a_time
from tools.training.prepare import load_data

SMALL = ("--preset quick --no-compile --data generated --data-size 1400 --goal-share 0.3 --hidden 16 --layers 2 "
         "--batch-size 8 --offline-steps 30 --online-steps 40 --warmup 10 --eval-every 30 --eval-episodes 1 "
         "--log-every 5 --workers 1 --threads 1 --precision fp32")


def command(words, folder):
    return subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, timeout=600)


def script(name, folder, data, words="", task="cube-single-task2", code=0, fresh=False, **environment):
    """Runs a script in `folder` and returns its output; the exit code must be `code`, without a stack trace. In this
    process, which saves the start-up, or in a fresh one."""
    words = f"--task {task} {SMALL} --data-dir {data} {words}".split() if task else words.split()
    if fresh:
        result = command([str(ROOT / name), *words], folder)
        returned, output = result.returncode, result.stdout + result.stderr
    else:
        module, out, returned = importlib.import_module(name[:-3]), io.StringIO(), 0
        with (contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(out),
              mock.patch.object(sys, "argv", [name, *words]), mock.patch.dict(os.environ, environment)):
            try:
                command_line.main(module.main)
            except SystemExit as stop:
                returned = stop.code
        output = out.getvalue()
    assert returned == code and "Traceback" not in output, output
    return output


def rows(folder, name, without=("seconds",)):
    return [{k: v for k, v in row.items() if k not in without} for row in files.read_rows(folder / name)]


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
    _, out, output = first
    files = "config.json", "train.csv", "eval.csv", "offline.pt", "checkpoint.pt", "checkpoint.pt.previous", "curve.png"
    assert {p.name for p in out.iterdir()} == {*files, "online.f32", "lock"}
    assert out.parent.parent.name == "generated" and out.parent.name.startswith("quick,")
    evals = rows(out, "eval.csv", ())
    assert list(evals[0]) == ["step", "stage", "success", "episodes", "length", "return", "seconds"]
    assert [r["step"] + r["stage"] for r in evals] == ["0offline", "30offline", "60online", "70online"]
    train = rows(out, "train.csv")
    assert list(train[0])[:2] == ["step", "stage"] and "critic_loss" in train[0]
    assert [int(r["step"]) for r in train] == [*range(5, 31, 5), *range(45, 71, 5)]        # nothing is trained in 31-40
    assert train[0]["topk_loss"] == "" and float(train[-1]["topk_loss"]) > 0
    record = json.loads((out / "config.json").read_text())
    assert record["data"]["kind"] == "generated" and len(record["data"]["sha256"]) == 64 and record["versions"]["torch"]
    assert all(words in output for words in ("data: generated", "30 offline and 40 online steps", "done: success"))
    # the bar says why it stands still, and then what came of it
    assert f"evaluating, {evals[0]['episodes']} episodes" in output
    assert f"success={float(evals[0]['success']):.0%}" in output


def test_same_seed_same_run_and_evaluation_changes_nothing(first, tmp_path, home):
    _, out, _ = first
    script("train_online.py", tmp_path, home, "--eval-every 10")
    again = next(tmp_path.glob("runs/*/*/*/*/seed0"))
    assert rows(again, "train.csv") == rows(out, "train.csv")                               # to the last bit
    assert len(rows(again, "eval.csv")) > len(rows(out, "eval.csv"))
    a, b = (files.read_state(p / "checkpoint.pt")["algorithm"]["actor"] for p in (again, out))
    assert all(torch.equal(a[k], b[k]) for k in a)
    # Stage 1 and 2 in two commands are the run in one. The second takes the first's stage 1 without --resume.
    script("train_offline.py", tmp_path, home, "--out two")
    assert "already complete" in script("train_offline.py", tmp_path, home, "--out two", code=2)
    script("train_online.py", tmp_path, home, "--out two")
    assert rows(next(tmp_path.glob("two/*/*/*/*/seed0")), "train.csv") == rows(out, "train.csv")


@pytest.mark.parametrize("method, sibling", [
    pytest.param("qc-bfn", None, marks=pytest.mark.slow), ("fql", None), ("mvp-topk", "mvp")])
def test_baselines_run_from_end_to_end(method, sibling, tmp_path, home):
    short = "--eval-every 1000 --offline-steps 10 --online-steps 15 --warmup 5"
    script("train_online.py", tmp_path, home, f"--method {method} {short}")
    out = next(tmp_path.glob(f"runs/cube-single-task2/{method}/*/*/seed0"))
    assert [r["step"] + r["stage"] for r in rows(out, "eval.csv")] == ["0offline", "10offline", "25online"]
    assert [r["step"] for r in rows(out, "train.csv")] == ["5", "10", "20", "25"]
    policy = run.load(out)
    assert policy.act(torch.zeros(2, 28)).shape == (2, policy.chunk, 5)
    if sibling:
        assert "stage 1 taken from" in script("train_online.py", tmp_path, home, f"--method {sibling} {short}")
        other = next(tmp_path.glob(f"runs/*/{sibling}/*/*/seed0"))
        assert float(rows(out, "train.csv")[-1]["topk_loss"]) > 0 and rows(other, "train.csv")[-1]["topk_loss"] == ""
        assert rows(other, "train.csv")[:2] == rows(out, "train.csv")[:2]
        assert [r["step"] for r in rows(other, "eval.csv")] == ["0", "10", "25"]


def test_a_finished_run_can_be_extended(first, home):
    folder, out, _ = first
    before = rows(out, "train.csv")
    older = files.read_state(out / "checkpoint.pt")              # saved before a knob was invented: nothing to disagree
    older["config"].pop("precision")
    files.save_state(out / "checkpoint.pt", older)
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
    words = output.split("continue with:")[1].split()
    assert words[-1] == "--resume"
    out = next(tmp_path.glob("runs/*/*/*/*/seed0"))
    stopped = files.read_state(out / "checkpoint.pt")["step"]
    result = command([*words[1:], "--offline-steps", str(stopped + 20)], tmp_path)
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
    saved = files.read_state(out / "checkpoint.pt")["algorithm"]["actor"]
    assert all(torch.equal(saved[k], v) for k, v in policy.actor.state_dict().items())


@pytest.mark.parametrize("words, says", [
    ("--online-steps 10", "do not exceed --warmup"),
    ("--preset offline-rl --online-steps 0 --warmup 0", "train_offline.py"),
    ("--device cuda", "no GPU"), ("--out /proc/nowhere", "cannot write"), ("--chunk 1300", "longer than every episode"),
    ("--data official --data-dir elsewhere", "could not be obtained"),
    ("--seed 99999999999999999999", "--seed must be below")])
def test_impossible_wishes_are_one_line(tmp_path, home, words, says):
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    nowhere = dict(HOME=str(tmp_path), https_proxy="http://127.0.0.1:9")
    output = script("train_online.py", tmp_path, home, words, code=2, **nowhere)
    assert says in output and output.count("error:") == 1
    assert not list(tmp_path.glob("runs/**/config.json"))                     # refused before anything was written


def test_a_run_does_not_leave_its_number_of_threads_behind(train):
    before = torch.get_num_threads()
    with mock.patch.object(DFP, "gradient_step", lambda *_: counts.append(torch.get_num_threads())):
        counts = []
        train("a", threads=before + 1)
    assert {*counts} == {before + 1} and torch.get_num_threads() == before


def test_two_processes_in_one_folder(tmp_path):
    with one_at_a_time(tmp_path):
        with pytest.raises(UserError, match="another process"), one_at_a_time(tmp_path, wait=False):
            pass
    with one_at_a_time(tmp_path, wait=False):
        pass


def test_a_broken_number_stops_and_keeps_the_last_good_state(train, tmp_path, monkeypatch):
    update, updates = DFP.update, itertools.count(1)

    def broken(algo, batch):
        info = update(algo, batch)
        return info | {"q": info["q"] / 0} if next(updates) > 15 else info
    with monkeypatch.context() as patch:
        patch.setattr(DFP, "update", broken)
        with pytest.raises(UserError, match="^step 28: q not finite; the last good state is .*/checkpoint.pt$"):
            train("runs")
    out = next(tmp_path.glob("runs/*/*/*/*/seed0"))
    assert files.read_state(out / "checkpoint.pt")["step"] == 20
    train("runs", resume=True)
    assert rows(out, "train.csv")[-1]["step"] == "52"


def test_a_reader_that_goes_away_ends_it_quietly(tmp_path):
    """python data.py | head"""
    ours, theirs = os.pipe()
    os.close(ours)
    result = subprocess.run([sys.executable, str(ROOT / "data.py"), "--task", "lift", "--preset", "quick"], cwd=tmp_path,
                            stdout=theirs, stderr=subprocess.PIPE, text=True, timeout=100)
    os.close(theirs)
    assert result.returncode == 141 and "Error" not in result.stderr and "data: generated" in result.stderr


def test_a_renderer_that_is_not_there_matters_only_to_python(home, tmp_path):
    """A script renders nothing and says so. Python may: its choice is kept, and named where it does not work."""
    words = f"--task cube-single-task2 --data generated --data-size 1400 --goal-share 0.3 --data-dir {home}"
    code = "import train_online; train_online.train(**dict(word.split('=') for word in '{}'.split()), data_size=1400, " \
           "goal_share=0.3)".format(f"task=cube-single-task2 data=generated data_dir={home}")
    for arguments, status, says in ((["data.py", *words.split()], 0, "cube-single-task2: generated data"),
                                    (["-c", code], 2, "error: MUJOCO_GL=nonsense does not work here (RuntimeError")):
        result = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=100,
                                env=os.environ | {"MUJOCO_GL": "nonsense"})
        assert (result.returncode, "Traceback" in result.stderr) == (status, False), result.stderr
        assert says in result.stdout + result.stderr


def test_trackers_end_with_their_run_and_fail_in_one_line(monkeypatch, tmp_path):
    wandb = mock.MagicMock()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with pytest.raises(KeyError), tracker("wandb", tmp_path) as log:
        log({"eval/success": 1.0}, 3)
        assert not wandb.init.return_value.finish.called
        raise KeyError
    wandb.init.return_value.log.assert_called_once_with({"eval/success": 1.0}, 3)
    wandb.init.return_value.finish.assert_called_once_with()
    assert wandb.init.call_args.kwargs["reinit"] == "create_new"               # of several seeds each has its own
    wandb.init.side_effect = RuntimeError("api_key not configured (no-tty)\nCall wandb.login()")
    with pytest.raises(UserError, match=r"--log wandb does not work here: RuntimeError: api_key not .* Call wandb"):
        tracker("wandb", tmp_path).__enter__()
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        tracker("wandb", tmp_path).__enter__()


@pytest.mark.parametrize("lengths, says", [([2] * 400 + [5], "warning: only 0.1% of the data's chunks of 5"),
                                           ([13] * 20, "70.3% of the data's chunks of 5 lie within")])
def test_the_share_of_whole_chunks_is_told(lengths, says, train, tmp_path, capsys):
    np.savez(tmp_path / "short.npz", **toy.make_dataset(lengths, [False] * len(lengths)))
    load_data(build(dict(task="toy", data=str(tmp_path / "short.npz"), data_dir=str(tmp_path))), set())
    assert says in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("task", [
    "lift", "can", "square", "cube-double-task2", "cube-triple-task3", "cube-quadruple-task4", "scene-task2",
    "puzzle-3x3-task4", "puzzle-4x4-task4"])
def test_every_task_runs(task, tmp_path):
    """A few hundred steps of each task, data included."""
    size = "--workers 2 --data-size " + ("4" if task in ("lift", "can", "square") else "2000")
    steps = "--goal-share 0 --offline-steps 150 --online-steps 150 --eval-every 500"
    script("train_online.py", tmp_path, tmp_path, f"{size} {steps}", task=task)
    assert len(rows(next(tmp_path.glob("runs/*/*/*/*/seed0")), "eval.csv")) == 3


def test_a_run_that_goes_on_keeps_its_data(home, tmp_path, monkeypatch):
    """--data auto fetched nothing when it began; a host that answers by now must not make another run of it."""
    script("train_online.py", tmp_path, home, "--online-steps 20")
    monkeypatch.setattr(fetch, "fetch", lambda *_, **__: pytest.fail("looked for official data"))
    output = script("train_online.py", tmp_path, home, "--online-steps 40 --data auto --resume")
    assert "data: generated" in output and "done" in output
    assert [p.name for p in (tmp_path / "runs/cube-single-task2/dfp").iterdir()] == ["generated"]


def test_a_set_in_many_files_trains(generated, tmp_path, monkeypatch):
    """As cube-quadruple's do, here with cube-single's data: in another project's folder, and as many as asked for."""
    names = [f"set/part-{i}.npz" for i in range(3)]
    (tmp_path / "theirs/set").mkdir(parents=True)
    for name in names:
        shutil.copy(generated["cube-single-task2"], tmp_path / "theirs" / name)
    monkeypatch.setattr(fetch, "official", lambda task: (names, [], tmp_path / "theirs"))
    words = "--data official --data-size 2000000 --goal-share 0"
    output = script("train_online.py", tmp_path, tmp_path / "data", words)
    run_folder = next(tmp_path.glob("runs/*/*/*/*/seed0"))
    record = json.loads((run_folder / "config.json").read_text())["data"]
    with np.load(generated["cube-single-task2"]) as file:
        transitions = 2 * int((~file["terminals"]).sum())
    assert "data: official" in output and len(record["files"]) == 2 and record["transitions"] == transitions
    assert float(rows(run_folder, "train.csv")[-1]["topk_loss"]) > 0
    mapped = {p.name for p in (tmp_path / "data/maps/set").iterdir()}
    assert mapped == {"ends.f32", "index.json", "lasts.i64", "rows.f32"}
