"""Saved files cannot hurt: mutants of checkpoints, config.json and tables are refused in one line or say the same as before, and
nothing is changed by a refusal. Full disks lose nothing.

Some 350 mutants in the normal run, `pytest --slow tests/test_saved.py` makes 2,800 more.
"""
import contextlib
import copy
import csv
import functools
import hashlib
import importlib
import io
import json
import os
import random
import shutil
import zipfile
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

import run
import train_offline
import train_online
from config import UserError, build
from data import ReplayBuffer
from test_scripts import script
from tools import checkpoints, demos, states
from tools.rows import EVAL_COLUMNS, read_rows, write_rows

CONFIG = dict(task="lift", preset="quick", hidden=8, layers=2, batch_size=4, offline_steps=3, online_steps=50, warmup=1, resume=True, compile=False)
OBS, ACTION = 19, 7
EVALUATION = dict(zip(EVAL_COLUMNS, (3, "offline", 0.5, 2, 7.5, -7.5, 1.25)))


def parts(one_run, stage="offline"):
    """What prepare() gives, without data files and simulators."""
    rng, n = np.random.default_rng(0), 30
    width = {"observations": (OBS,), "next_observations": (OBS,), "actions": (ACTION,)}
    dataset = dict(masks=np.ones(n), terminals=np.zeros(n)) | {name: rng.uniform(-1, 1, (n, *width.get(name, ()))).astype("f4") for name in
               ("observations", "actions", "rewards", "next_observations")}
    config = one_run.config
    return SimpleNamespace(
        config=config, run=one_run, buffer=ReplayBuffer(dataset, config.online_steps, config.chunk, config.discount), device=torch.device("cpu"),
        algo=run.algorithm(config, OBS, ACTION, "cpu"), step=0, episode=0, stage=stage, info=None, starts=None, collecting=None, collector=None,
        batches=torch.Generator().manual_seed(1), acting=torch.Generator().manual_seed(2))


def trained(t) -> dict:
    """One update, as train_offline.train() drives it."""
    next(train_offline.one_update(t))
    t.info = t.algo.update(t.buffer.chunks(t.starts))
    return t.info


@pytest.fixture(scope="module")
def one_run(tmp_path_factory):
    """A run's folder in the middle of stage 2, made without a simulator."""
    one = run.Run(tmp_path_factory.mktemp("run"), build(CONFIG), dict(kind="generated", sha256="0" * 64))
    one.write_config()
    t = parts(one)
    for t.step in (1, 2, 3):
        one.append("train.csv", dict(step=t.step, stage="offline", **{k: v.item() for k, v in trained(t).items()}))
    one.append("eval.csv", EVALUATION)
    run.save(one.offline, dict(algorithm=t.algo.state_dict(), step=t.step, identity=one.identity()))
    t.algo.start_online()
    t.stage, t.episode, t.collecting = "online", 2, dict(first=34, chunk=[torch.zeros(ACTION)] * 2)
    for t.step in range(4, 9):
        t.buffer.add(np.ones(OBS), np.ones(ACTION), -1.0, False, False, np.ones(OBS))
        one.append("train.csv", dict(step=t.step, stage="online", **{k: v.item() for k, v in trained(t).items()}))
        if t.step == 6:
            t.buffer.end_episode()
    states.save(t)
    return one


def plain(value):
    """A nested state as something that == compares."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def sizes(state):
    return {k: sizes(v) for k, v in state.items()} if isinstance(state, dict) else state[:2] if isinstance(state, tuple) else type(state)


def loaded(t) -> dict:
    """Everything that restore() brings back."""
    return plain(dict(algorithm=t.algo.state_dict(), step=t.step, stage=t.stage, episode=t.episode, collecting=t.collecting, cuts=t.buffer.cuts,
                      online=t.buffer.online_rows(0), batches=t.batches.get_state(), acting=t.acting.get_state()))


def contents(folder) -> dict:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def container(body: bytes) -> bytes:
    """save()'s outer file around any bytes, with a fresh checksum."""
    file = io.BytesIO()
    torch.save({"format": run.FORMAT, "sha256": hashlib.sha256(body).hexdigest(), "state": torch.frombuffer(bytearray(body), dtype=torch.uint8)}, file)
    return file.getvalue()


def stored(state) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def copied(one_run, folder) -> run.Run:
    again = run.Run(folder, one_run.config, one_run.source)
    for path in one_run.folder.glob("*.*"):
        shutil.copy(path, folder)
    return again


