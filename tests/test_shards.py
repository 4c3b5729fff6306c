"""Sets in many files: the mapped arrays hold what reading the files gives, sampling is uniform over all of them, and
little memory is used."""
import dataclasses
import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import data
import envs
from buffer import FIELDS, ReplayBuffer
from config import UserError, build
from conftest import ROOT
from tools.official import files, shards
from tools.training.saving import fill_online, online_rows

CUBE = envs.find_task("cube-single-task2")
LENGTHS = [[9, 30, 4], [50], [7, 7, 7, 2, 12]]             # of the trajectories in each file


def write(folder, lengths, first=0):
    """One npz of OGBench's layout for each list of trajectory lengths; every number in it is another one."""
    simulator = data.simulator_of(CUBE)
    simulator.reset()
    goal = simulator.unwrapped._data.mocap_pos[0]
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i, trajectories in enumerate(lengths, first):
        rng, rows = np.random.default_rng(i), sum(trajectories)
        qpos = rng.normal(size=(rows, 21)).astype("f4")
        qpos[rng.random(rows) < 0.2, 14:17] = goal                             # some rows reach the goal
        paths.append(folder / f"part-{i:03d}.npz")
        np.savez(paths[-1], observations=rng.normal(size=(rows, 28)).astype("f4"), qpos=qpos,
                 actions=rng.uniform(-1, 1, (rows, 5)).astype("f4"),
                 terminals=np.isin(np.arange(rows), np.cumsum(trajectories) - 1))
    return paths


def open_set(paths, folder, task=CUBE, read=data.read):
    dataset, _, counts = shards.load(paths, folder, task, read)
    return dataset, counts


@pytest.fixture
def paths(tmp_path):
    return write(tmp_path / "set", LENGTHS)


def mapped(dataset, online=0, **more):
    return shards.ShardBuffer(dataset, online, 5, 0.9, **more)


def add(buffer, count):
    """Online transitions, every number of each its own, one terminated and one in seven cut off."""
    for i in range(count):
        buffer.add(np.full(28, i), np.full(5, i), i, i == 3, i % 7 == 0, np.full(28, i + 1))


def together(paths):
    """All files in memory, one after the other."""
    parts = [data.read(path, CUBE) for path in paths]
    return {name: np.concatenate([part[name] for part in parts]) for name in FIELDS}


def plain(paths, online=0):
    return ReplayBuffer(together(paths), online, 5, 0.9)


def equal(one, two):
    return all(torch.equal(one[name], two[name]) for name in one) and one.keys() == two.keys()


def test_tasks_of_one_environment_share_the_arrays(paths, tmp_path, monkeypatch):
    """Each finds its own rewards in them."""
    other = dataclasses.replace(CUBE, name="another-goal")
    monkeypatch.setitem(envs.TABLE, other.name, other)

    def label(rows, task, usual=data.label):
        rewards, masks = usual(rows, CUBE)
        return rewards - (task is other), masks
    monkeypatch.setattr(data, "label", label)
    for task, successes in ((CUBE, True), (other, False)):
        dataset, counts = open_set(paths, tmp_path, task)
        found = mapped(dataset).transitions(torch.arange(len(dataset["records"])))
        assert np.array_equal(found["rewards"], together(paths)["rewards"] - (task is other))
        assert bool(counts["successes"]) == successes and found["masks"].all() != successes


