"""Hostile files: one clear line each, from a process that survives them. And the records that vouch for good ones."""
import dataclasses
import json
import os
import pickle
import shutil
import signal
import zipfile

import h5py
import numpy as np
import pytest

import data
import envs
from config import UserError, build
from tools import files

LIFT, CUBE, SCENE = (envs.task(name) for name in ("lift", "cube-single-task2", "scene-task2"))
OWN = envs.Task("reach", "own", "", 50, 3, 2)


@pytest.fixture(scope="module")
def checker():
    with files.Checker() as checker:
        yield checker


def play(rows=40, every=20, task=CUBE, seed=0) -> dict:
    """A small npz of OGBench's layout."""
    rng = np.random.default_rng(seed)
    arrays = dict(observations=rng.normal(size=(rows, task.obs_dim)).astype("f4"), actions=rng.uniform(-1, 1, (rows, 5)).astype("f4"),
                  terminals=np.arange(1, rows + 1) % every == 0, qpos=rng.normal(size=(rows, 21)).astype("f4"))
    return arrays | (dict(button_states=rng.integers(0, 2, (rows, 2))) if task is SCENE else {})


def own(rows=12, seed=0) -> dict:
    rng = np.random.default_rng(seed)
    ends = (np.arange(1, rows + 1) % 4 == 0).astype("f4")
    return dict(observations=rng.normal(size=(rows, 3)), actions=rng.uniform(-1, 1, (rows, 2)), rewards=-np.ones(rows), masks=1 - ends,
                terminals=ends, next_observations=rng.normal(size=(rows, 3)))