# ---------------------------------------------------------------------------------------------- mutants
def damaged(content: bytes, draw) -> bytes:
    """Bits flipped, a part cut out, doubled, zeroed or made random."""
    content, at, length = bytearray(content), draw.randrange(len(content)), draw.choice((1, 1, 4, 100, 5000))
    kind = draw.randrange(5)
    if kind == 0:
        content[at] ^= 1 << draw.randrange(8)
    elif kind == 1:
        del content[at : at + length]
    elif kind == 2:
        content[at:at] = content[at : at + length]
    else:
        length = min(length, len(content) - at)
        content[at : at + length] = bytes(length) if kind == 3 else draw.randbytes(length)
    return bytes(content)


def other_pickle(body: bytes, draw) -> bytes:
    """A valid archive of tensors whose structure has one to three wrong bytes."""
    archive, file = zipfile.ZipFile(io.BytesIO(body)), io.BytesIO()
    with zipfile.ZipFile(file, "w") as new:
        for entry in archive.infolist():
            part = bytearray(archive.read(entry))
            if entry.filename.endswith("data.pkl"):
                for _ in range(draw.choice((1, 1, 2, 3))):
                    part[draw.randrange(len(part))] = draw.randrange(256)
            new.writestr(entry.filename, bytes(part))
    return file.getvalue()


def places(state, above=()):
    """Where there is something in nested dicts and lists: tuples of keys."""
    for key, value in state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ():
        yield (*above, key)
        yield from places(value, (*above, key))


def wrong(value, draw):
    """Something else in place of a value: never a value of its own kind and size that could have been meant."""
    choices = [None, "word", -1, 10**30, 0.5, (value, value), [value], {"a": value}, b"bytes", {1, 2}, torch.zeros(0)]
    if isinstance(value, torch.Tensor):
        choices += 3 * [torch.cat([value.reshape(-1)] * 2), value.tolist(), torch.zeros(1, dtype=value.dtype).expand(10**6, 10**6), value[None],
                        value.half() if value.is_floating_point() else value.to(torch.float64)]
        if value.is_floating_point():
            choices += 4 * [torch.full_like(value, x) for x in (float("nan"), float("inf"))]
    elif isinstance(value, bool):
        choices += [int(value), str(value)] * 2
    elif isinstance(value, (int, float)):
        choices += [-abs(value) - 1, str(value), float("nan"), float("inf"), 2**63, True] * 2
    elif isinstance(value, str):
        choices += [value[1:] + "x", value + "\0", value.encode()] * 2
    elif isinstance(value, (list, dict)):
        choices += [tuple(value), set(map(str, value))] * 3
    if isinstance(value, dict):
        choices.append({})
    return draw.choice([c for c in choices if type(c) is not type(value) or isinstance(c, torch.Tensor) or plain(c) != plain(value)])


def edited(state: dict, draw) -> dict:
    """A state with one thing wrong: of another kind, missing, under another name, or one too many."""
    state = copy.deepcopy(state)
    *above, key = draw.choice([*places(state)])
    parent = state
    for step in above:
        parent = parent[step]
    kind = draw.randrange(6)
    if kind == 0 and isinstance(parent, dict):
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[f"{key}_"] = parent.pop(key)
    elif kind == 2 and isinstance(parent, dict):
        parent["one more"] = 1
    else:
        parent[key] = wrong(parent[key], draw)
    return state


@pytest.fixture(params=[pytest.param(1, id="some"), pytest.param(10, id="all", marks=pytest.mark.slow)])
def times(request):
    return request.param


def one_line(error) -> bool:
    return "\n" not in str(error.value if hasattr(error, "value") else error) and len(str(error)) < 700


# ---------------------------------------------------------------------------------------------- checkpoints
def try_restore(one_run):
    """What restore() brings back; None where it refuses, in one line and with every file as it was."""
    t, before = parts(one_run), contents(one_run.folder)
    fresh = loaded(t)
    try:
        states.restore(t)
    except UserError as error:
        assert one_line(error)
        assert contents(one_run.folder) == before and loaded(t) | dict(online=0, cuts=0) == fresh | dict(online=0, cuts=0)
        return None
    return loaded(t)


def try_load(folder):
    try:
        policy = run.load(folder)
        return plain(({name: getattr(policy, name).state_dict() for name in ("actor", "actor_old", "critic", "critic_target")},
                      policy.step, policy.stage))
    except UserError as error:
        assert one_line(error)