def test_many_files_hold_and_give_the_same_as_memory(paths, tmp_path):
    """The mapped array against its copy in memory, and against plain rows for the starts that were drawn."""
    (dataset, counts), memory = open_set(paths, tmp_path), together(paths)
    counted = files.count(memory["terminals"], memory["masks"] == 0)
    assert counts | counted | dict(transitions=119, episodes=9, longest=49) == counts
    assert set(np.unique(memory["masks"])) == {0, 1}
    copied = dataset | {name: dataset[name].clone() for name in ("records", "ends", "lasts")} | {"map": None}
    on_disk, in_memory, rows = mapped(dataset, 500), mapped(copied, 500), plain(paths, 500)
    for i in range(20):
        for buffer in (on_disk, in_memory, rows):
            add(buffer, i)
        one, two, three = (torch.Generator().manual_seed(i) for _ in range(3))
        batch = on_disk.chunks(on_disk.starts(64, one))
        assert equal(batch, in_memory.chunks(in_memory.starts(64, two))) and equal(batch, rows.chunks(on_disk.starts(64, three)))
    index = torch.arange(rows.size).reshape(3, -1)          # of any shape, seams in it
    assert equal(on_disk.transitions(index), rows.transitions(index))
    resumed = mapped(dataset, 500)
    fill_online(resumed, online_rows(on_disk, 0), on_disk.cuts)
    assert equal(*(buffer.chunks(buffer.starts(99, torch.Generator().manual_seed(0))) for buffer in (on_disk, resumed)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_same_batches_on_the_gpu(paths, tmp_path, device):
    """--data-device cuda, and the mapped array with training on the GPU."""
    dataset, _ = open_set(paths, tmp_path)
    here, there = mapped(dataset, 50), mapped(dataset, 50, device=device, batch_device="cuda")
    for buffer in (here, there):
        add(buffer, 20)
    starts = here.starts(64, torch.Generator().manual_seed(0))
    for name, value in there.chunks(starts.to(there.device)).items():
        assert value.is_cuda and torch.allclose(value.cpu(), here.chunks(starts)[name], atol=1e-6)
    drawn = there.starts(1000, torch.Generator(there.device).manual_seed(0))
    assert (drawn >= there.offline_size).any() and (drawn < there.offline_size).any() and drawn.max() < there.size - 4


def test_starts_are_uniform_over_a_hundred_files_and_stay_inside_one(tmp_path):
    lengths = [[int(n)] for n in np.random.default_rng(0).integers(3, 25, 100)]     # some shorter than a chunk
    dataset, counts = open_set(write(tmp_path / "set", lengths), tmp_path)
    buffer = mapped(dataset)
    ends = np.cumsum([n - 1 for n, in lengths])
    possible = np.concatenate([np.arange(end - (n - 1), end - 4) for end, (n,) in zip(ends, lengths)])
    drawn = np.concatenate([buffer.starts(5000, torch.Generator().manual_seed(i)).numpy() for i in range(20)])
    values, often = np.unique(drawn, return_counts=True)
    assert np.array_equal(values, possible) and counts["transitions"] == ends[-1]
    expected = len(drawn) / len(possible)
    chi_squared = ((often - expected) ** 2 / expected).sum()
    assert chi_squared < len(possible) + 4 * np.sqrt(2 * len(possible))
    assert buffer.chunks(torch.from_numpy(drawn))["valid"].all()


def test_online_share(tmp_path):
    """n / (mix_size + n), and uniform over everything where the data are fewer than mix_size."""
    dataset, _ = open_set(write(tmp_path / "set", [[1001], [1001]]), tmp_path)
    for mix_size, share in ((100, 50 / 150), (1_000_000, 50 / 2050)):
        buffer = mapped(dataset, 60, mix_size=mix_size)
        add(buffer, 4)
        assert (buffer.starts(5000) < 2000).all()                                           # fewer than a chunk online
        add(buffer, 46)
        starts = buffer.starts(200_000, torch.Generator().manual_seed(0))
        assert (starts >= 2000).float().mean().item() == pytest.approx(share, rel=0.03)
        assert starts.max() == 2050 - 5
        assert not ((starts % 1000 > 995) & (starts < 2000)).any()                          # no seams


def test_making_arrays_goes_on_after_an_interruption(paths, tmp_path, monkeypatch):
    open_set(paths, tmp_path / "whole")
    made, original = [], shards.append

    def append(place, index, path, *rest):
        made.append(path.name)
        added = original(place, index, path, *rest)
        if len(made) == 2:
            raise KeyboardInterrupt                        # the second file is written, but not in the index
        return added
    monkeypatch.setattr(shards, "append", append)
    with pytest.raises(KeyboardInterrupt):
        open_set(paths, tmp_path)
    for wanted in (paths, paths, paths[:2]):               # from the second on nothing is left to do
        open_set(wanted, tmp_path)
        assert made == [paths[i].name for i in (0, 1, 1, 2)]
    for name in ("rows.f32", "ends.f32", "lasts.i64", "index.json"):
        assert (tmp_path / "maps/set" / name).read_bytes() == (tmp_path / "whole/maps/set" / name).read_bytes()
    fewer = mapped(open_set(paths[:2], tmp_path)[0])
    assert fewer.size == sum(sum(n) - len(n) for n in LENGTHS[:2])
    assert fewer.chunks(torch.tensor([fewer.size - 5]))["valid"].all()


def test_a_changed_file_or_index_starts_over(paths, tmp_path, monkeypatch):
    monkeypatch.setattr("tools.official.fetch.fetch", lambda *_, **__: (paths, ""))
    config = build(dict(task=CUBE.name, data="official", data_dir=str(tmp_path)))
    (before, counts), checksum = open_set(paths, tmp_path), data.load(config)[1]["sha256"]
    each = "".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
    assert checksum == hashlib.sha256(each.encode()).hexdigest()
    write(tmp_path / "set", [[40]], first=1)
    after, other = open_set(paths, tmp_path)
    assert other["transitions"] == counts["transitions"] - 10 and data.load(config)[1]["sha256"] != checksum
    whole, expected = (buffer.chunks(torch.arange(90)) for buffer in (mapped(after), plain(paths)))
    assert equal(whole, expected)
    assert torch.isfinite(before["records"]).all()         # who had the old arrays open still has them
    place = tmp_path / "maps/set"
    for content in ("{", "[]", json.dumps(dict(files=[{}], tasks=[], columns=[]))):
        (place / "index.json").write_text(content)
        assert open_set(paths, tmp_path)[1] == other
    (place / "rows.f32").unlink()
    (place / "rows.f32").write_bytes(b"a lost end")
    assert equal(mapped(open_set(paths, tmp_path)[0]).chunks(torch.arange(90)), whole)
    files.remember(paths[0], url="http://host/part-000.npz")                 # ours: it may not change
    write(tmp_path / "set", [[50]])
    with pytest.raises(UserError, match="part-000.npz is no usable data of .*: it has changed since it was fetched"):
        open_set(paths, tmp_path)


MEMORY = """
import sys; sys.path.insert(0, {root!r})
import torch, data, envs
from pathlib import Path
from tools.official import shards
torch.set_num_threads(1)
def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) * 1024
paths = sorted(Path({folder!r}).glob("*.npz"))
task = envs.find_task("cube-single-task2")
data.simulator_of(task).reset()                # has memory of its own
begin = anonymous()
dataset, _, counts = shards.load(paths, Path({folder!r}).parent, task, data.read)
made = anonymous()
buffer, generator = shards.ShardBuffer(dataset, 0, 5, 0.99), torch.Generator().manual_seed(0)
opened = anonymous()
for _ in range(300):
    buffer.chunks(buffer.starts(256, generator))
print(counts["transitions"], made - begin, anonymous() - opened)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_files(tmp_path):
    write(tmp_path / "set", [[1001] * 30] * 12)
    script = MEMORY.format(root=str(ROOT), folder=str(tmp_path / "set"))
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=600)
    transitions, making, sampling = map(int, result.stdout.split())
    one_file = 30_000 * (28 + 28 + 5 + 3) * 4                                   # in memory, by FIELDS
    assert transitions == 12 * 30_000 and sampling < one_file and making < 5 * one_file     # a file at a time, not all
