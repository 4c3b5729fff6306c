"""100M transitions on a laptop: the files of a set become one array on disk, made once, and what is sampled is read.

    <data folder>/maps/<set>/rows.f32      one row a transition: observation, action, terminal, and each task's reward
                            ends.f32       one row an episode: the observation after its last action
                            lasts.i64      one number an episode: the row of its last transition
                            index.json     what the columns are, and which files are in it, with size, time, checksum

The next observation is the next row's, or the episode's in ends.f32, and a mask is 0 where the reward is.
"""
import contextlib
import hashlib
import json
import mmap
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import envs
from buffer import FIELDS, ReplayBuffer
from tools.official import files
from tools.training.files import write_json


def load(paths: list[Path], folder: Path, task: envs.Task, read) -> tuple[dict, str, dict]:
    """The arrays of a set of files -> (what ShardBuffer takes, checksum of the files, counts). Missing files are
    appended, each whole or not at all; where one has changed all are made anew. read: data.read."""
    place = folder / "maps" / paths[0].parent.name
    tasks = [other.name for other in envs.TABLE.values() if other.source == task.source]     # only their rewards differ
    index = dict(tasks=tasks, columns=[task.obs_dim, task.action_dim, 1, len(tasks)], files=[])
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):                      # no index, or no good one
        before = json.loads((place / "index.json").read_text())
        is_whole = all((place / name).stat().st_size >= size for name, size in sizes(before).items())
        is_same = all(entry["stamp"] == stamp(path) for entry, path in zip(before["files"], paths))
        if is_whole and is_same and before | dict(files=[]) == index:
            index = before
    place.mkdir(parents=True, exist_ok=True)
    missing = paths[len(index["files"]):]
    for path in tqdm(missing, desc=f"making arrays of {place.name}", unit="file", disable=not missing):
        about = dict(file=path.name, stamp=stamp(path), sha256=files.checksum(path, task))
        index["files"].append(about | append(place, index, path, read))
        write_json(place / "index.json", index)
    used, which = index["files"][: len(paths)], tasks.index(task.name)
    counts = {name: sum(entry[name] for entry in used) for name in ("transitions", "episodes")}
    counts["successes"] = sum(entry["successes"][which] for entry in used)
    counts["longest"] = max(entry["longest"] for entry in used)
    checksum = hashlib.sha256("".join(entry["sha256"] for entry in used).encode()).hexdigest()
    return open_maps(place, index | dict(files=used), which), checksum, counts


