"""Saved files cannot hurt: what is damaged, or belongs to another run, is refused in one line or replaced by what was
saved before, and a refusal changes nothing. Full disks lose nothing.
"""
import json
import os
import pkgutil
import random
import re
import shutil

import h5py
import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

import evaluate
import run
from buffer import FIELDS, ReplayBuffer
from config import UserError, build
from conftest import ROOT
from test_scripts import script
from tools import export
from tools.standins import generate
from tools.training import command_line, files, saving
from tools.training.files import EVAL_COLUMNS, append_row, cut_rows_after, read_rows
from tools.training.prepare import write_config

CONFIG = dict(task="lift", preset="quick", hidden=8, layers=2, batch_size=4, offline_steps=3, online_steps=50, warmup=1,
              resume=True, compile=False)
OBS, ACTION = 19, 7


def made(folder, data="0" * 64, **knobs) -> run.Run:
    """What prepare() makes, with 30 random transitions instead of files of data."""
    c, rng, widths = build(CONFIG | knobs), np.random.default_rng(0), ((OBS,), (ACTION,), (), (), (), (OBS,))
    dataset = {name: rng.uniform(-1, 1, (30, *width)) for name, width in zip(FIELDS, widths)}
    dataset |= dict(masks=np.ones(30), terminals=np.zeros(30))
    return run.Run(c, folder, dict(kind="generated", sha256=data, path="x.hdf5"),
                   ReplayBuffer(dataset, c.online_steps, c.chunk, c.discount), run.algorithm(c, OBS, ACTION, "cpu"),
                   batch_rng=torch.Generator().manual_seed(1), acting_rng=torch.Generator().manual_seed(2))


