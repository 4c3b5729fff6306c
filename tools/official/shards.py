"""100M transitions on a laptop: the files of a set become one array on disk, made once, of which only what is sampled
is read.

    <data folder>/maps/<set>/rows.f32      one row a transition: observation, action, terminal, and each task's reward
                            ends.f32       one row an episode: the observation after its last action
                            lasts.i64      one number an episode: the row of its last transition
                            index.json     what the columns are, and which files are in it, with their checksums

A chunk of H steps is one stretch of the file: a page or two to read, where an array for each field would cost five
times as many. What follows from the rest is left out: the next observation is the next row's, or the episode's in
ends.f32, and a mask is 0 where the reward is (all conditions of the goal met). That halves the file: 26 GB for
cube-quadruple's 100M transitions.
"""
import contextlib
import hashlib
import json
import mmap
import os
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import envs
from buffer import FIELDS, ReplayBuffer
from config import UserError
from tools.official import files

TYPES = {"rows.f32": np.float32, "ends.f32": np.float32, "lasts.i64": np.int64}


# ------------------------------------------------------------------------------------------------------------- making
def load(paths: list[Path], records: list[dict], folder: Path, task: envs.Task, read) -> tuple[dict, dict]:
    """The arrays of a set of files, made where they are not there -> (dataset, counts): see data.load.
    read(path, *tasks) gives a file's transitions, with a column of rewards for each task."""
    place = folder / "maps" / paths[0].parent.name
    index = bring_up_to_date(place, paths, records, task, read)
    used, which = index["files"][: len(paths)], index["tasks"].index(task.name)
    counts = {name: sum(entry[name] for entry in used) for name in ("transitions", "episodes")}
    counts["successes"] = sum(entry["successes"][which] for entry in used)
    counts["longest"] = max(entry["longest"] for entry in used)
    counts["sha256"] = hashlib.sha256("".join(entry["sha256"] for entry in used).encode()).hexdigest()
    try:
        return open_maps(place, index, len(paths), which), counts
    except (OSError, ValueError) as error:
        raise UserError(f"the arrays in {place} cannot be opened ({files.in_one_line(error)}); "
                        "delete that folder to have them made again") from None


def bring_up_to_date(place: Path, paths: list[Path], records: list[dict], task: envs.Task, read) -> dict:
    """Appends the files that are missing, each whole or not at all; starts over where one has changed -> index."""
    tasks = [other.name for other in envs.TABLE.values() if other.source == task.source]     # only their rewards differ
    index = dict(tasks=tasks, columns=[task.obs_dim, task.action_dim, 1, len(tasks)], files=[])
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        before = json.loads((place / "index.json").read_text())
        unchanged = all(entry["sha256"] == record["sha256"] for entry, record in zip(before["files"], records))
        if unchanged and all(before[name] == index[name] for name in ("tasks", "columns")):
            index = before
    done = len(index["files"])
    place.mkdir(parents=True, exist_ok=True)
    if not done:
        for name in (*TYPES, "index.json"):      # not cut short: a run that has them open keeps what it has
            (place / name).unlink(missing_ok=True)
    missing = list(zip(paths, records))[done:]
    for path, record in tqdm(missing, desc=f"making arrays of {place.name}", unit="file", disable=not missing):
        added = append(place, index, path, read)
        index["files"].append(dict(file=path.name, sha256=record["sha256"], **added))
        files.write_json(place / "index.json", index)
    return index


def sizes(index: dict, count: int | None = None) -> dict:
    """Bytes of the arrays of the first `count` files."""
    rows, episodes = (sum(entry[name] for entry in index["files"][:count]) for name in ("transitions", "episodes"))
    width, obs_dim = sum(index["columns"]), index["columns"][0]
    return {"rows.f32": 4 * rows * width, "ends.f32": 4 * episodes * obs_dim, "lasts.i64": 8 * episodes}


def append(place: Path, index: dict, path: Path, read) -> dict:
    """One file at the end of the arrays -> its counts."""
    dataset = read(path, *map(envs.task, index["tasks"]))
    terminals, rewards = dataset["terminals"], dataset["rewards"].reshape(-1, len(index["tasks"]))
    lasts, before = np.flatnonzero(terminals), sum(entry["transitions"] for entry in index["files"])
    fields = dataset["observations"], dataset["actions"], terminals[:, None], rewards
    arrays = {"rows.f32": np.concatenate(fields, axis=1), "ends.f32": dataset["next_observations"][lasts],
              "lasts.i64": before + lasts}
    for name, size in sizes(index).items():
        with open(place / name, "ab") as file:
            file.truncate(size)                  # what an interrupted try has left behind
            arrays[name].tofile(file)
            file.flush()
            os.fsync(file.fileno())
    counts = [files.count(terminals, column == 0) for column in rewards.T]
    return counts[0] | dict(successes=[each["successes"] for each in counts])


