"""The data: the replay buffer, the conventions of the files, and where files come from  (App. A.1).

    dataset, source = load(config)          arrays, one row a transition, and where they come from
    buffer = make_buffer(config, dataset)   the data plus everything seen online; sample() gives chunks of H steps

A transition: observations [O], actions [A], rewards, masks (0 = the task terminated here), terminals (1 = the episode
ends here, for whatever reason), next_observations [O]. Termination and the mere end of an episode are two different
arrays: the critic stops bootstrapping at the first, chunks must not run across the second. (Robomimic's files have one
for both.)

    python data.py --task square                 what a run of this task would train on; fetches or generates what is missing
    python data.py --task square --picture       ... drawn: lengths, paths of hand and object (figures/data-square.png)
    python data.py --task square --check 20      ... and 20 demonstrations replayed in the simulator installed here

Plumbing is elsewhere: tools/fetch.py downloads, tools/files.py reads what strangers made, tools/shards.py keeps 100M
transitions on disk, tools/demos.py generates stand-ins, tools/inspect_data.py tells about a set.
"""
import contextlib
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import config as config_module
import envs
from config import UserError
from critic import chunk_return
from tools import command_line, files
from tools.demos import generate, one_at_a_time
from tools.fetch import fetch

FIELDS = ("observations", "actions", "rewards", "masks", "terminals", "next_observations")