def go_on(one: run.Run, steps: int) -> None:
    """The loop of a stage, without a simulator."""
    for one.step in range(one.step + 1, one.step + 1 + steps):
        if one.stage == "online":
            one.buffer.add(np.ones(OBS), np.ones(ACTION), -1.0, False, False, np.ones(OBS))
        info = one.algo.update(one.buffer.chunks(one.buffer.starts(4, one.batch_rng)))
        append_row(one.folder / "train.csv", dict(step=one.step, stage=one.stage, q=info["q"].item()))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run in the middle of stage 2: at step 8, five transitions in, two actions of a chunk to go."""
    one, actions = made(tmp_path_factory.mktemp("run")), [torch.ones(ACTION)] * 2
    write_config(one)
    go_on(one, 3)
    append_row(one.folder / "eval.csv", dict(zip(EVAL_COLUMNS, (3, "offline", 0.5, 2, 7.5, -7.5, 1.25))))
    saving.save_offline(one)
    one.start_online()
    one.stage, one.world_state = "online", dict(episode=2, obs=torch.ones(OBS), played=actions, left=actions)
    go_on(one, 3)
    one.buffer.end_episode()
    go_on(one, 2)
    saving.save(one)
    return one.folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def contents(folder) -> dict:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def plain(state):
    """A nested state as something that == compares."""
    return pytree.tree_map_only(torch.Tensor, lambda x: (x.dtype, *x.shape, x.numpy().tobytes()), state)


def state_of(one: run.Run):
    """Everything that restore() brings back."""
    return plain(dict(algorithm=one.algo.state_dict(), step=one.step, stage=one.stage, world=one.world_state,
                      online=saving.online_rows(one.buffer, 0), cuts=one.buffer.cuts, batches=one.batch_rng.get_state(),
                      acting=one.acting_rng.get_state()))


def said(function, *arguments):
    """What it returns, or the line in which it refuses."""
    try:
        return function(*arguments)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 500
        return str(error)


def resumed(folder, **changes):
    """What restore() brings back, or the line in which it refuses, with every file as it was."""
    one, before = made(folder, **changes), contents(folder)
    refusal = said(saving.restore, one)
    assert not refusal or contents(folder) == before
    return refusal or state_of(one)


def loaded(folder):
    """The policy that run.load() gives, or the line in which it refuses."""
    policy = said(run.load, folder)
    return policy if isinstance(policy, str) else plain(dict(algorithm=policy.state_dict(), step=policy.step))


def damaged(body: bytes):
    """Empty, something else, cut short, a part cut out, zeroed or doubled; and one wrong bit in forty places."""
    half, draw = len(body) // 2, random.Random(0)
    yield from (b"", b"garbage", body[:-1], body[:-100], body[:half], body[100:])
    yield from (body[:half] + bytes(9) + body[half + 9:], body[:half] + body[half - 9:])
    for _ in range(40):
        wrong = bytearray(body)
        wrong[draw.randrange(len(body))] ^= 1 << draw.randrange(8)
        yield bytes(wrong)


def rewrite(path, place: str, value) -> None:
    """One entry of a checkpoint anew, with a fresh checksum. A float fills the tensor that is there."""
    state = parent = files.read_state(path)
    *above, key = [int(key) if key.isdigit() else key for key in place.split()]
    for step in above:
        parent = parent[step]
    parent[key] = torch.full_like(parent[key], value) if isinstance(value, float) else value
    path.unlink()
    files.save_state(path, state)


# ---------------------------------------------------------------------------------------------- checkpoints
@pytest.mark.parametrize("name, at_least", [("checkpoint.pt", 40), ("online.f32", 48)])
def test_damaged_checkpoints(folder, name, at_least):
    """Refused, or the same as before: a checkpoint has gaps that say nothing."""
    same, policy, path, refused = resumed(folder), loaded(folder), folder / name, 0
    assert same["step"] == policy["step"] == 8
    for content in damaged(path.read_bytes()):
        path.write_bytes(content)
        found, other_policy = resumed(folder), loaded(folder)
        assert found == same or str(path) in found
        assert other_policy == policy or name == "checkpoint.pt" and "not a readable checkpoint" in other_policy
        refused += found != same
    assert refused >= at_least


@pytest.mark.parametrize("changes, says", [
    (dict(resume=False), "already holds a run: add --resume to continue it, or choose another --out"),
    (dict(hidden=9), "has --hidden 8, not 9"), (dict(seed=1), "has --seed 0, not 1"),
    (dict(data="1"), "holds a run on other data than"), (dict(offline_steps=4), "is over after 3 steps"),
    (dict(offline_steps=4, resume=False), "for another number choose another --out"),
    (dict(online_steps=4), "is at step 8 already, beyond the 7 asked for")])
def test_another_run_does_not_go_on_from_a_checkpoint(folder, changes, says):
    assert says in resumed(folder, **changes)


@pytest.mark.parametrize("place, value, says", [
    ("algorithm", {}, "does not fit the networks that its config.json describes"),
    ("algorithm critic", {}, "Missing key(s) in state_dict"),
    ("algorithm actor mlp.linears.0.bias", torch.zeros(9), "size mismatch for mlp.linears.0.bias"),
    ("algorithm actor mlp.linears.0.weight", float("nan"), "actor.mlp.linears.0.weight is not finite"),
    ("algorithm optimizer state 0 exp_avg_sq", float("inf"), "optimizer.state.0.exp_avg_sq is not finite"),
    ("algorithm optimizer state 0 exp_avg", torch.zeros(3), "Adam's moments are of another size"),
    ("acting", torch.zeros(3, dtype=torch.uint8), "is no checkpoint of this version"),
    ("online", {}, "is no checkpoint of this version"),
    ("online rows", 4, "does not hold the 4 transitions"), ("online crc", 1, "does not hold the 5 transitions")])
def test_whole_checkpoints_with_wrong_content(folder, place, value, says):
    policy = loaded(folder)
    rewrite(folder / "checkpoint.pt", place, value)
    assert says in resumed(folder)
    assert says in loaded(folder) if place.startswith("algorithm") else loaded(folder) == policy


def test_checkpoints_of_another_format_and_such_as_run_code(folder):
    class Evil:
        __reduce__ = lambda self: (os.mkdir, (str(folder / "ran"),))           # noqa: E731
    path = folder / "checkpoint.pt"
    torch.save({"format": 3}, path)
    assert "checkpoint format 3, this version reads format 5" in loaded(folder) == resumed(folder)
    torch.save(dict(format=files.FORMAT, x=Evil()), path)
    assert "not a readable checkpoint" in loaded(folder)
    files.save_state(path, dict(step=8, x=Evil()))                               # with a checksum that is right
    assert "not a readable checkpoint" in loaded(folder) and not (folder / "ran").exists()


def test_resume_says_where_nothing_is_saved(tmp_path, capsys):
    saving.restore(made(tmp_path, resume=True))
    assert f"nothing is saved in {tmp_path}" in capsys.readouterr().out
    saving.restore(made(tmp_path, resume=False))
    assert not capsys.readouterr().out


def test_a_broken_newest_checkpoint_is_set_aside(folder, capsys):
    """The next save keeps the good one of before, and not the broken one in its place."""
    path, good, one = folder / "checkpoint.pt", (folder / "checkpoint.pt").read_bytes(), made(folder)
    saving.restore(one)
    go_on(one, 1)
    saving.save(one)
    path.write_bytes(path.read_bytes()[:-1000])
    broken, again = path.read_bytes(), made(folder)
    assert run.load(folder).step == 8 and "add --resume" in resumed(folder, resume=False)
    assert path.read_bytes() == broken                           # only a run that goes on moves its files
    saving.restore(again)
    assert again.step == 8 and "going on from the one before it, at step 8" in capsys.readouterr().out
    go_on(again, 1)
    saving.save(again)
    assert (folder / "checkpoint.pt.broken").read_bytes() == broken
    assert (folder / "checkpoint.pt.previous").read_bytes() == good and resumed(folder) == state_of(one)


def test_a_stage_1_that_is_damaged_or_anothers_is_left_out(folder, capsys):
    path, good = folder / "offline.pt", plain(files.read_state(folder / "offline.pt")["algorithm"])
    for changes in (dict(offline_steps=4), dict(lr=1.0), dict(seed=1), dict(data="1"), dict(method="mvp"),
                    dict(acting_ema_rate=0.5)):
        assert not saving.take_offline(made(folder, **changes))
    assert saving.take_offline(made(folder, ema_rate=0.5, online_steps=99))    # which stage 1 does not read
    older = files.read_state(path)
    del older["identity"]["acting_ema_rate"]         # a knob that came later, at its default
    files.save_state(path, older)
    assert saving.take_offline(made(folder)) and not saving.take_offline(made(folder, acting_ema_rate=0.5))
    for content in damaged(path.read_bytes()):
        path.write_bytes(content)
        one, before = made(folder), contents(folder)
        if saving.take_offline(one):
            assert plain(one.algo.state_dict()) == good
        else:
            assert one.step == 0 and f"{path} is left out: " in capsys.readouterr().out and contents(folder) == before


def test_an_infinite_average_of_adam_is_not_saved(folder):
    """It would freeze its weight without a sound."""
    one, before = made(folder), contents(folder)
    saving.restore(one)
    next(iter(one.algo.optimizer.state.values()))["exp_avg_sq"][0, 0] = float("inf")
    with pytest.raises(UserError, match="optimizer.state.0.exp_avg_sq not finite"):
        saving.save(one)
    assert contents(folder) == before


def test_evaluate_refuses_in_one_line(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("evaluate.Evaluator", lambda *_: pytest.fail("evaluated first"))
    (folder / "evaluate.csv").write_text("success,step\n1,8\n")
    assert "cannot be read" in script("evaluate.py", tmp_path, None, f"{folder}", task=None, code=2)
    assert (folder / "evaluate.csv").read_text() == "success,step\n1,8\n"


# ---------------------------------------------------------------------------------------------- config.json
def test_damaged_records_are_refused(folder):
    path = folder / "config.json"
    good = path.read_text()
    for name, value in (("hidden", "word"), ("hidden", -1), ("hidden", 8.5), ("hidden", True), ("lr", float("nan")),
                        ("lr", 1e300), ("temperatures", []), ("temperatures", [1, "x"]), ("temperatures", {"a": 1}),
                        ("method", "dpf"), ("seed", 2**40), ("hiden", 8)):
        record = json.loads(good)
        record["config"][name] = value
        path.write_text(json.dumps(record))
        assert f"{path}: " in loaded(folder) and name in loaded(folder)
    other_data = good.replace('"sha256": "', '"sha256": 1, "": "')
    for content in ("[]", '{"config": 3, "data": {}}', other_data, good + "\udcff"):
        path.write_bytes(content.encode(errors="surrogateescape"))
        assert "not a run's folder: its config.json cannot be read" in loaded(folder)


@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_an_exported_policy_acts_as_its_run(folder, tmp_path, monkeypatch, rate):
    def chunks(where):
        return run.load(where).act(torch.ones(3, OBS), torch.Generator().manual_seed(0))
    record = json.loads((folder / "config.json").read_text())
    record["config"] |= dict(data_dir=str(tmp_path), out=str(tmp_path), acting_ema_rate=rate)   # places of this machine
    (folder / "config.json").write_text(json.dumps(record))
    if rate < 1:
        state = files.read_state(folder / "checkpoint.pt")
        state["algorithm"]["actor_average"] = {name: w + 0.1 for name, w in state["algorithm"]["actor"].items()}
        files.save_state(folder / "checkpoint.pt", state)
    alone, before = tmp_path / "policies" / "lift", contents(folder)
    monkeypatch.setattr("sys.argv", ["export", str(folder), str(alone)])
    export.main()
    export.main()                                    # and over an older one
    assert torch.equal(chunks(alone), chunks(folder)) and run.load(alone).step == 8
    assert sorted(path.name for path in alone.iterdir()) == ["config.json", "policy.pt"]
    assert (alone / "policy.pt").stat().st_size < (folder / "checkpoint.pt").stat().st_size / 3
    assert str(tmp_path) not in (alone / "config.json").read_text()
    assert "holds a run already" in said(export.export, alone, folder) and contents(folder) == before
    played = [{"success": success, "length": 3, "return": -3.0} for success in (True, False)]
    monkeypatch.setattr("evaluate.Evaluator.__call__", lambda *_, **__: played)
    for where, words in ((alone, []), (folder, ["--first", "50"]), (folder, [])):
        monkeypatch.setattr("sys.argv", ["evaluate.py", str(where), *words])
        evaluate.main()                              # a policy's folder gets no table, and other episodes no row
        assert (where / "evaluate.csv").exists() == (where == folder and not words)
    state = files.read_state(alone / "policy.pt")
    del state["algorithm"]["critic"]                 # an untrained one must not take its place
    files.save_state(alone / "policy.pt", state)
    assert "does not fit the networks" in loaded(alone)


@pytest.mark.parametrize("path", sorted((ROOT / "policies").iterdir()), ids=lambda path: path.name)
def test_shipped_policies_are_of_their_task_and_complete(path):
    policy = run.load(path)
    c = policy.config
    assert (c.task, policy.step, policy.stage) == (path.name, c.offline_steps + c.online_steps, "online")


# ---------------------------------------------------------------------------------------------- tables
@pytest.mark.parametrize("old, new", [
    ("step", "steps"), ("step,stage", "stage,step"), ("success", "succes"), ("\n3,", "\nx,"), ("\n3,", "\n4.5,"),
    ("\n3,", "\n,"), ("0.5", "word"), ("0.5", ""), ("0.5", "0.5,1"), ("0.5,", ""), ("0.5", '"0"5'), (",", ";"),
    ("step", "\ufeffstep"), ("line,0", "line\r\n3,offline,0"), ("offline", "\udcff")])
def test_what_is_no_table_is_refused(folder, old, new):
    path = folder / "eval.csv"
    text = path.read_bytes().decode().replace(old, new)
    path.write_bytes(text.encode(errors="surrogateescape"))
    assert re.search("eval.csv cannot be read .*; mend it, or move it away", str(said(read_rows, path)))
    assert "eval.csv cannot be read" in resumed(folder)                        # and no table is written


def test_tables_are_cut_and_grow_in_place(tmp_path):
    path = tmp_path / "train.csv"
    for step in (0, 5, 10):
        append_row(path, dict(step=step, stage="offline", loss=1.0))
    good = path.read_bytes()
    for cut in (1, 5, 12):                                       # a power failure in the last line
        path.write_bytes(good[:-cut])
        assert [row["step"] for row in read_rows(path)] == ["0", "5"]
    append_row(path, dict(step=15, stage="online", loss=1.0, topk_loss=2.0))
    assert [(row["step"], row["topk_loss"]) for row in read_rows(path)] == [("0", ""), ("5", ""), ("15", "2.0")]
    cut_rows_after(tmp_path, 5)                                  # what follows the checkpoint is done again
    assert [row["step"] for row in read_rows(path)] == ["0", "5"]


# ---------------------------------------------------------------------------------------------- full disks
def test_full_disk_loses_nothing(whole, small_disk):
    """Every file of a run: what was there stays, nothing half-written does, and with space all is written."""
    disk, fill = small_disk
    one = made(shutil.copytree(whole, disk / "run"))
    saving.restore(one)
    for one.step in range(9, 19):                                # rows enough for more than a page of the disk
        one.buffer.add(np.ones(OBS), np.ones(ACTION), -1.0, False, False, np.ones(OBS))
    before, table = contents(one.folder), one.folder / "train.csv"
    row = dict(step=50, stage="online", q="1" * 9000)
    jobs = {"a row": lambda: append_row(table, row), "a column": lambda: append_row(table, row | dict(new=1)),
            "config.json": lambda: write_config(one), "checkpoint": lambda: saving.save(one)}
    for free, name in [*((0, name) for name in jobs), (4096, "a row"), (4096, "checkpoint")]:
        fill(free)
        with pytest.raises(OSError, match="No space left"):
            jobs[name]()
        os.remove(disk / "filler")
        after = contents(one.folder)
        assert after.pop("online.f32").startswith(before["online.f32"]), name
        assert after == {k: v for k, v in before.items() if k != "online.f32"}, name
        assert resumed(one.folder)["step"] == 8
    saving.save(one)
    assert resumed(one.folder) == state_of(one) and one.step == 18


@pytest.mark.slow
@pytest.mark.parametrize("where, nth", [
    *(("tools.training.stage.append_row", nth) for nth in (1, 4, 13)), ("tools.training.saving.save_online", 2),
    *(("tools.training.saving.save_state", nth) for nth in (1, 2, 3)), ("train_online.write_config", 1),
    ("tools.report.run_curve.draw_curve", 1)])
def test_run_on_a_full_disk_stops_and_goes_on(where, nth, train, small_disk, monkeypatch, capsys):
    """The disk fills up before the nth call; with space the run ends as an undisturbed one."""
    disk, fill = small_disk
    function, calls = pkgutil.resolve_name(where), []

    def filling(*args, **kwargs):
        calls.append(1)
        if len(calls) == nth:
            fill()
        return function(*args, **kwargs)
    monkeypatch.setattr(where, filling)
    with pytest.raises(SystemExit):
        command_line.main(lambda: train(disk))
    assert capsys.readouterr().err.count("error: No space left on device") == 1 and len(calls) >= nth
    os.remove(disk / "filler")
    again, undisturbed = train(disk, resume=True), train("undisturbed")
    assert read_rows(again / "train.csv") == read_rows(undisturbed / "train.csv")
    one, two = (files.read_state(folder / "checkpoint.pt") for folder in (again, undisturbed))
    assert plain(one["algorithm"]) == plain(two["algorithm"]) and one["online"] == two["online"]


def test_generated_data_on_a_full_disk(small_disk):
    """Finished episodes stay, a set is whole or absent, and with space it is made from them."""
    disk, fill = small_disk
    episode, path = dict(a=np.random.default_rng(0).normal(size=10**5)), disk / "set.npz"

    def hdf5(temporary):
        with h5py.File(temporary, "w") as file:
            file["a"] = episode["a"]

    def npz(temporary):
        generate.write_ogbench(temporary, [episode])
    jobs = [lambda: generate._attempt(lambda index: episode, disk / "play-0.npz", 0),
            lambda: generate._assemble(path, hdf5), lambda: generate._assemble(path, npz)]
    for job in jobs:
        for free in (0, 200_000):
            fill(free)
            with pytest.raises(UserError, match="o space left"):
                job()
            os.remove(disk / "filler")
            assert [*disk.iterdir()] == []
    jobs[-1]()
    with np.load(path) as file:
        assert np.array_equal(file["a"], episode["a"])