def stamp(path: Path) -> list[int]:
    """What changes with a file; its checksum would take minutes for a hundred of them."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def sizes(index: dict) -> dict:
    """Bytes of the arrays that hold index["files"]."""
    rows, episodes = (sum(entry[name] for entry in index["files"]) for name in ("transitions", "episodes"))
    width, obs_dim = sum(index["columns"]), index["columns"][0]
    return {"rows.f32": 4 * rows * width, "ends.f32": 4 * episodes * obs_dim, "lasts.i64": 8 * episodes}


def append(place: Path, index: dict, path: Path, read) -> dict:
    """One file at the end of the arrays -> its counts."""
    first, *others = map(envs.find_task, index["tasks"])
    dataset = read(path, first)
    more = [read(path, task)["rewards"] for task in others]        # one at a time: each holds the whole file
    rewards, terminals = np.stack([dataset["rewards"], *more], axis=1), dataset["terminals"]        # [n, tasks], [n]
    lasts, before = np.flatnonzero(terminals), sum(entry["transitions"] for entry in index["files"])
    rows = np.concatenate([dataset["observations"], dataset["actions"], terminals[:, None], rewards], axis=1)
    arrays = {"rows.f32": rows, "ends.f32": dataset["next_observations"][lasts], "lasts.i64": before + lasts}
    for name, size in sizes(index).items():
        if not size:                             # not cut short: a run that has it open keeps what it has
            (place / name).unlink(missing_ok=True)
        with open(place / name, "ab") as file:
            file.truncate(size)                  # what an interrupted try has left behind
            arrays[name].tofile(file)
    counts = [files.count(terminals, column == 0) for column in rewards.T]
    return counts[0] | dict(successes=[each["successes"] for each in counts])


def open_maps(place: Path, index: dict, which: int) -> dict:
    """The arrays, mapped: pages are read when looked at, and the system may drop them."""
    warnings.filterwarnings("ignore", message=".*buffer is not writable.*")        # and nobody writes to it
    maps = {}
    for name, size in sizes(index).items():
        with open(place / name, "rb") as file:
            maps[name] = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        maps[name].madvise(mmap.MADV_RANDOM)     # or each page would bring its neighbours, 128 kB of them
    rows, ends = (torch.frombuffer(maps[name], dtype=torch.float32) for name in ("rows.f32", "ends.f32"))
    lasts = torch.frombuffer(maps["lasts.i64"], dtype=torch.int64)
    obs_dim, action_dim, *_ = columns = index["columns"]
    end, lengths = obs_dim + action_dim, [entry["transitions"] for entry in index["files"]]
    return dict(records=rows.view(-1, sum(columns)), ends=ends.view(-1, obs_dim), lasts=lasts, map=maps["rows.f32"],
                files=lengths, action_dim=action_dim, terminal_at=end, reward_at=end + 1 + which)


class ShardBuffer(ReplayBuffer):
    """A ReplayBuffer whose data are a mapped array, or that array copied to a GPU; its six arrays hold the online part.
    No chunk begins in one file and ends in another. A start is one of the n online ones with probability
    n / (mix_size + n), as in the release."""

    def __init__(self, dataset: dict, online_capacity: int, chunk: int, discount: float, device="cpu",
                 batch_device=None, mix_size: int = 1_000_000):
        self.chunk, self.discount, self.device = chunk, discount, torch.device(device)
        self.batch_device, self.cuts = torch.device(batch_device or device), []
        self.rows, self.ends, self.lasts = (dataset[name].to(self.device) for name in ("records", "ends", "lasts"))
        self.terminal_at, self.reward_at = dataset["terminal_at"], dataset["reward_at"]
        self.map = dataset["map"] if self.device.type == "cpu" else None
        self.offline_size = self.size = len(self.rows)
        obs, action = (self.ends.shape[1],), (dataset["action_dim"],)
        for name, width in zip(FIELDS, (obs, action, (), (), (), obs)):
            setattr(self, name, torch.zeros(online_capacity, *width, device=self.device))
        lengths = torch.tensor(dataset["files"])
        starts = (lengths - chunk + 1).clamp(min=0)
        self.mix_size, self.count = min(mix_size, self.offline_size), int(starts.sum())
        self.starts_up_to = starts.cumsum(0).to(device)                  # [F] how many starts the files up to here have
        first_row, first_start = lengths.cumsum(0) - lengths, starts.cumsum(0) - starts
        self.shift = (first_row - first_start).to(device)                # [F] from a start's number to its row

    def online(self, name: str) -> Tensor:
        return getattr(self, name)

    def starts(self, batch_size: int, generator: torch.Generator | None = None) -> Tensor:
        def draw(count):
            return torch.randint(count, (batch_size,), generator=generator, device=self.device)
        number = draw(self.count)
        starts = number + self.shift[torch.searchsorted(self.starts_up_to, number, right=True)]
        if self.num_online >= self.chunk:
            share = self.num_online / (self.mix_size + self.num_online)
            online = torch.rand(batch_size, generator=generator, device=self.device) < share
            starts = torch.where(online, self.offline_size + draw(self.num_online - self.chunk + 1), starts)
        return starts

    def chunks(self, starts: Tensor) -> dict[str, Tensor]:
        if self.map:                                       # ask for all, then wait: a disk is fast at many at once
            row_bytes = 4 * self.rows.shape[1]
            for start in starts[starts < self.offline_size].tolist():
                begin = start * row_bytes // mmap.PAGESIZE * mmap.PAGESIZE
                end = min((start + self.chunk + 1) * row_bytes, len(self.map))
                self.map.madvise(mmap.MADV_WILLNEED, begin, end - begin)
        return super().chunks(starts)

    def transitions(self, index: Tensor, names=FIELDS) -> dict[str, Tensor]:
        obs_dim, end, of_data = self.ends.shape[1], self.terminal_at, index.clamp(max=self.offline_size - 1)
        rows = self.rows[of_data]                          # one look-up for all but the next observation
        reward = rows[..., self.reward_at]
        fields = rows[..., :obs_dim], rows[..., obs_dim:end], reward, (reward != 0).float(), rows[..., end]
        found = dict(zip(FIELDS, fields))
        if FIELDS[-1] in names:
            following = self.rows[:, :obs_dim][(of_data + 1).clamp(max=self.offline_size - 1)]
            episode = torch.searchsorted(self.lasts, of_data.contiguous())
            found[FIELDS[-1]] = torch.where((self.lasts[episode] == of_data)[..., None], self.ends[episode], following)
        found = {name: found[name] for name in names}
        if self.num_online:
            is_online, number = index >= self.offline_size, (index - self.offline_size).clamp(min=0)
            for name, data in found.items():
                here = is_online if data.ndim == index.ndim else is_online[..., None]
                found[name] = torch.where(here, self.online(name)[number], data)
        return found
