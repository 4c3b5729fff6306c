"""Files that do not fit: one clear line each, before anything is trained. And whose a file is."""
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import pickle
import shutil
import subprocess
from unittest import mock

import h5py
import numpy as np
import pytest

import data
import envs
from buffer import FIELDS
from config import UserError, build
from test_data import with_next_obs
from tools.official import files
from tools.simulators import robosuite_setup
from tools.training.files import one_at_a_time, say_once
from toy import make_dataset

LIFT, CUBE, SCENE = (envs.find_task(name) for name in ("lift", "cube-single-task2", "scene-task2"))
OWN = envs.Task("reach", "own", "", 50, 3, 2)


def play(rows=40, task=CUBE) -> dict:
    rng, joints = np.random.default_rng(0), 25 if task is SCENE else 21
    arrays = dict(observations=rng.normal(size=(rows, task.obs_dim)).astype("f4"),
                  actions=rng.uniform(-1, 1, (rows, 5)).astype("f4"),
                  terminals=np.arange(1, rows + 1) % 20 == 0, qpos=rng.normal(size=(rows, joints)).astype("f4"))
    return arrays | (dict(button_states=rng.integers(0, 2, (rows, 2))) if task is SCENE else {})


def write(arrays, path):
    """As npz or HDF5, whichever the path's ending says."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
    return path


def complaint(path, task) -> str:
    """What reading the file says, in one line that names it; empty if nothing."""
    try:
        data.read(path, task)
        return ""
    except UserError as error:
        line = str(error)
        assert str(path) in line and "\n" not in line and len(line) < 600
        assert ("delete it" in line) == files.record_path(path).exists()             # only what can be had again
        return line


# ------------------------------------------------------------------------------------- valid containers, wrong content
def edited(path, edit):
    """The same file after edit(its arrays by name, or its HDF5 root)."""
    if path.suffix == ".hdf5":
        with h5py.File(path, "r+") as file:
            edit(file)
    else:
        edit(arrays := dict(np.load(path)))
        write(arrays, path)
    return path


def put(name, change):
    """An edit: the array `name` becomes change(its numbers), which may have another shape, or None: no such array."""
    def edit(file):
        array = change(file[name][()])
        del file[name]
        if array is not None:
            file[name] = array
    return edit


def at(index, value):
    def change(array):
        array = array.astype("f8")
        array[index] = value
        return array
    return change


def whole(kind, generated, folder):
    """A good file -> (its path, its task, the names of its fields)."""
    demo = [f"data/demo_1/{name}" for name in ("actions", "rewards", "dones", "obs/object", "next_obs/robot0_eef_pos")]
    if kind == "lift.hdf5":
        return with_next_obs(generated["lift"], folder / kind), LIFT, demo
    task, arrays = (CUBE, play()) if kind == "cube.npz" else (OWN, make_dataset([4] * 3, [True] * 3))
    return write(arrays, folder / kind), task, list(arrays)


KINDS = ("lift.hdf5", "cube.npz", "own.npz", "own.hdf5")
DAMAGES = {
    "missing": lambda a: None, "nan": at(3, np.nan), "inf": at(-2, -np.inf), "too large for float32": at(0, 1e300),
    "shorter": lambda a: a[:-1], "longer": lambda a: np.concatenate([a, a[:2]]), "empty": lambda a: a[:0],
    "another axis": lambda a: a[..., None], "flat": lambda a: a.reshape(-1)[1:], "one number": lambda a: np.float32(3),
    "complex": lambda a: a * 1j, "text": lambda a: a.astype("S8")}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_damage_to_every_field(generated, tmp_path, kind, damage):
    _, _, names = whole(kind, generated, tmp_path)
    for name in names:
        path, task, _ = whole(kind, generated, tmp_path)
        line = complaint(edited(path, put(name, DAMAGES[damage])), task)
        assert name.removeprefix("data/") in line or "have shape" in line, name


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_numbers_in_other_types(generated, tmp_path, kind):
    path, task, names = whole(kind, generated, tmp_path)
    before = data.read(path, task)
    for name, dtype in zip(names, (">f8", ">f4", "<f8", ">f8", "<f4", ">f4")):
        after = data.read(edited(path, put(name, lambda array: array.astype(dtype))), task)
        assert all(after[field].dtype == "f4" and np.array_equal(before[field], after[field]) for field in FIELDS)


WRONG = {              # what is wrong: (file, edit, what the line says)
    "no data": ("lift.hdf5", lambda file: file.move("data", "date"), "it has no group 'data'"),
    "raw": ("lift.hdf5", lambda file: [file.pop(f"data/demo_1/{side}") for side in ("obs", "next_obs")],
            "it is raw, as robosuite records: robomimic's dataset_states_to_obs.py adds the observations"),
    "no next_obs": ("lift.hdf5", lambda file: file.move("data/demo_1/next_obs/object", "x"), "demo_1/next_obs/object"),
    "no demonstration": ("lift.hdf5", lambda file: [file.move(f"data/demo_{i}", f"{i}") for i in range(3)], "no demo"),
    "another name": ("lift.hdf5", lambda file: file.move("data/demo_1", "data/take_1"), "'take_1'"),
    "shaped": ("lift.hdf5", put("data/demo_0/rewards", lambda a: a + 0.3), "rewards are not all 0 or 1"),
    "dones of 2": ("lift.hdf5", put("data/demo_0/dones", lambda a: a * 2), "demo_0/dones are not all 0 or 1"),
    "scale of a demo": ("lift.hdf5", put("data/demo_0/actions", lambda a: a * 20), "outside [-1, 1]"),
    "width": ("cube.npz", put("observations", lambda a: a[:, 1:]), "observations have shape (40, 27), not (40, 28)"),
    "terminals of 3": ("cube.npz", put("terminals", lambda a: a * 3.0), "terminals are not all 0 or 1"),
    "no end": ("cube.npz", put("terminals", at(-1, 0)), "terminals[-1] is not 1"),
    "nothing": ("cube.npz", put("terminals", at(slice(None), 1)), "it holds no transition"),
    "objects": ("cube.npz", put("actions", lambda a: np.array([{}] * 40, dtype=object)), "Object arrays cannot be"),
    "another world": ("cube.npz", put("qpos", lambda a: np.zeros((40, 35))), "qpos have 35 numbers"),
    "a column": ("own.npz", put("rewards", lambda a: a[:, None]), "it is a column: store array[:, 0]"),
    "transposed": ("own.hdf5", put("observations", lambda a: a.T), "lies transposed, as MATLAB and Fortran write it"),
    "D4RL": ("own.hdf5", lambda file: file.move("masks", "timeouts"), "as D4RL has it: add masks = 1 - terminals"),
    "Minari": ("own.hdf5", lambda file: [file.move(name, f"episode_0/{name}") for name in FIELDS], "as Minari has it"),
    "robomimic's": ("own.hdf5", lambda file: [file.move(name, f"data/demo_0/{name}") for name in FIELDS],
                    "as robomimic has it, for lift, can and square"),
    "half masks": ("own.npz", put("masks", lambda a: a * 0.5), "masks are not all 0 or 1"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_content(generated, tmp_path, what):
    kind, edit, says = WRONG[what]
    path, task, _ = whole(kind, generated, tmp_path)
    assert complaint(path, task) == ""
    assert says in complaint(edited(path, edit), task)


def test_buttons_and_rounding(tmp_path):
    path = tmp_path / "x.npz"
    assert complaint(write(play(task=SCENE), path), SCENE) == ""
    write(play(), path)                                    # a cube's file has no buttons
    assert "no 'button_states'" in complaint(path, dataclasses.replace(SCENE, obs_dim=28))
    assert complaint(edited(path, put("actions", at((0, 0), 1 + 1e-6))), CUBE) == ""
    assert np.abs(data.read(path, CUBE)["actions"]).max() < 1


# --------------------------------------------------------------------------------------------------- broken containers
def test_a_file_of_another_task(generated):
    lift, cube = generated["lift"], generated["cube-single-task2"]
    with pytest.raises(UserError, match="was recorded in Lift, and can is PickPlaceCan: it is another task's$"):
        data.read(lift, envs.find_task("can"))                  # ours, and in order: not to be deleted
    assert "observations have shape" in complaint(cube, envs.find_task("cube-double-task2"))
    assert "it is no HDF5 file" in complaint(cube, LIFT) and "no 'observations'" in complaint(lift, CUBE)


def test_truncated_and_garbage(generated, tmp_path):
    for key, task in (("lift", LIFT), ("cube-single-task2", CUBE)):
        body = generated[key].read_bytes()
        for content in (b"", b"\x00" * 5000, body[:100], body[: len(body) // 2], body[:-10]):
            (tmp_path / "x").write_bytes(content)
            assert complaint(tmp_path / "x", task)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    return path


def test_a_flipped_bit_in_an_npz_is_noticed(tmp_path):
    assert "Bad CRC" in complaint(flip_a_bit(write(play(), tmp_path / "x.npz")), CUBE)


def test_pickles_are_never_opened(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)
    np.savez(tmp_path / "x.npz", **play() | dict(actions=np.array([Evil()] * 40, dtype=object)))
    (tmp_path / "y.npz").write_bytes(pickle.dumps(Evil()))
    assert complaint(tmp_path / "x.npz", CUBE) and complaint(tmp_path / "y.npz", CUBE)
    assert not (tmp_path / "ran").exists()


# ----------------------------------------------------------------------------------------------- whose a file is
def test_a_file_of_one_s_own_may_change(tmp_path):
    path = write(play(), tmp_path / "mine.npz")
    config = build(dict(task="cube-single-task2", data=str(path), data_dir=str(tmp_path / "data")))
    for rows in (40, 60):
        write(play(rows), path)
        source = data.load(config)[1]
        assert source["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest() and source["origin"] == {}
        assert source["kind"] == "own-mine" and source["transitions"] == rows - rows // 20
    assert {p.name for p in tmp_path.iterdir()} == {"mine.npz", "data"}                   # nothing is written beside it


def test_a_file_that_was_fetched_or_generated_may_not_change(tmp_path):
    """Whatever its size and time say. A copy may: somebody has made it. So may one whose record is no longer there."""
    path, copy = write(play(), tmp_path / "x.npz"), tmp_path / "copies/x.npz"
    files.remember(path, url="http://host/x.npz")
    assert files.checksum(path, CUBE) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert files.recorded(path)["origin"] == dict(url="http://host/x.npz")
    stat = path.stat()
    edited(path, put("actions", np.negative))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    with pytest.raises(UserError, match="x.npz is no usable data of cube-single-task2: it has changed since it was fetched "
                                        "or generated; delete it to fetch or generate it again$"):
        files.checksum(path, CUBE)
    shutil.copytree(tmp_path, copy.parent, ignore=shutil.ignore_patterns("copies"))
    assert files.checksum(copy, CUBE) and not files.recorded(copy)
    for broken in ("{broken", "[]", "3", "{}"):
        files.record_path(path).write_text(broken)
        assert files.checksum(path, CUBE) and not files.recorded(path)


def test_files_that_cannot_be_opened_now(tmp_path, generated, monkeypatch):
    path = tmp_path / "x.hdf5"
    shutil.copy(generated["lift"], path)
    files.remember(path, generator=1)                                  # ours: yet not to be deleted for that
    with open(path) as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="x.hdf5 is open in another program: close it there$"):
            data.read(path, LIFT)
    assert data.read(path, LIFT)
    monkeypatch.setattr(files.h5py, "is_hdf5", mock.Mock(side_effect=PermissionError))
    with pytest.raises(UserError, match="may not be read by this user$"):
        data.read(path, LIFT)


def test_another_robot_is_told(tmp_path, generated, capsys):
    """Its name, its gains and its clock, whether as robosuite 1.5 writes a controller or as older versions do."""
    def told(**changes):
        path = shutil.copy(generated["lift"], tmp_path / "x.hdf5")
        with h5py.File(path, "r+") as file:
            args = json.loads(file["data"].attrs["env_args"])
            args["env_kwargs"] |= changes
            file["data"].attrs["env_args"] = json.dumps(args)
        say_once.cache_clear()
        assert complaint(path, LIFT) == complaint(path, LIFT) == ""
        return [line.partition("other settings: ")[2] for line in capsys.readouterr().out.splitlines()]
    right = robosuite_setup.arguments("Lift")["controller_configs"]["body_parts"]["right"]
    assert told() == told(robots="Panda", controller_configs=right) == []
    assert told(robots=["Sawyer"], control_freq=100) == [
        "robots is ['Sawyer'] in the file, ['Panda'] here", "control_freq is 100 in the file, 20 here"]
    assert told(controller_configs=right | {"kp": 30}) == ["controller_configs.kp is 30 in the file, 150 here"]


@pytest.mark.parametrize("task, source, knob", [
    ("lift", "own", "data_size"), ("lift", "own", "goal_share"), ("lift", "official", "data_size"),
    ("cube-single-task2", "official", "goal_share"), ("lift", "generated", "goal_share"),
    ("lift", "generated", "mix_size")])
def test_knobs_that_the_data_do_not_read_are_refused(task, source, knob, generated, tmp_path, monkeypatch):
    path = generated[task]
    monkeypatch.setattr("tools.official.fetch.fetch", lambda *_, **__: ([path], ""))
    knobs = dict(task=task, data=str(path) if source == "own" else source, data_dir=str(tmp_path))
    assert data.load(build(knobs))[1]["kind"] == ("own-" + path.stem if source == "own" else source)
    with pytest.raises(UserError, match=f"--{knob.replace('_', '-')} means nothing for"):
        data.load(build(knobs | {knob: 1}), given={knob})


def test_folders_that_can_only_be_read_and_have_no_locks(small_disk, generated, monkeypatch, capsys):
    disk, _ = small_disk
    path = shutil.copy(generated["lift"], disk / "x.hdf5")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    config = build(dict(task="lift", data=str(path), data_dir=str(disk)))
    assert data.load(config)[1]["episodes"] == 3
    with pytest.raises(UserError, match="cannot write to .*; choose another --out"), one_at_a_time(disk / "a", wait=False):
        pass
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    monkeypatch.setattr(fcntl, "flock", mock.Mock(side_effect=OSError(errno.ENOLCK, "No locks available")))
    with one_at_a_time(disk / "a", wait=False):
        assert "knows no locks" in capsys.readouterr().out


def test_only_what_can_be_had_again_is_told_to_be_deleted(tmp_path, generated):
    """Whatever is wrong with a file of one's own, or with one that another project has fetched."""
    broken = tmp_path / "mine.npz"
    broken.write_bytes(b"x" * 1000)
    with pytest.raises(UserError, match="mine.npz is no usable data of lift: it is no HDF5") as error:
        data.load(build(dict(task="lift", data=str(broken), data_dir=str(tmp_path / "data"))))
    assert "delete" not in str(error.value)
    made = tmp_path / "generated" / generated["lift"].name
    made.parent.mkdir()
    shutil.copy2(generated["lift"], made)
    files.remember(made, generator=1)
    config = build(dict(task="lift", data="generated", data_size=3, data_dir=str(tmp_path)))
    assert data.load(config)[1]["kind"] == "generated"
    made.write_bytes(b"x" * 1000)
    with pytest.raises(UserError, match="it has changed since .*; delete it to fetch or generate it again"):
        data.load(config)