@contextlib.contextmanager
def in_place(path, content: bytes):
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def test_damaged_checkpoints(one_run, times):
    draw, same, policy = random.Random(times), try_restore(one_run), try_load(one_run.folder)
    assert same and policy
    for path in (one_run.checkpoint, one_run.folder / "online.f32"):
        good, refused = path.read_bytes(), 0
        for _ in range(20 * times):
            with in_place(path, damaged(good, draw)):
                found = try_restore(one_run)
                assert found in (None, same) and try_load(one_run.folder) in (None, policy)
                refused += found is None
        assert refused > 10 * times                              # a container has gaps that say nothing


def test_whole_checkpoints_with_wrong_content(one_run, times):
    """With a fresh checksum: whatever is of another kind is refused, before anything is changed."""
    draw, state = random.Random(times), run.read(one_run.checkpoint)
    same, policy, refused = try_restore(one_run), try_load(one_run.folder), 0
    for _ in range(60 * times):
        mutant = edited(state, draw)
        with in_place(one_run.checkpoint, container(stored(mutant))):
            found = try_restore(one_run)
            assert found in (None, same) and try_load(one_run.folder) in (None, policy)
            refused += found is None
    assert refused > 40 * times


@pytest.mark.parametrize("place, value", [
    ("algorithm optimizer state", {}), ("algorithm actor mlp.linears.0.bias", torch.zeros(8).half()), ("algorithm improving", 1), ("step", 9),
    ("stage", "offline"), ("episode", 0), ("online rows", 4), ("online cuts", [5]), ("online cuts", [3, 2]), ("online crc", 1), ("collecting", None),
    ("collecting first", 36), ("collecting chunk", [torch.zeros(ACTION)] * 6), ("device", "tpu"), ("data", "another"), ("config hidden", 9),
    ("config eval_every", True)])
def test_a_checkpoint_that_contradicts_itself_or_the_run(place, value, one_run):
    state = parent = run.read(one_run.checkpoint)
    *above, key = place.split()
    for step in above:
        parent = parent[step]
    parent[key] = value
    with in_place(one_run.checkpoint, container(stored(state))):
        assert try_restore(one_run) is None


@pytest.mark.filterwarnings("ignore")                            # torch's, about what it is asked to put together
def test_whole_checkpoints_of_random_structure(one_run, times):
    """Fresh checksums, wrong bytes in the pickle. Some say something else that is possible (another episode number, two tensors
    of one size exchanged): that is loaded, at the same step and of the same sizes; all others are refused."""
    draw, body = random.Random(times), stored(run.read(one_run.checkpoint))
    same, refused = try_restore(one_run), 0
    for _ in range(40 * times):
        with in_place(one_run.checkpoint, container(other_pickle(body, draw))):
            found = try_restore(one_run)
            refused += found is None
            if found:
                assert found["step"] == same["step"] and sizes(found["algorithm"]) == sizes(same["algorithm"])
            policy = try_load(one_run.folder)
            assert policy is None or policy[2] == "online"
    assert refused > 20 * times


def test_offline_mutants_are_left_out(one_run, times, capsys):
    """A sibling or this run itself does not start from an offline.pt that is not stage 1's end."""
    draw, file, state = random.Random(times), one_run.offline.read_bytes(), run.read(one_run.offline)
    good = states.offline_state(parts(one_run), one_run.offline)
    taken = 0
    for i in range(40 * times):
        with in_place(one_run.offline, damaged(file, draw) if i % 2 else container(stored(edited(state, draw)))):
            found = states.offline_state(parts(one_run), one_run.offline)
            assert found is None or plain(found) == plain(good)
            taken += found is not None
    assert taken < 25 * times
    t = parts(one_run)
    with in_place(one_run.offline, container(stored(state | dict(step=4)))):
        assert not train_online.take_offline(t) and t.step == 0 and "is left out" in capsys.readouterr().out


class Bytes:
    def __reduce__(self):
        return bytearray, (10**9,)


def test_bombs(tmp_path):
    """Small files that call themselves huge."""
    path, packed = tmp_path / "x.pt", io.BytesIO()
    archive = zipfile.ZipFile(io.BytesIO(stored(dict(step=1, zeros=torch.zeros(10**6)))))
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in archive.infolist():
            new.writestr(entry.filename, archive.read(entry))
    many = dict(format=run.FORMAT, sha256="", state=torch.zeros(1, dtype=torch.uint8).expand(10**12))
    for content in (packed.getvalue(), container(packed.getvalue()), stored(many), container(stored(dict(step=1, x=Bytes())))):
        path.write_bytes(content)
        with pytest.raises(UserError, match="not a readable checkpoint .ValueError"):
            run.read(path)


