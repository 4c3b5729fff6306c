"""The data: official sets (find, download, read), stand-ins where they cannot be had, and the replay buffer  (App. A.1).

    dataset, source = load(config)      six arrays, one row a transition, and where they come from
    buffer = ReplayBuffer(dataset, ...) the data plus everything seen online; sample() gives chunks of H steps

A transition: observations [O], actions [A], rewards, masks (0 = the task terminated here), terminals (1 = the episode
ends here, for whatever reason), next_observations [O]. Termination and the mere end of an episode are two different
arrays throughout: the critic stops bootstrapping at the first, chunks must not run across the second.
"""
import contextlib
import fcntl
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import envs
from config import UserError
from critic import chunk_return

FIELDS = ("observations", "actions", "rewards", "masks", "terminals", "next_observations")


# --------------------------------------------------------------------------------------------------- replay buffer
class ReplayBuffer:
    """|D| data transitions followed by up to `online_capacity` online ones, in the order they happened; nothing is
    overwritten. (The released code keeps a ring of max(2M, |D|+1), which eats into large data sets.)

    Lives on the training device. Raises UserError for a dataset shorter than one chunk.
    """

    def __init__(self, dataset: dict[str, np.ndarray], online_capacity: int, chunk: int, discount: float, device="cpu"):
        self.offline_size = self.size = len(dataset["rewards"])
        self.chunk, self.discount, self.device = chunk, discount, torch.device(device)
        if self.size < chunk:
            raise UserError(f"the data hold {self.size} transitions, fewer than one chunk of {chunk}")
        self.arrays = {}
        for name in FIELDS:
            data = torch.from_numpy(np.ascontiguousarray(dataset[name], dtype=np.float32))
            self.arrays[name] = torch.empty(self.size + online_capacity, *data.shape[1:], device=self.device)
            self.arrays[name][: self.size] = data
        self.cuts = []                                     # online transitions after which an episode was abandoned
        self.arrays["terminals"][self.size - 1] = 1        # what comes next online is another episode

    def add(self, obs, action, reward: float, terminated: bool, truncated: bool, next_obs) -> None:
        """Appends one online transition. IndexError when the capacity given at the start is used up."""
        row = (obs, action, reward, 1.0 - terminated, float(terminated or truncated), next_obs)
        for name, value in zip(FIELDS, row):
            self.arrays[name][self.size] = torch.as_tensor(value, dtype=torch.float32)
        self.size += 1

    def end_episode(self) -> None:
        """Marks the newest transition as its episode's last, though nothing ended there: the simulator was lost."""
        if self.size > self.offline_size:
            self.cuts.append(self.size - self.offline_size - 1)
            self.arrays["terminals"][self.size - 1] = 1

    def sample(self, batch_size: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """A batch of chunks whose start is uniform over everything stored; see chunks()."""
        starts = torch.randint(self.size - self.chunk + 1, (batch_size,), generator=generator, device=self.device)
        return self.chunks(starts)

    def chunks(self, starts: Tensor) -> dict[str, Tensor]:
        """H consecutive rows from each start [B]:

        observations [B, O], actions [B, H, A], rewards [B] (discounted over the chunk), masks [B] (0 if the task
        terminated in it), next_observations [B, O] (after its last step), valid [B, H] (1 while no episode ended at an
        *earlier* step). A chunk that runs past an episode's end has valid[:, -1] = 0: the critic ignores it, and L_BC
        masks the steps that are not valid, so nothing of the next episode enters a loss.
        """
        a, last = self.arrays, starts + self.chunk - 1
        index = starts[:, None] + torch.arange(self.chunk, device=starts.device)                    # [B, H]
        ended = a["terminals"][index].cummax(dim=1).values                                          # [B, H]
        valid = torch.cat([torch.ones_like(ended[:, :1]), 1 - ended[:, :-1]], dim=1)                # [B, H]
        return {"observations": a["observations"][starts], "actions": a["actions"][index],
                "rewards": chunk_return(a["rewards"][index], self.discount),
                "masks": a["masks"][index].amin(dim=1), "next_observations": a["next_observations"][last],
                "valid": valid}

    def online_rows(self, first: int) -> Tensor:
        """The online transitions from number `first` on, all fields side by side: [n, 2 O + A + 3], on the CPU."""
        part = slice(self.offline_size + first, self.size)
        return torch.cat([a[part].reshape(-1, a[0].numel()) for a in self.arrays.values()], dim=1).cpu()

    def load_online(self, rows: Tensor, cuts: list[int]) -> None:
        """What online_rows(0) gave, flat or not, into an empty online part."""
        widths = [a[0].numel() for a in self.arrays.values()]
        rows = rows.reshape(-1, sum(widths))
        if self.offline_size + len(rows) > len(self.arrays["rewards"]):
            raise UserError(f"the run already holds {len(rows)} online transitions, more than --online-steps allows")
        self.size, self.cuts = self.offline_size + len(rows), list(cuts)
        for array, part in zip(self.arrays.values(), rows.split(widths, dim=1)):
            array[self.offline_size : self.size] = part.reshape(len(rows), *array.shape[1:])
        for row in self.cuts:
            self.arrays["terminals"][self.offline_size + row] = 1


# --------------------------------------------------------------------------------------------------- reading files
def read_robomimic(path: Path, task: envs.Task) -> dict[str, np.ndarray]:
    """robomimic low-dim HDF5 -> transitions. Rewards r - 1; terminals and masks both from `dones`, as released."""
    import h5py
    columns = {name: [] for name in FIELDS}
    with h5py.File(path, "r") as file:
        for demo in sorted(file["data"], key=lambda name: int(name.split("_")[1])):    # demo_10 comes after demo_9
            group = file["data"][demo]
            flat = lambda side: np.concatenate([group[side][key][()] for key in envs.OBS_KEYS], axis=1)  # noqa: E731
            done = group["dones"][()].astype(np.float32)
            done[-1] = 1                                                               # an episode ends where it ends
            for name, value in zip(FIELDS, (flat("obs"), group["actions"][()], group["rewards"][()] - 1.0,
                                            1.0 - done, done, flat("next_obs"))):
                columns[name].append(value)
    return {name: np.concatenate(parts).astype(np.float32) for name, parts in columns.items()}


def read_ogbench(path: Path, task: envs.Task) -> dict[str, np.ndarray]:
    """OGBench play npz -> transitions, with rewards and masks for the task from ogbench's own relabelling."""
    import ogbench.relabel_utils
    import ogbench.utils
    dataset = ogbench.utils.load_dataset(str(path), add_info=True)          # terminals: 1 at the end of a trajectory
    env = envs.make(task.name)
    # Rewards and masks (0 where the goal is reached) speak of the state *before* a row's action, unlike online ones.
    ogbench.relabel_utils.relabel_dataset(task.source, env, dataset)
    env.close()
    return {name: dataset[name] for name in FIELDS}


def read(path: Path, task: envs.Task) -> dict[str, np.ndarray]:
    """A file of either format -> checked arrays, actions clipped to +-(1 - 1e-5). UserError when it does not fit."""
    try:
        dataset = (read_robomimic if task.suite == "robomimic" else read_ogbench)(path, task)
    except (ImportError, MemoryError) as error:
        raise UserError(f"{path} cannot be read: {type(error).__name__} {error}; see requirements.txt and the memory") from None
    except Exception as error:       # for a broken file the libraries raise almost anything: OSError, KeyError, BadZipFile
        details = f"{type(error).__name__}: {str(error)[:100]}".replace("\n", " ")
        raise UserError(f"{path} cannot be read as {task.suite} data ({details}); delete it to fetch or generate it again") from None
    for name, width in (("observations", task.obs_dim), ("next_observations", task.obs_dim), ("actions", task.action_dim)):
        if dataset[name].ndim != 2 or dataset[name].shape[1] != width:
            raise UserError(f"{path} is not data of {task.name}: {name} have shape {dataset[name].shape}, expected (n, {width})")
    for name in FIELDS:
        if not np.isfinite(dataset[name]).all():
            raise UserError(f"{path}: {name} contain NaN or infinite values; delete it to fetch or generate it again")
    dataset["actions"] = np.clip(dataset["actions"], -1 + 1e-5, 1 - 1e-5)
    return dataset


# --------------------------------------------------------------------------------------------------- official files
HUB = "https://huggingface.co/datasets/{}/resolve/main/"


def official(task: envs.Task) -> tuple[str, tuple[str, ...], tuple[Path, ...]]:
    """The official file of a task: its path below the data folder, its URLs, and where other projects keep it."""
    if task.suite == "robomimic":
        remote = f"v1.5/{task.name}/mh/low_dim_v15.hdf5"
        return (f"robomimic/{task.name}/mh/low_dim_v15.hdf5",
                tuple(HUB.format(repo) + remote for repo in ("robomimic/robomimic_datasets", "amandlek/robomimic")),
                (Path(f"~/.robomimic/{task.name}/mh/low_dim_v15.hdf5").expanduser(),))
    file = f"{task.source}-play-v0.npz"
    if task.source == "cube-quadruple":          # one hundred files of 1M transitions; the first one is used
        file = "cube-quadruple-play-100m-v0/cube-quadruple-play-v0-000.npz"
    return (f"ogbench/{file}",
            tuple(host + file for host in ("https://rail.eecs.berkeley.edu/datasets/ogbench/",
                                           HUB.format("zhouzypaul/ogbench_datasets"))),
            (Path(f"~/.ogbench/data/{file}").expanduser(),))


def download(url: str, path: Path, max_bytes: float = float("inf"), timeout: float = 10) -> None:
    """Fetches url to path: resumed where an earlier try stopped, checked against the announced length, renamed when
    whole. Raises OSError (a host that fails or sends nothing for `timeout` s) or UserError (larger than max_bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=timeout) as response:
        if "text/html" in response.headers.get("Content-Type", ""):
            raise OSError("the host answered with a web page instead of the file")
        if have and response.status != 206:                    # the host does not resume: from the start
            have = 0
        total = have + int(response.headers.get("Content-Length", 0))
        if total > max_bytes:
            raise UserError(f"{url} has {total / 1e9:.1f} GB; give --data official to fetch that much, or --data generated")
        with open(partial, "ab" if have else "wb") as file, tqdm(total=total or None, initial=have, unit="B", unit_scale=True,
                                                                desc=f"fetching {path.name}") as bar:
            while block := response.read(1 << 20):
                file.write(block)
                bar.update(len(block))
    if total and partial.stat().st_size != total:
        raise OSError(f"the connection ended after {partial.stat().st_size} of {total} bytes")
    os.replace(partial, path)


def fetch_official(task: envs.Task, folder: Path, max_bytes: float) -> tuple[Path | None, str]:
    """The official file, from disk or from the first host that gives it -> (path, "") or (None, why not)."""
    local, urls, elsewhere = official(task)
    for path in (folder / local, *elsewhere):
        if path.exists():
            return path, ""
    reasons = []
    for url in urls:
        try:
            download(url, folder / local, max_bytes)
            return folder / local, ""
        except urllib.error.HTTPError as error:
            if error.code == 416:                              # a stale .part longer than the file: start over next time
                (folder / local).with_name(Path(local).name + ".part").unlink(missing_ok=True)
            reasons.append(f"{url.split('/')[2]}: HTTP {error.code}")
        except (OSError, ValueError, http.client.HTTPException) as error:
            reasons.append(f"{url.split('/')[2]}: {getattr(error, 'reason', error)}")
    return None, "; ".join(reasons)


# --------------------------------------------------------------------------------------------------- all together
@contextlib.contextmanager
def one_at_a_time(folder: Path):
    """Runs started side by side fetch and generate once: the others wait here and then find the file."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "w")
    except OSError as error:
        raise UserError(f"cannot write data to {folder}: {error.strerror}; choose another --data-dir") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def load(config, say=print) -> tuple[dict[str, np.ndarray], dict]:
    """The data of a run -> (arrays by FIELDS, source). source = kind, why, path, sha256, transitions, episodes,
    successes: recorded in config.json and compared before a checkpoint is reused. Raises UserError."""
    task = envs.task(config.task)
    folder = Path(config.data_dir or "data").expanduser()
    with one_at_a_time(folder):
        path, why = None, "asked for with --data generated"
        if config.data != "generated":
            path, why = fetch_official(task, folder, 2e9 if config.data == "auto" else float("inf"))
            if path is None and config.data == "official":
                raise UserError(f"the official data of {task.name} could not be had ({why}); --data generated makes a stand-in")
        kind = "official"
        if path is None:
            from tools.demos import generate
            kind = "generated"
            if config.data == "auto":
                say(f"*** NO OFFICIAL DATA ({why}). A stand-in is generated in the simulator; results are marked so. ***")
            path = generate(task, config.data_size or (300 if task.suite == "robomimic" else 1_000_000), folder / "generated",
                            config.goal_share, config.workers or os.cpu_count())
    dataset = read(path, task)
    with open(path, "rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    starts = np.flatnonzero(np.r_[1, dataset["terminals"][:-1]])
    succeeded = np.add.reduceat(dataset["masks"] == 0, starts) > 0
    source = dict(kind=kind, why=why, path=str(path), sha256=checksum, transitions=len(dataset["rewards"]), episodes=len(starts),
                  successes=int(succeeded.sum()), longest=int(np.diff(starts, append=len(dataset["rewards"])).max()))
    say(f"data: {kind}, {source['transitions']:,} transitions, {source['episodes']:,} episodes, "
        f"{source['successes']:,} of them reach the goal ({path})")
    return dataset, source