# ------------------------------------------------------------------------------------------------------------- using
def open_maps(place: Path, index: dict, count: int, which: int) -> dict:
    """The arrays of the first `count` files, mapped: pages are read when looked at, and the system may drop them."""
    maps, arrays = {}, {}
    for name, size in sizes(index, count).items():
        with open(place / name, "rb") as file:
            if os.fstat(file.fileno()).st_size < size:
                raise ValueError(f"{name} is too short")
            maps[name] = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        if hasattr(mmap, "MADV_RANDOM"):
            maps[name].madvise(mmap.MADV_RANDOM)           # or each page would bring its neighbours, 128 kB of them
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                # torch warns that nobody must write to it, and nobody does
            arrays[name] = torch.from_numpy(np.frombuffer(maps[name], TYPES[name]))
    obs_dim, action_dim, *_ = columns = index["columns"]
    terminal_at, lengths = obs_dim + action_dim, [entry["transitions"] for entry in index["files"][:count]]
    return dict(records=arrays["rows.f32"].view(-1, sum(columns)), ends=arrays["ends.f32"].view(-1, obs_dim),
                lasts=arrays["lasts.i64"], map=maps["rows.f32"], files=lengths, action_dim=action_dim,
                terminal_at=terminal_at, reward_at=terminal_at + 1 + which)


class ShardBuffer(ReplayBuffer):
    """A ReplayBuffer whose data are a mapped array, or that array copied to a GPU; its six arrays hold the online part
    alone. Two things are different when a batch is drawn:

    no chunk begins in one file and ends in another, and the data count for at most `mix_size` transitions: each element
    comes from the n online ones with probability n / (mix_size + n), as in the release, which holds one file of 1M at a
    time; but the others come from all files.
    """

    def __init__(self, dataset: dict, online_capacity: int, chunk: int, discount: float, device="cpu",
                 batch_device=None, mix_size: int = 1_000_000):
        self.chunk, self.discount, self.device = chunk, discount, torch.device(device)
        self.batch_device = torch.device(batch_device or device)
        self.rows, self.ends, self.lasts = (dataset[name].to(self.device) for name in ("records", "ends", "lasts"))
        self.map = dataset["map"] if self.device.type == "cpu" else None
        self.terminal_at, self.reward_at = dataset["terminal_at"], dataset["reward_at"]
        self.offline_size = self.size = len(self.rows)
        self.cuts = []
        obs, action = (self.ends.shape[1],), (dataset["action_dim"],)
        for name, width in zip(FIELDS, (obs, action, (), (), (), obs)):
            setattr(self, name, torch.zeros(online_capacity, *width, device=self.device))

        lengths = torch.tensor(dataset["files"])
        starts = (lengths - chunk + 1).clamp(min=0)
        if not starts.any():
            raise UserError(f"no file of the data holds a chunk of {chunk} transitions")
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
        if self.map and hasattr(mmap, "MADV_WILLNEED"):    # ask for all, then wait: a disk is fast at many at once
            row_bytes = 4 * self.rows.shape[1]
            for start in starts[starts < self.offline_size].tolist():
                begin = start * row_bytes // mmap.PAGESIZE * mmap.PAGESIZE
                end = min((start + self.chunk + 1) * row_bytes, len(self.map))
                self.map.madvise(mmap.MADV_WILLNEED, begin, end - begin)
        return super().chunks(starts)

    def transitions(self, index: Tensor) -> dict[str, Tensor]:
        found = self.data_transitions(index.clamp(max=self.offline_size - 1))
        if not self.num_online:
            return found
        online, number = index >= self.offline_size, (index - self.offline_size).clamp(min=0)
        for name, data in found.items():
            held = self.online(name)[number]
            found[name] = torch.where(online.reshape(online.shape + (1,) * (data.ndim - index.ndim)), held, data)
        return found

    def data_transitions(self, index: Tensor) -> dict[str, Tensor]:
        """The same for rows of the data alone."""
        rows, obs_dim, end = self.rows[index], self.ends.shape[1], self.terminal_at
        reward = rows[..., self.reward_at]
        following = self.rows[:, :obs_dim][(index + 1).clamp(max=self.offline_size - 1)]
        episode = torch.searchsorted(self.lasts, index.contiguous())
        next_obs = torch.where((self.lasts[episode] == index)[..., None], self.ends[episode], following)
        fields = rows[..., :obs_dim], rows[..., obs_dim:end], reward, (reward != 0).float(), rows[..., end], next_obs
        return dict(zip(FIELDS, fields))