def test_a_broken_newest_checkpoint_is_set_aside(one_run, tmp_path, capsys):
    """The next save keeps the good one of before, and not the broken one in its place."""
    again = copied(one_run, tmp_path)
    good = again.checkpoint.read_bytes()
    (again.folder / "checkpoint.pt.previous").write_bytes(good)
    again.checkpoint.write_bytes(good[:-1000])
    t = parts(again)
    states.restore(t)
    assert t.step == 8 and "going on from the one before it, at step 8" in capsys.readouterr().out
    states.save(t)
    names = {p.name for p in again.folder.iterdir()}
    assert "checkpoint.pt.broken" in names and (again.folder / "checkpoint.pt.previous").read_bytes() == good
    assert loaded(t) == try_restore(again)
    again.checkpoint.write_bytes(b"")                            # nobody but the run itself may move its files
    assert run.load(again.folder).step == 8 and again.checkpoint.read_bytes() == b""


@pytest.mark.parametrize("method", ["fql", "qc-bfn", "mvp-topk", "mvp", "dfp-no-topk"])
def test_states_of_every_method_fit_themselves_alone(method, one_run):
    make = lambda **knobs: run.algorithm(build({k: v for k, v in CONFIG.items() if k != "resume"} | dict(method=method) | knobs), OBS, ACTION, "cpu")   # noqa: E731
    algo, t = make(), parts(one_run)
    t.algo, t.config, t.buffer.chunk = algo, algo.config, algo.config.chunk
    for _ in range(2):
        trained(t)
        other = make()
        other.load_state_dict(checkpoints.fit(copy.deepcopy(algo.state_dict()), other))
        assert plain(other.state_dict()) == plain(algo.state_dict())
        algo.start_online()
    for knobs in (dict(hidden=9), dict(layers=3), dict(ensemble=3), dict(method="dfp" if method == "fql" else "fql")):
        with pytest.raises(ValueError, match="another kind or size"):
            checkpoints.fit(algo.state_dict(), make(**knobs))


def test_an_infinite_average_of_adam_stops_too(one_run, tmp_path, monkeypatch):
    """It would freeze its weight without a sound. Nothing good is replaced, also where there is no room for the broken state."""
    again = copied(one_run, tmp_path)
    t, good = parts(again), again.checkpoint.read_bytes()
    states.restore(t)
    t.algo.optimizer.state[t.algo.optimizer.param_groups[0]["params"][0]]["exp_avg_sq"][0, 0] = float("inf")
    with pytest.raises(UserError, match="step 8: optimizer.state.0.exp_avg_sq not finite; batch and networks are in .*, the last good state is"):
        states.save(t)
    assert again.checkpoint.read_bytes() == good and not again.checkpoint.with_name("checkpoint.pt.previous").exists()
    assert run.read(tmp_path / "broken.pt")["step"] == 8

    def full(path, state):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(run, "save", full)
    with pytest.raises(UserError, match="not finite; batch and networks could not be kept .No space left on device., the last good state is"):
        states.save(t)


def test_evaluate_refuses_in_one_line(one_run, tmp_path):
    again = copied(one_run, tmp_path / "r")
    with in_place(again.checkpoint, container(stored(run.read(again.checkpoint) | dict(algorithm={})))):
        assert "does not fit" in script("evaluate.py", tmp_path, None, f"{again.folder}", task=None, code=2)
    (again.folder / "evaluate.csv").write_text("step,success\n8,1\n")
    assert "other columns" in script("evaluate.py", tmp_path, None, f"{again.folder}", task=None, code=2)
    assert (again.folder / "evaluate.csv").read_text() == "step,success\n8,1\n"