def write(arrays, path):
    """As npz or HDF5, whichever the path's ending says."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
    return path


def says(checker, path, task) -> str:
    """The complaint about a file, from the child process and, the same, from data.read."""
    line = checker(path, task.suite, data.words_for(task))
    if line:
        with pytest.raises(UserError) as error:
            data.read(path, task)
        assert line in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 600
    return line


# ---------------------------------------------------------------------------------------------- valid containers, wrong content
def put(name, change):
    """An edit of an HDF5 file: the dataset `name` replaced by change(its numbers), which may have another shape."""
    def edit(file):
        array = change(file[name][()])
        del file[name]
        file[name] = array
    return edit


def with_(array, index, value):
    array = np.array(array)
    array[index] = value
    return array


ROBOMIMIC = {          # what is wrong: (edit, what the line says)
    "no actions": (lambda f: f["data/demo_0"].__delitem__("actions"), "/data/demo_0 has no 'actions'"),
    "no data": (lambda f: f.__delitem__("data"), "/ has no 'data'"),
    "no observation key": (lambda f: f["data/demo_1/obs"].__delitem__("object"), "/data/demo_1/obs has no 'object'"),
    "no next_obs": (lambda f: f["data/demo_1"].__delitem__("next_obs"), "has no 'next_obs'"),
    "no demonstration": (lambda f: [f["data"].__delitem__(name) for name in list(f["data"])], "no demonstration"),
    "another name": (lambda f: f["data"].move("demo_1", "take_1"), "not named demo_<number>"),
    "nan": (put("data/demo_0/actions", lambda a: with_(a, (3, 2), np.nan)), "actions contain NaN"),
    "inf in obs": (put("data/demo_2/obs/object", lambda a: with_(a, (0, 0), np.inf)), "demo_2/obs contain NaN or infinite"),
    "too large for float32": (put("data/demo_2/obs/object", lambda a: with_(a, (0, 0), 1e300)), "demo_2/obs contain NaN or infinite"),
    "action scale": (put("data/demo_0/actions", lambda a: a * 20), "outside [-1, 1]"),
    "action width": (put("data/demo_0/actions", lambda a: a[:, :6]), "actions have shape"),
    "obs width": (put("data/demo_0/obs/object", lambda a: a[:, :9]), "obs have shape"),
    "fewer obs": (put("data/demo_0/obs/object", lambda a: a[:-1]), "rows of every key"),
    "fewer rewards": (put("data/demo_0/rewards", lambda a: a[:-1]), "rewards have shape"),
    "dones of 2": (put("data/demo_0/dones", lambda a: a * 2), "dones are not all 0 or 1"),
    "shaped rewards": (put("data/demo_0/rewards", lambda a: a + 0.3), "rewards are not all 0 or 1"),
    "empty demo": (lambda f: [put(f"data/demo_0/{k}", lambda a: a[:0])(f) for k in ("actions", "rewards", "dones")], "demo_0 is empty"),
    "num_samples": (lambda f: f["data/demo_0"].attrs.__setitem__("num_samples", 3), "says it has 3 steps"),
    "next_obs of another time": (lambda f: [put(f"data/demo_{i}/next_obs/{k}", lambda a: np.roll(a, 5, 0))(f) for i in range(3) for k in envs.OBS_KEYS],
                                 "not the observations that follow"),
    "text": (put("data/demo_0/rewards", lambda a: np.full(a.shape, b"x")), "no array of numbers"),
    "complex": (put("data/demo_0/actions", lambda a: a * 1j), "no array of numbers"),
    "group for array": (lambda f: (f["data/demo_0"].__delitem__("dones"), f.create_group("data/demo_0/dones")), "no array of numbers"),
    "array for group": (lambda f: (f["data"].__delitem__("demo_0"), f["data"].create_dataset("demo_0", data=1)), "is no group"),
    "link to another file": (lambda f: (f["data/demo_0"].__delitem__("dones"),
                                        f["data/demo_0"].__setitem__("dones", h5py.ExternalLink("/tmp/other.hdf5", "x"))), "link to elsewhere"),
    "link in a circle": (lambda f: (f["data"].__delitem__("demo_0"), f["data"].__setitem__("demo_0", h5py.SoftLink("/data/demo_0"))), "link to elsewhere"),
    "numbers in another file": (lambda f: (f["data/demo_0"].__delitem__("dones"), f.create_dataset(
        "data/demo_0/dones", (10,), "f8", external=[("/etc/passwd", 0, 80)])), "in another file"),
    "bomb": (lambda f: (f["data/demo_0"].__delitem__("actions"), f.create_dataset("data/demo_0/actions", (10**12, 7), "f4", chunks=(1000, 7))), "claims 2.8e+13 bytes"),
}
OGBENCH = {          # what is wrong: (change to the arrays, what the line says)
    "no terminals": (lambda a: a.pop("terminals"), "no 'terminals'"),
    "no qpos": (lambda a: a.pop("qpos"), "no 'qpos'"),
    "nan": (lambda a: a.update(observations=with_(a["observations"], (7, 1), np.nan)), "observations contain NaN"),
    "action scale": (lambda a: a.update(actions=a["actions"] * 5), "outside [-1, 1]"),
    "obs width": (lambda a: a.update(observations=a["observations"][:, 1:]), "observations have shape (40, 27), not (any, 28)"),
    "three axes": (lambda a: a.update(actions=a["actions"][..., None]), "actions have shape"),
    "lengths": (lambda a: a.update(actions=a["actions"][:-1]), "differ in length"),
    "no rows": (lambda a: a.update({k: v[:0] for k, v in a.items()}), "no rows"),
    "terminals of 3": (lambda a: a.update(terminals=a["terminals"] * 3.0), "terminals are not all 0 or 1"),
    "no end": (lambda a: a.update(terminals=with_(a["terminals"], -1, 0)), "the last trajectory has no end"),
    "empty trajectory": (lambda a: a.update(terminals=with_(a["terminals"], 20, 1)), "a trajectory is empty"),
    "objects": (lambda a: a.update(actions=np.array([{}] * 40, dtype=object)), "actions is no array of numbers"),
    "text": (lambda a: a.update(actions=np.full((40, 5), "x")), "actions is no array of numbers"),
    "by columns": (lambda a: a.update(actions=np.asfortranarray(a["actions"])), "stored by columns"),
}


@pytest.mark.parametrize("kind", ROBOMIMIC)
def test_wrong_content_of_hdf5(generated, tmp_path, checker, kind):
    edit, line = ROBOMIMIC[kind]
    path = tmp_path / "x.hdf5"
    shutil.copy(generated["lift"], path)
    with h5py.File(path, "r+") as file:
        edit(file)
    assert line in says(checker, path, LIFT)


@pytest.mark.parametrize("kind", OGBENCH)
def test_wrong_content_of_npz(tmp_path, checker, kind):
    change, line = OGBENCH[kind]
    arrays = play()
    change(arrays)
    np.savez(tmp_path / "x.npz", **arrays)
    assert line in says(checker, tmp_path / "x.npz", CUBE)


def test_right_content_of_npz(tmp_path, checker):
    for task in (CUBE, SCENE):
        np.savez(tmp_path / "x.npz", **play(task=task))
        assert says(checker, tmp_path / "x.npz", task) == ""
    np.savez(tmp_path / "x.npz", **play())                     # a cube's file has no buttons
    assert "no 'button_states'" in says(checker, tmp_path / "x.npz", dataclasses.replace(SCENE, obs_dim=28))
    rounding = play()
    rounding["actions"][0, 0] = 1 + 1e-6
    np.savez(tmp_path / "x.npz", **rounding)
    assert says(checker, tmp_path / "x.npz", CUBE) == ""
    with pytest.raises(UserError, match="the simulator has 21"):           # as wide as its neighbours, and of another environment
        np.savez(tmp_path / "x.npz", **play() | dict(qpos=np.zeros((40, 35), "f4")))
        data.read(tmp_path / "x.npz", CUBE)


def test_another_task_s_file(generated, checker):
    assert "demo_0/obs have shape" in says(checker, generated["lift"], envs.task("can"))
    assert "observations have shape" in says(checker, generated["cube-single-task2"], envs.task("cube-double-task2"))
    assert "OSError" in says(checker, generated["cube-single-task2"], LIFT)
    assert "BadZipFile" in says(checker, generated["lift"], CUBE)


@pytest.mark.parametrize("change, line", [
    (lambda a: a.pop("masks"), "masks"), (lambda a: a.update(rewards=a["rewards"][:, None]), "rewards have shape"),
    (lambda a: a.update(actions=a["actions"] * 3), "outside [-1, 1]"), (lambda a: a.update(terminals=a["terminals"] * 0), "no end"),
    (lambda a: a.update(masks=a["masks"] * 0.5), "masks are not all 0 or 1"), (lambda a: a.update(rewards=a["rewards"] * np.nan), "rewards contain NaN")])
def test_data_of_one_s_own(tmp_path, checker, change, line):
    for suffix in (".npz", ".hdf5"):
        path, arrays = tmp_path / f"x{suffix}", own()
        assert says(checker, write(arrays, path), OWN) == ""
        assert np.allclose(data.read(path, OWN)["rewards"], -1)
        change(arrays)
        assert line in says(checker, write(arrays, path), OWN)


# ---------------------------------------------------------------------------------------------------------- broken containers
def test_truncated_and_garbage(generated, tmp_path, checker):
    for key, task in (("lift", LIFT), ("cube-single-task2", CUBE)):
        whole = generated[key].read_bytes()
        for content in (b"", b"\x00" * 5000, whole[:100], whole[: len(whole) // 2], whole[:-10]):
            (tmp_path / "x").write_bytes(content)
            assert says(checker, tmp_path / "x", task)


def zip_of(path, members: dict, size=None, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name + ".npy", content)
    return path


def npy(shape, data=b"", descr="<f4") -> bytes:
    """A .npy member with whatever header."""
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def test_bombs_and_lying_headers(tmp_path, checker):
    good = {name: npy(a.shape, a.tobytes(), a.dtype.str) for name, a in play().items()}
    assert says(checker, zip_of(tmp_path / "x.npz", good), CUBE) == ""
    zeros = npy((10**6, 28), bytes(4 * 28 * 10**6))
    assert "would unpack to 1.1e+08 bytes" in says(checker, zip_of(tmp_path / "x.npz", good | dict(observations=zeros)), CUBE)
    for shape in ((10**13, 28), (2**62, 28), (40, 2**70)):                         # nothing of that size is ever asked for
        assert "does not have the size of its shape" in says(checker, zip_of(tmp_path / "x.npz", good | dict(observations=npy(shape))), CUBE)
    assert "does not have the size" in says(checker, zip_of(tmp_path / "x.npz", good | dict(observations=npy((40, 28), b"\0" * 100))), CUBE)
    assert says(checker, zip_of(tmp_path / "x.npz", good | dict(observations=npy((-40, 28)))), CUBE)
    assert says(checker, zip_of(tmp_path / "x.npz", good | dict(observations=b"\x93NUMPY\x09\x00")), CUBE)
    assert "no array of numbers" in says(checker, zip_of(tmp_path / "x.npz", good | dict(actions=npy((40, 5), bytes(1600), "|O"))), CUBE)
    # a flipped bit in a stored member: the archive's own checksum knows
    zip_of(tmp_path / "x.npz", good, compression=zipfile.ZIP_STORED)
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[1000] ^= 1
    (tmp_path / "x.npz").write_bytes(content)
    assert "Bad CRC" in says(checker, tmp_path / "x.npz", CUBE)


def test_pickles_are_never_opened(tmp_path, checker):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)
    evil = pickle.dumps(np.array([Evil()], dtype=object))
    good = {name: npy(a.shape, a.tobytes(), a.dtype.str) for name, a in play().items()}
    for descr in ("|O", "<f4"):
        assert says(checker, zip_of(tmp_path / "x.npz", good | dict(actions=npy((1,), evil, descr))), CUBE)
    assert not (tmp_path / "ran").exists()


# -------------------------------------------------------------------------------------------------------------- the child
def test_a_crash_or_a_hang_ends_only_the_child(tmp_path, checker, monkeypatch):
    np.savez(tmp_path / "x.npz", **play())
    words = data.words_for(CUBE)
    assert checker(tmp_path / "x.npz", "ogbench", words) == ""
    first = checker.child.pid
    os.kill(first, signal.SIGSEGV)                                                          # as libhdf5 would end it
    assert "ended the process" in checker(tmp_path / "x.npz", "ogbench", words)
    assert checker(tmp_path / "x.npz", "ogbench", words) == "" and checker.child.pid != first
    os.mkfifo(tmp_path / "pipe")                                                            # opening it waits for a writer, forever
    assert "takes longer than 1 s" in checker(tmp_path / "pipe", "own", data.words_for(OWN), seconds=1)
    assert checker(tmp_path / "x.npz", "ogbench", words) == ""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="the limit on memory is Linux's")
def test_a_flood_of_memory_ends_only_the_reading(tmp_path, checker):
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        for name, array in own().items():
            file[name] = array
        file.create_dataset("padding", data=np.zeros(55 << 20, np.uint8))                    # 58 MB justify 1.2 GB
        del file["actions"]
        file.create_dataset("actions", (140 << 20, 2), "f4")                                 # 1.17 GB that nobody wrote
    assert "MemoryError" in checker(tmp_path / "x.hdf5", "own", data.words_for(OWN))


# -------------------------------------------------------------------------------------------------------------- records
def test_a_file_is_checked_once_and_changes_are_noticed(tmp_path, monkeypatch):
    path, record = tmp_path / "x.npz", tmp_path / "x.npz.json"
    np.savez(path, **play())
    asked = []
    trust = lambda: files.trusted(path, record, lambda *_: asked.append(1) or "", "ogbench", ())        # noqa: E731
    entry = trust()
    assert entry["sha256"] == files.sha256(path) and entry["bytes"] == path.stat().st_size and len(asked) == 1
    monkeypatch.setattr(files, "sha256", lambda _: pytest.fail("computed again"))
    assert trust() == entry and len(asked) == 1                                             # size and time are enough
    monkeypatch.undo()
    os.utime(path, (1, 1))                                                                  # copied or touched: the same content
    assert trust()["mtime"] == 10**9 and trust()["sha256"] == entry["sha256"] and len(asked) == 1
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"has changed since .* delete {record}"):
        trust()
    record.unlink()
    assert trust()["sha256"] != entry["sha256"] and len(asked) == 2
    record.write_text("{broken")
    assert trust() and len(asked) == 3


def test_load_says_when_a_file_has_changed(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, **play())
    config = build(dict(task="cube-single-task2", data=str(path), data_dir=str(tmp_path / "data")))
    _, source = data.load(config, lambda _: None)
    assert source["kind"] == "own-mine" and source["sha256"] == files.sha256(path)
    record, = (tmp_path / "data").glob("own/*.json")
    assert json.loads(record.read_text())["bytes"] == path.stat().st_size
    np.savez(path, **play(rows=60))
    with pytest.raises(UserError, match="has changed since"):
        data.load(config)
    with pytest.raises(UserError, match="is no usable data of lift: OSError"):              # a new file is read in the child first
        data.load(build(dict(task="lift", data=str(path), data_dir=str(tmp_path / "other"))))


# ----------------------------------------------------------------------------------------------------------------- fuzz
def mutate(content: bytes, rng) -> bytes:
    """Random damage to a file: bytes changed, cut out, repeated, swapped, zeroed, or the end missing."""
    data_ = bytearray(content)
    for _ in range(int(rng.integers(1, 6))):
        if not data_:
            break
        # half of the places lie in the first kilobytes and the last ones, where containers keep their structure
        edge = int(rng.integers(0, 4096))
        at = int(rng.choice([edge, len(data_) - 1 - edge, rng.integers(len(data_)), rng.integers(len(data_))])) % len(data_)
        size = int(rng.integers(1, 64))
        kind = rng.integers(6)
        if kind == 0:
            data_[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data_[at: at + size] = rng.bytes(size)
        elif kind == 2:
            data_[at: at + size] = bytes([int(rng.choice([0, 255]))]) * size
        elif kind == 3:
            del data_[at: at + size]
        elif kind == 4:
            data_[at: at] = data_[at: at + size]
        else:
            del data_[max(len(data_) - size * 50, 1):]
    return bytes(data_)


def usable(dataset, task) -> bool:
    """What every loaded set must satisfy, whatever the file was."""
    n = len(dataset["rewards"])
    return (all(len(dataset[name]) == n and np.isfinite(dataset[name]).all() for name in data.FIELDS)
            and dataset["observations"].shape == dataset["next_observations"].shape == (n, task.obs_dim)
            and dataset["actions"].shape == (n, task.action_dim) and np.abs(dataset["actions"]).max() <= 1 and dataset["terminals"][-1] == 1
            and set(np.unique(dataset["terminals"])) | set(np.unique(dataset["masks"])) <= {0, 1})


def misstate(fields, names, rng, bounded) -> bool:
    """Puts other arrays in the place of some -> whether that must be noticed. bounded: fields that do not allow every number."""
    noticed = False
    for name in rng.choice(names, rng.integers(1, 4), replace=False):
        array, kind, field = fields[name][()], rng.integers(8), name.split("/")[-1]
        rows = len(array)
        if kind < 2:                                           # one number that cannot be, anywhere
            array = array.astype("f8")
            large = 10 ** rng.uniform(0.1, 9)
            array.flat[rng.integers(array.size)] = rng.choice([np.nan, np.inf, -np.inf, 1e300] + [large, -large] * (field in bounded))
        elif kind == 2:
            array = array[: rng.integers(rows)]
        elif kind == 3:
            array = np.concatenate([array, array[: rng.integers(1, rows + 1)]])
        elif kind == 4:
            array = array[..., None] if array.ndim == 1 or rng.random() < 0.5 else array.reshape(-1)
        elif kind == 5:
            array = array * 1j
        elif kind == 6:
            array = array.astype("S8")
        else:                                                  # the same numbers in another type
            array = array.astype(">f8" if array.dtype == "f8" else rng.choice([">f8", "<f8", ">f4"]))
        noticed |= kind != 7 and field != "states"             # which only --check reads
        del fields[name]
        fields[name] = array
    return noticed


def wrong_content(source, task, arrays, path, rng, turn) -> bool:
    """A valid container that is not what it should be: each thing of the lists above, then anything -> whether it must be noticed."""
    if task is LIFT:
        shutil.copy(source, path)
        with h5py.File(path, "r+") as file:
            if turn < len(ROBOMIMIC):
                list(ROBOMIMIC.values())[turn][0](file)
                return True
            names = []
            file["data"].visititems(lambda name, item: names.append("data/" + name) if isinstance(item, h5py.Dataset) else None)
            return misstate(file, names, rng, ("actions", "rewards", "dones"))
    noticed = True
    if task is CUBE and turn < len(OGBENCH):
        list(OGBENCH.values())[turn][0](arrays)
    else:
        noticed = misstate(arrays, sorted(arrays), rng, ("actions", "terminals", "masks"))
    write(arrays, path)
    return noticed


def fuzz(count, generated, tmp_path, monkeypatch):
    """`count` mutants of all formats, alternately random damage and a valid container with wrong content. Each carries a fresh
    record, so nothing but the readers stands between it and a run."""
    monkeypatch.setitem(envs.TABLE, OWN.name, OWN)
    monkeypatch.setattr("config.TASKS", [*envs.TABLE])
    labels, env = data.relabel, envs.make(CUBE)
    monkeypatch.setattr(data, "relabel", lambda info, task, _=None: labels(info, task, env))
    outcome = {"refused": 0, "read as whole": 0, "read with another number in it": 0, "ended the child": 0}
    distinct = set()
    with files.Checker() as checker:
        for i in range(count):
            rng, turn = np.random.default_rng(i), i // 8
            task, suffix, arrays = ((LIFT, ".hdf5", None), (CUBE, ".npz", play(seed=i)), (OWN, ".hdf5", own(seed=i)), (OWN, ".npz", own(seed=i)))[i // 2 % 4]
            source, path = generated["lift"] if task is LIFT else write(arrays, tmp_path / ("whole" + suffix)), tmp_path / ("x" + suffix)
            damaged, noticed = i % 2 == 0, True
            if damaged:
                path.write_bytes(mutate(source.read_bytes(), rng))
            else:
                noticed = wrong_content(source, task, arrays, path, rng, turn)
            line = checker(path, task.suite, data.words_for(task), seconds=20)
            assert "takes longer" not in line, (i, line)
            if "ended the process" in line:                    # libhdf5 gave up: only the child has seen it
                outcome["ended the child"] += 1
                continue
            config = build(dict(task=task.name, data=str(path), data_dir=str(tmp_path / "data")))
            record = tmp_path / "data/own" / (path.name + ".json")
            record.parent.mkdir(parents=True, exist_ok=True)
            distinct.add(files.remember(path, record)["sha256"])
            try:
                dataset, _ = data.load(config, lambda _: None)
            except UserError as error:
                assert "\n" not in str(error) and len(str(error)) < 700 and noticed, (i, error)
                outcome["refused"] += 1
                continue
            assert not line and usable(dataset, task) and (damaged or not noticed), (i, line)
            truth = data.read(source, task)
            same = all(np.array_equal(dataset[name], truth[name]) for name in data.FIELDS)
            assert same or damaged and suffix == ".hdf5"       # npz has checksums; HDF5 numbers have none, one may be another
            outcome["read as whole" if same else "read with another number in it"] += 1
    print(f"\n{count} mutants, {len(distinct)} of them distinct: {outcome}")
    assert sum(outcome.values()) == count and outcome["refused"] > count / 2 and len(distinct) > 0.9 * (count - outcome["ended the child"])
    env.close()


def test_fuzz(generated, tmp_path, monkeypatch):
    fuzz(240, generated, tmp_path, monkeypatch)


@pytest.mark.slow
def test_fuzz_long(generated, tmp_path, monkeypatch):
    fuzz(2400, generated, tmp_path, monkeypatch)