# --------------------------------------------------------------------------------------------------- replay buffer
class ReplayBuffer:
    """|D| data transitions, numbered from 0, followed by up to `online_capacity` online ones in the order they happened;
    nothing is overwritten. (The released code keeps a ring of max(2M, |D|+1), which eats into large data sets.)

    Lives on `device`; batches go to `batch_device`. All fields of a step but the last lie side by side, [O + A + 3]: one look-up
    brings them, and on a GPU the number of look-ups is what costs. UserError for a dataset shorter than one chunk.
    """

    def __init__(self, dataset: dict, online_capacity: int, chunk: int, discount: float, device="cpu", batch_device=None):
        """dataset: arrays of FIELDS, or another buffer's `data`, which this one shares then."""
        self.chunk, self.discount, self.device = chunk, discount, torch.device(device)
        self.batch_device = torch.device(batch_device or device)
        self.data = self.placed(dataset)
        self.offline_size = self.size = len(self.data["steps"])
        if self.size < chunk:
            raise UserError(f"the data hold {self.size} transitions, fewer than one chunk of {chunk}")
        obs_dim = self.data["next_observations"].shape[1]
        self.widths = [obs_dim, self.data["action_dim"], 1, 1, 1]                                   # of a step's fields
        self.online = {name: torch.zeros(online_capacity, width, device=self.device)
                       for name, width in (("steps", sum(self.widths)), ("next_observations", obs_dim))}
        self.cuts = []                                     # online transitions after which an episode was abandoned

    def placed(self, dataset: dict) -> dict:
        """The data as they lie on the device: steps [n, O + A + 3], next_observations [n, O]."""
        if "steps" in dataset:
            return dataset
        columns = [torch.as_tensor(dataset[name], dtype=torch.float32) for name in FIELDS]
        steps = torch.cat([c if c.ndim == 2 else c[:, None] for c in columns[:-1]], dim=1)
        steps[-1:, -1] = 1                                 # what comes next online is another episode, whatever the file says
        return {"steps": steps.to(self.device), "next_observations": columns[-1].to(self.device), "action_dim": columns[1].shape[1]}

    def add(self, obs, action, reward: float, terminated: bool, truncated: bool, next_obs) -> None:
        """Appends one online transition: obs and next_obs [O], action [A]. IndexError when the capacity given at the start is
        used up."""
        row = (obs, action, reward, 1.0 - terminated, float(terminated or truncated), next_obs)
        row = moved(torch.cat([torch.as_tensor(value, dtype=torch.float32).reshape(-1) for value in row]), self.device)
        for array, part in zip(self.online.values(), row.split([sum(self.widths), self.widths[0]])):
            array[self.size - self.offline_size] = part
        self.size += 1

    def end_episode(self) -> None:
        """Marks the newest online transition as its episode's last, though nothing ended there: the simulator was lost."""
        if self.size > self.offline_size:
            self.cuts.append(self.size - self.offline_size - 1)
            self.online["steps"][self.cuts[-1], -1] = 1

    def sample(self, batch_size: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """A batch of chunks; see starts() and chunks(). The generator lives on the buffer's device."""
        return self.chunks(self.starts(batch_size, generator))

    def starts(self, batch_size: int, generator=None) -> Tensor:
        """Rows where chunks begin, uniform over everything stored."""
        return torch.randint(self.size - self.chunk + 1, (batch_size,), generator=generator, device=self.device)

    def chunks(self, starts: Tensor) -> dict[str, Tensor]:
        """H consecutive rows from each start [B], where training happens:

        observations [B, O], actions [B, H, A], rewards [B] (discounted over the chunk), masks [B] (0 if the task
        terminated in it), next_observations [B, O] (after its last step), valid [B, H] (1 while no episode ended at an
        *earlier* step). A chunk that runs past an episode's end has valid[:, -1] = 0: the critic ignores it, and L_BC
        masks the steps that are not valid, so nothing of the next episode enters a loss.
        """
        index = starts[:, None] + torch.arange(self.chunk, device=starts.device)                    # [B, H]
        steps = self.fields(moved(self.rows("steps", index), self.batch_device))
        next_obs = moved(self.rows("next_observations", index[:, -1]), self.batch_device)
        ended = steps["terminals"].cummax(dim=1).values                                             # [B, H]
        valid = torch.cat([torch.ones_like(ended[:, :1]), 1 - ended[:, :-1]], dim=1)                # [B, H]
        return {"observations": steps["observations"][:, 0], "actions": steps["actions"],
                "rewards": chunk_return(steps["rewards"], self.discount), "masks": steps["masks"].amin(dim=1),
                "next_observations": next_obs, "valid": valid}

    def fields(self, steps: Tensor) -> dict[str, Tensor]:
        """[..., O + A + 3] -> observations [..., O], actions [..., A], rewards, masks and terminals [...], all of them views."""
        return {name: part if name in ("observations", "actions") else part[..., 0]
                for name, part in zip(FIELDS, steps.split(self.widths, dim=-1))}

    def transitions(self, index: Tensor) -> dict[str, Tensor]:
        """All FIELDS of the rows with these numbers."""
        return self.fields(self.rows("steps", index)) | {"next_observations": self.rows("next_observations", index)}

    def rows(self, name: str, index: Tensor) -> Tensor:
        """"steps" or "next_observations" of the rows with these numbers: the data's, and behind them the online ones."""
        n = self.offline_size
        if self.size == n:
            return self.data_rows(name, index)
        return torch.where((index >= n)[..., None], self.online[name][(index - n).clamp(min=0)],
                           self.data_rows(name, index.clamp(max=n - 1)))

    def data_rows(self, name: str, index: Tensor) -> Tensor:
        return self.data[name][index]

    def online_rows(self, first: int) -> Tensor:
        """The online transitions from number `first` on, all fields side by side: [n, 2 O + A + 3], on the CPU."""
        return torch.cat([a[first:self.size - self.offline_size] for a in self.online.values()], dim=1).cpu()

    def load_online(self, rows: Tensor, cuts: list[int]) -> None:
        """What online_rows(0) gave, flat or not, into an empty online part."""
        widths = [a.shape[1] for a in self.online.values()]
        rows = rows.reshape(-1, sum(widths))
        if len(rows) > len(self.online["steps"]):
            raise UserError(f"the run already holds {len(rows)} online transitions, more than --online-steps allows")
        self.size, self.cuts = self.offline_size + len(rows), list(cuts)
        for array, part in zip(self.online.values(), rows.split(widths, dim=1)):
            array[: len(rows)] = part
        self.online["steps"][self.cuts, -1] = 1


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device; to a GPU without waiting for what it is busy with."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def make_buffer(config, dataset: dict, device="cpu") -> ReplayBuffer:
    """The buffer of a run that trains on `device`. The data lie there too, unless they come in shards or --data-device says
    otherwise: shards stay on disk, cached in whatever memory is free."""
    from tools.shards import ShardBuffer
    in_shards = "records" in dataset
    where = config.data_device if config.data_device != "auto" else "cpu" if in_shards else device
    words = (dataset, config.online_steps, config.chunk, config.discount, where, device)
    try:
        return ShardBuffer(*words, mix_size=config.mix_size) if in_shards else ReplayBuffer(*words)
    except torch.OutOfMemoryError:
        raise UserError("the GPU has no room for the data; --data-device cpu leaves them where they are") from None


# --------------------------------------------------------------------------------------------------- conventions of the files
def read_robomimic(path: Path, task: envs.Task) -> dict[str, np.ndarray]:
    """robomimic low-dim HDF5 -> transitions. Rewards r - 1; terminals and masks both from `dones`, as released."""
    columns = {name: [] for name in FIELDS}
    for demo in files.demonstrations(path, *words_for(task)):
        done = demo["dones"]
        done[-1] = 1                                                                   # an episode ends where it ends
        for name, value in zip(FIELDS, (demo["obs"], demo["actions"], demo["rewards"] - 1, 1 - done, done, demo["next_obs"])):
            columns[name].append(value)
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def read_ogbench(path: Path, task: envs.Task) -> dict[str, np.ndarray]:
    """OGBench play npz -> transitions. The last row of a trajectory is only the state after its last transition."""
    parts = list(files.blocks(path, *words_for(task)))
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    del parts
    keep = rows["terminals"] == 0
    dataset = dict(observations=rows["observations"][keep], actions=rows["actions"][keep],
                   terminals=np.r_[rows["terminals"][1:], 1][keep].astype(np.float32),
                   next_observations=rows["observations"][1:][keep[:-1]])
    dataset["rewards"], dataset["masks"] = relabel({name: rows[name][keep] for name in rows if name in INFO}, task)
    return dataset


INFO = ("qpos", "button_states")               # what the rewards of OGBench's tasks follow from


def relabel(info: dict, task: envs.Task, env=None) -> tuple[np.ndarray, np.ndarray]:
    """ogbench's own rewards and masks (0 where the goal is reached) of a task. They speak of the state *before* a row's action,
    unlike online ones."""
    import ogbench.relabel_utils
    simulator, labels = env or envs.make(task.name), dict(info)
    simulator.reset()
    if info["qpos"].shape[1] != simulator.unwrapped._model.nq:
        raise ValueError(f"qpos have {info['qpos'].shape[1]} numbers, the simulator has {simulator.unwrapped._model.nq}")
    ogbench.relabel_utils.relabel_dataset(task.source, simulator, labels)
    if env is None:
        simulator.close()
    return labels["rewards"], labels["masks"]


def read_own(path: Path, task: envs.Task) -> dict[str, np.ndarray]:
    """An npz or HDF5 file that holds the six arrays themselves."""
    return files.table(path, *words_for(task))


READERS = {"robomimic": read_robomimic, "ogbench": read_ogbench, "own": read_own}


def words_for(task: envs.Task) -> tuple:
    """What tools/files.py must know to read a file of this task."""
    return {"robomimic": (envs.OBS_KEYS, task.obs_dim, task.action_dim),
            "ogbench": (task.obs_dim, task.action_dim, INFO[1:] if task.source.startswith(("scene", "puzzle")) else ()),
            "own": (FIELDS, task.obs_dim, task.action_dim)}[task.suite]


@contextlib.contextmanager
def one_line(path, task: envs.Task):
    """Whatever is wrong with a file becomes a UserError of one line."""
    try:
        yield
    except (ImportError, MemoryError) as error:
        raise UserError(f"{path} cannot be read: {type(error).__name__} {error}; see requirements.txt and the memory") from None
    except UserError:
        raise
    except Exception as error:       # for a broken file the libraries raise almost anything: OSError, KeyError, BadZipFile
        raise UserError(f"{path} is no usable data of {task.name}: {files.in_one_line(error)}; delete it to fetch or generate it again") from None


def read(path: Path, task: envs.Task) -> dict[str, np.ndarray]:
    """A file of the task's format -> arrays by FIELDS, actions clipped to +-(1 - 1e-5). UserError when it does not fit."""
    with one_line(path, task):
        dataset = READERS[task.suite](path, task)
    dataset["actions"] = np.clip(dataset["actions"], -1 + 1e-5, 1 - 1e-5)
    return dataset


# --------------------------------------------------------------------------------------------------- all together
def own_kind(path) -> str:
    """What a run's folder calls data from a file of one's own."""
    return f"own-{Path(path).stem}"


def find(config, task: envs.Task, folder: Path, checker, say) -> tuple[str, str, list[tuple[Path, Path]]]:
    """(kind, why this kind, [(file, its record)]) for --data."""
    if config.data not in config_module.SOURCES:
        path = Path(config.data)
        return own_kind(path), "given with --data", [(path, folder / "own" / (path.name + ".json"))]
    if task.suite == "own":
        raise UserError(f"{task.name} is a task of your own: name the file of its data with --data")
    why = "asked for with --data generated"
    if config.data != "generated":
        shards = -(-config.data_size // 1_000_000)         # official ones hold 1M each; 0 = all
        found, why = fetch(task, folder, 2e9 if config.data == "auto" else float("inf"), shards,
                           lambda path: checker(path, task.suite, words_for(task)))
        if found:
            return "official", "", found
        if config.data == "official":
            raise UserError(f"the official data of {task.name} could not be obtained ({why}); --data generated makes a stand-in")
        say(f"*** NO OFFICIAL DATA ({why}). A stand-in is generated in the simulator; results are marked so. ***")
    made = generate(task, config.data_size or (300 if task.suite == "robomimic" else 1_000_000), folder / "generated",
                    config.goal_share, config.workers or os.cpu_count())
    return "generated", why, [(path, files.record_of(path)) for path in made]


def count(terminals: np.ndarray, reached: np.ndarray) -> dict:
    """What a run records of its data; reached: whether the goal is, row by row."""
    starts = np.flatnonzero(np.r_[1, terminals[:-1]])
    return dict(transitions=len(terminals), episodes=len(starts), successes=int((np.add.reduceat(reached, starts) > 0).sum()),
                longest=int(np.diff(starts, append=len(terminals)).max()))


def load(config, say=print) -> tuple[dict, dict]:
    """The data of a run -> (arrays, source). source: kind, why, path, files, sha256, origin (generator, seed and mix, or the
    address), transitions, episodes, successes, longest; recorded in config.json. UserError where there are no usable data."""
    task = envs.task(config.task)
    folder = Path(config.data_dir or "data").expanduser()
    with one_at_a_time(folder), files.Checker() as checker:
        kind, why, found = find(config, task, folder, checker, say)
        records = []
        for path, record in found:
            with one_line(path, task):
                records.append(files.trusted(path, record, checker, task.suite, words_for(task)))
        paths = [path for path, _ in found]
        if len(paths) > 1:
            from tools import shards
            dataset, counts = shards.load(paths, records, folder, task)
    if len(paths) == 1:
        dataset = read(paths[0], task)
        counts = count(dataset["terminals"], dataset["masks"] == 0) | dict(sha256=records[0]["sha256"])
    source = dict(kind=kind, why=why, path=str(paths[0] if len(paths) == 1 else paths[0].parent), files=[str(path) for path in paths],
                  origin={k: v for k, v in records[0].items() if k not in files.RECORD}) | counts
    say(f"data: {kind}, {source['transitions']:,} transitions, {source['episodes']:,} episodes, "
        f"{source['successes']:,} of them reach the goal ({source['path']})")
    return dataset, source


def main() -> None:
    from tools.inspect_data import inspect
    own = command_line.OneLineParser(add_help=False, allow_abbrev=False)
    own.add_argument("--picture", nargs="?", const="figures", metavar="FOLDER")
    own.add_argument("--check", nargs="?", type=int, const=20, metavar="N")
    asked, rest = own.parse_known_args()
    config, _ = command_line.parse("Tells what data a run would train on. --picture [FOLDER] draws them, --check [N] replays N episodes.", rest)
    inspect(config, *load(config, lambda _: None), asked.picture, asked.check)


if __name__ == "__main__":
    command_line.main(main)