# ---------------------------------------------------------------------------------------------- config.json
def test_config_mutants(one_run, times):
    """Refused, or the same policy is loaded; the record's knobs have the types of Config's."""
    draw, path, policy, refused = random.Random(times), one_run.folder / "config.json", try_load(one_run.folder), 0
    good = path.read_text()
    for i in range(50 * times):
        record = json.loads(good)
        if i % 5 == 0:
            content = damaged(good.encode(), draw)
        else:
            name, changes = draw.choice([*record["config"]]), draw.randrange(3)
            if changes == 0:
                record["config"][name + draw.choice(("x", "", " "))] = record["config"].pop(name)
            else:
                record["config"][name] = draw.choice([None, "word", -1, -0.5, 10**30, 2**40, 1e300, float("nan"), float("inf"), [], [1, "x"], {}, {"a": 1},
                                                      [[0.05]], True, "1", [0.0]])
            content = json.dumps(record).encode()
        with in_place(path, content):
            found = try_load(one_run.folder)
            assert found in (None, policy)
            refused += found is None
            if found:
                for name, value in vars(run.read_config(one_run.folder)[0]).items():
                    assert type(value) is type(getattr(one_run.config, name)) or type(value) is int and type(getattr(one_run.config, name)) is float
    assert refused > 25 * times
    for content in (b"", b"[]", b"null", b'{"config": 3, "data": {}}', b"[" * 100_000, good.encode("utf-16"), good.replace("0.05", "Infinity").encode(),
                    json.dumps(json.loads(good) | {"data": None}).encode()):
        with in_place(path, content):
            assert try_load(one_run.folder) is None


# ---------------------------------------------------------------------------------------------- tables
def edit_row(number, column, value):
    def edit(text):
        rows = [*csv.reader(io.StringIO(text))]
        rows[number][rows[0].index(column)] = value
        return "".join(",".join(row) + "\r\n" for row in rows)
    return edit


