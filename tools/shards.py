"""100M transitions on a laptop: the files of a set become one array on disk, made once, of which only what is sampled is read.

    <data folder>/maps/<set>/rows.f32      one row a transition: observation, action, terminal, and the reward of each task
                            ends.f32       one row an episode: the observation after its last action
                            lasts.i64      one number an episode: the row of its last transition
                            index.json     what the columns are, and which files are in it, with their checksums

A chunk of H steps is one stretch of the file: a page or two to read, where an array for each field would cost five times as
many. What follows from the rest is left out: the next observation is the next row's, or the episode's in ends.f32, and a mask
is 0 where the reward is (all conditions of the goal met). That halves the file: 26 GB for cube-quadruple's 100M transitions.
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
from tqdm import tqdm

import data
import envs
from config import UserError
from tools import files

TYPES = {"rows.f32": np.float32, "ends.f32": np.float32, "lasts.i64": np.int64}


# ------------------------------------------------------------------------------------------------------------- making
def load(paths: list[Path], records: list[dict], folder: Path, task: envs.Task) -> tuple[dict, dict]:
    """The arrays of a set of files, made where they are not there -> (dataset, counts): see data.load."""
    place = folder / "maps" / paths[0].parent.name
    index = bring_up_to_date(place, paths, records, task)
    used, which = index["files"][: len(paths)], index["tasks"].index(task.name)
    counts = dict(sha256=hashlib.sha256("".join(entry["sha256"] for entry in used).encode()).hexdigest(),
                  successes=sum(entry["successes"][which] for entry in used), longest=max(entry["longest"] for entry in used),
                  **{name: sum(entry[name] for entry in used) for name in ("transitions", "episodes")})
    try:
        return open_maps(place, index, len(paths), which), counts
    except (OSError, ValueError) as error:
        raise UserError(f"the arrays in {place} cannot be opened ({files.in_one_line(error)}); delete that folder to have them made again") from None


def bring_up_to_date(place: Path, paths: list[Path], records: list[dict], task: envs.Task) -> dict:
    """Appends the files that are missing, each whole or not at all; starts over where one is not what it was -> index.json."""
    tasks = [t.name for t in envs.TABLE.values() if t.source == task.source]         # they differ in their rewards alone
    index = dict(tasks=tasks, columns=[task.obs_dim, task.action_dim, 1, len(tasks)], files=[])
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        before = json.loads((place / "index.json").read_text())
        same = all(entry["sha256"] == record["sha256"] for entry, record in zip(before["files"], records))
        if same and all(before[name] == index[name] for name in ("tasks", "columns")):
            index = before
    missing = paths[len(index["files"]):]
    if not missing:
        return index
    place.mkdir(parents=True, exist_ok=True)
    if not index["files"]:
        for name in (*TYPES, "index.json"):                # not cut short: a run that has them open keeps what it has
            (place / name).unlink(missing_ok=True)
    simulators = [envs.make(name) for name in tasks]
    for path, record in zip(tqdm(missing, desc=f"making arrays of {place.name}", unit="file"), records[len(index["files"]):]):
        with data.one_line(path, task):
            added = append(place, index, path, task, simulators)
        index["files"].append(dict(file=path.name, sha256=record["sha256"], **added))
        temporary = place / "index.json.tmp"
        temporary.write_text(json.dumps(index, indent=1))
        os.replace(temporary, place / "index.json")
    for simulator in simulators:
        simulator.close()
    return index


def sizes(index: dict, count: int | None = None) -> dict:
    """Bytes of the arrays of the first `count` files."""
    rows, episodes = (sum(entry[name] for entry in index["files"][:count]) for name in ("transitions", "episodes"))
    return {"rows.f32": 4 * rows * sum(index["columns"]), "ends.f32": 4 * episodes * index["columns"][0], "lasts.i64": 8 * episodes}


def append(place: Path, index: dict, path: Path, task: envs.Task, simulators) -> dict:
    """One npz file at the end of the arrays, a block at a time -> its counts."""
    with contextlib.ExitStack() as stack:
        out = {}
        for name, size in sizes(index).items():
            out[name] = stack.enter_context(open(place / name, "ab"))
            out[name].truncate(size)                       # what an interrupted try has left behind
        row = sum(entry["transitions"] for entry in index["files"])
        terminals, rewards, held = [], [], None
        for block in files.blocks(path, *data.words_for(task)):
            if held:                                       # whether a transition is its episode's last shows in the row after it
                block = {name: np.concatenate([held[name], block[name]]) for name in block}
            held = {name: array[-1:] for name, array in block.items()}
            ended = block["terminals"][:-1] == 1
            keep = np.flatnonzero(~ended)
            terminals.append(block["terminals"][keep + 1])
            info = {name: block[name][keep] for name in data.INFO if name in block}
            rewards.append(np.stack([data.relabel(info, envs.task(name), env)[0] for name, env in zip(index["tasks"], simulators)], 1))
            actions = np.clip(block["actions"][keep], -1 + 1e-5, 1 - 1e-5)
            np.concatenate([block["observations"][keep], actions, terminals[-1][:, None], rewards[-1]], 1).tofile(out["rows.f32"])
            block["observations"][:-1][ended].tofile(out["ends.f32"])
            (row + np.flatnonzero(terminals[-1])).tofile(out["lasts.i64"])
            row += len(keep)
        held["observations"].tofile(out["ends.f32"])
        for file in out.values():
            file.flush()
            os.fsync(file.fileno())
    terminals, rewards = np.concatenate(terminals), np.concatenate(rewards)
    counts = [data.count(terminals, column == 0) for column in rewards.T]
    return counts[0] | dict(successes=[c["successes"] for c in counts])


# ------------------------------------------------------------------------------------------------------------- using
def open_maps(place: Path, index: dict, count: int, which: int) -> dict:
    """The arrays of the first `count` files, mapped: pages are read when they are looked at, and the system may drop them."""
    arrays = {}
    for name, size in sizes(index, count).items():
        with open(place / name, "rb") as file:
            if os.fstat(file.fileno()).st_size < size:
                raise ValueError(f"{name} is too short")
            mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        if hasattr(mapped, "madvise"):
            mapped.madvise(mmap.MADV_RANDOM)               # or each page would bring its neighbours, 128 kB of them
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                # torch warns that nobody must write to it, and nobody does
            arrays[name] = torch.from_numpy(np.frombuffer(mapped, TYPES[name]))
        if name == "rows.f32":
            rows_map = mapped
    obs_dim, action_dim, *_ = columns = index["columns"]
    return dict(records=arrays["rows.f32"].view(-1, sum(columns)), ends=arrays["ends.f32"].view(-1, obs_dim), lasts=arrays["lasts.i64"],
                action_dim=action_dim, terminal_at=obs_dim + action_dim, reward_at=obs_dim + action_dim + 1 + which,
                files=[entry["transitions"] for entry in index["files"][:count]], map=rows_map)


class ShardBuffer(data.ReplayBuffer):
    """A ReplayBuffer whose data are a mapped array, or that array copied to a GPU. Two things are different:

    no chunk begins in one file and ends in another, and the data count for at most `mix_size` transitions when a batch is
    mixed: each element comes from the n online ones with probability n / (mix_size + n), as in the release, which holds one file
    of 1M at a time; but the others come from all files.
    """

    def __init__(self, dataset: dict, online_capacity: int, chunk: int, discount: float, device="cpu", batch_device=None,
                 mix_size: int = 1_000_000):
        super().__init__(dataset, online_capacity, chunk, discount, device, batch_device)
        self.map, self.row_bytes = dataset["map"] if self.device.type == "cpu" else None, 4 * self.data["steps"].shape[1]
        rows = torch.tensor(dataset["files"])
        starts = (rows - chunk + 1).clamp(min=0)
        if not starts.any():
            raise UserError(f"no file of the data holds a chunk of {chunk} transitions")
        self.starts_up_to = starts.cumsum(0).to(device)                        # [F] how many starts the files up to here have
        self.shift = (rows.cumsum(0) - rows - starts.cumsum(0) + starts).to(device)    # [F] from a start's number to its row
        self.mix_size, self.count = min(mix_size, self.offline_size), int(starts.sum())

    def placed(self, dataset):
        """steps are the file's rows here, next_observations the last of each episode."""
        names = dict(steps="records", next_observations="ends", lasts="lasts")
        return dataset if "steps" in dataset else dataset | {name: dataset[its].to(self.device) for name, its in names.items()}

    def starts(self, batch_size: int, generator=None):
        draw = lambda count: torch.randint(count, (batch_size,), generator=generator, device=self.device)      # noqa: E731
        number = draw(self.count)
        starts = number + self.shift[torch.searchsorted(self.starts_up_to, number, right=True)]
        n = self.size - self.offline_size
        if n >= self.chunk:
            online = torch.rand(batch_size, generator=generator, device=self.device) < n / (self.mix_size + n)
            starts = torch.where(online, self.offline_size + draw(n - self.chunk + 1), starts)
        return starts

    def chunks(self, starts):
        if self.map and hasattr(self.map, "madvise"):      # ask for all of them, then wait: a disk is fast at many at once
            for start in starts[starts < self.offline_size].tolist():
                begin = start * self.row_bytes // mmap.PAGESIZE * mmap.PAGESIZE
                end = min((start + self.chunk + 1) * self.row_bytes, len(self.map))
                self.map.madvise(mmap.MADV_WILLNEED, begin, end - begin)
        return super().chunks(starts)

    def data_rows(self, name: str, index):
        steps, ends, lasts, end = (self.data[key] for key in ("steps", "next_observations", "lasts", "terminal_at"))
        if name == "steps":
            rows = steps[index]
            reward = rows[..., self.data["reward_at"], None]
            return torch.cat([rows[..., :end], reward, (reward != 0).float(), rows[..., end, None]], dim=-1)
        episode = torch.searchsorted(lasts, index.contiguous())
        following = steps[(index + 1).clamp(max=self.offline_size - 1)][..., : ends.shape[1]]
        return torch.where((lasts[episode] == index)[:, None], ends[episode], following)