EDITS = [edit_row(2, "step", v) for v in ("-1", "4.5", "x", "", "1_0", "1", "3 ", "\u0663", "1e3", "9" * 30)] + [
    edit_row(2, "stage", v) for v in ("offlin", "", "1", "Online")] + [
    edit_row(2, c, v) for c in ("success", "return", "critic_loss") for v in ("nan", "inf", "1e999", "word", "1_0", "1,5", "0x10", "\0", "'1'", "--1", ".")] + [
    edit_row(2, "success", v) for v in ("-0.1", "1.01", "")] + [edit_row(2, "episodes", v) for v in ("", "2.5", "-3")] + [
    edit_row(0, "step", "steps"), edit_row(0, "stage", "step"), lambda text: text.replace("\r\n", ",1\r\n", 3), lambda text: "\ufeff" + text,
    lambda text: text + text, lambda text: text + text.splitlines()[1] + "\r\n", lambda text: text[: len(text) // 2] + "\r\n" + text, lambda text: "\r\n" + text,
    lambda text: text.replace(",", ";"), lambda text: text.encode("utf-16").decode("latin-1"), lambda text: text.replace("1", "\ud800", 1)]


def test_table_mutants(tmp_path, one_run, times):
    draw = random.Random(times)
    for name in ("train.csv", "eval.csv"):
        path, original = tmp_path / name, one_run.rows(name)
        original += [original[-1] | dict(step=str(9 + i)) for i in range(2)]                              # at least three rows
        write_rows(path, original, original[0])
        good = path.read_bytes()
        assert read_rows(path) == original
        for edit in EDITS:
            with contextlib.suppress(ValueError):                                                          # a column that this table lacks
                path.write_bytes(edit(good.decode()).encode(errors="surrogatepass"))
                with pytest.raises(UserError, match="cannot be read") as error:
                    read_rows(path)
                assert one_line(error)
        for cut in (1, 5, 20):                                                                             # a last line cut short
            path.write_bytes(good[:-cut])
            assert read_rows(path) == original[:-1]
        for _ in range(25 * times):
            path.write_bytes(damaged(good, draw))
            try:
                rows = read_rows(path)
            except UserError as error:
                assert one_line(error)
                continue
            steps = [int(row["step"]) for row in rows]
            assert steps == sorted(set(steps)) and all(0 <= float(row["success"]) <= 1 for row in rows if "success" in row)
            assert all(np.isfinite(float(v)) for row in rows for k, v in row.items() if k != "stage" and v)


def test_what_read_rows_would_refuse_is_not_written(tmp_path):
    one = run.Run(tmp_path, build(CONFIG), {})
    one.append("eval.csv", EVALUATION)
    with pytest.raises(UserError, match="'return' is 'nan' at step '4'"):
        one.append("eval.csv", EVALUATION | {"step": 4, "return": float("nan")})
    with open(tmp_path / "eval.csv", "ab") as file:
        file.write(b"4,offl")                                    # a power failure
    one.append("eval.csv", EVALUATION | dict(step=5))
    assert [r["step"] for r in one.rows("eval.csv")] == ["3", "5"]


# ---------------------------------------------------------------------------------------------- full disks
def test_full_disk_loses_nothing(one_run, small_disk):
    """Every file of a run: what was there stays, to the byte, nothing half-written stays, and with space it is written."""
    disk, fill = small_disk
    again = copied(one_run, disk / "r")
    t = parts(again)
    states.restore(t)
    for _ in range(10):                                          # rows enough for more than a page of the disk
        t.buffer.add(np.ones(OBS), np.ones(ACTION), -1.0, False, False, np.ones(OBS))
        t.step += 1
    before, row = contents(again.folder), again.rows("train.csv")[-1]
    long = {k: "0." + "1" * 5000 if k not in ("step", "stage") else v for k, v in row.items()} | dict(step="50")
    jobs = {"train.csv": lambda: again.append("train.csv", long), "new column": lambda: again.append("train.csv", row | dict(step="50", new="1")),
            "config.json": again.write_config, "checkpoint": lambda: states.save(t)}
    for free in (0, 4096):
        for name, job in jobs.items():
            fill(free if name != "new column" else 0)
            if free and name == "config.json":                   # it fits
                continue
            with pytest.raises(OSError, match="No space left"):
                job()
            os.remove(disk / "filler")
            after = contents(again.folder)
            assert after.keys() == before.keys(), name
            assert {k: v for k, v in after.items() if k != "online.f32"} == {k: v for k, v in before.items() if k != "online.f32"}, name
            assert after["online.f32"].startswith(before["online.f32"])
            assert try_restore(again)["step"] == 8
    states.save(t)
    assert loaded(t) == try_restore(again) and t.step == 18


@pytest.fixture(scope="module")
def undisturbed(generated, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    script("train_online.py", folder, generated["cube-single-task2"].parent.parent, "--eval-every 1000")
    return next(folder.glob("runs/*/*/*/*/seed0"))


@pytest.mark.slow
@pytest.mark.parametrize("where, nth", [
    ("run.append_row", 13), ("run.append_row", 1), ("run.append_row", 4), ("run.save", 1), ("run.save", 2), ("run.save", 3),
    ("run.Run.save_online", 2), ("run.draw_curve", 1), ("run.Run.write_config", 1)])
def test_run_on_a_full_disk_stops_and_goes_on(where, nth, undisturbed, small_disk, generated, tmp_path, monkeypatch):
    """The disk fills up before the nth call; with space, --resume ends in the tables and weights of the undisturbed run."""
    disk, fill = small_disk
    module, *owners, name = where.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    function, calls = getattr(owner, name), []

    def filling(*args, **kwargs):
        calls.append(1)
        if len(calls) == nth:
            fill()
        return function(*args, **kwargs)
    monkeypatch.setattr(owner, name, filling)
    home = generated["cube-single-task2"].parent.parent
    words = f"--eval-every 1000 --out {disk}/runs"
    output = script("train_online.py", tmp_path, home, words, code=2)
    assert "No space left on device" in output and output.count("error:") == 1 and len(calls) >= nth
    os.remove(disk / "filler")
    script("train_online.py", tmp_path, home, words + " --resume")
    again = next(disk.glob("runs/*/*/*/*/seed0"))
    assert read_rows(again / "train.csv") == read_rows(undisturbed / "train.csv")
    one, two = (run.read(folder / "checkpoint.pt") for folder in (again, undisturbed))
    assert plain(one["algorithm"]) == plain(two["algorithm"]) and one["online"] == two["online"]


def test_generated_data_on_a_full_disk(small_disk):
    """Finished episodes stay, a set is whole or absent, and with space it is made from them."""
    disk, fill = small_disk
    episode, part, path = dict(a=np.random.default_rng(0).normal(size=10**5)), disk / "play-000000.npz", disk / "set.npz"

    def hdf5(temporary):
        with h5py.File(temporary, "w") as file:
            file["a"] = episode["a"]
    jobs = [lambda: demos._attempt(lambda index: episode, part, 0)] + [
        functools.partial(demos._assemble, path, write, asked=1) for write in (lambda temporary: demos.write_ogbench(temporary, [episode]), hdf5)]
    for job in jobs:
        for free in (0, 200_000):
            fill(free)
            with pytest.raises(UserError, match="o space left"):
                job()
            os.remove(disk / "filler")
            assert [*disk.iterdir()] == []
    jobs[1]()
    with np.load(path) as file:
        assert np.array_equal(file["a"], episode["a"])
