"""The data of a run: what the files mean, and where they come from  (App. A.1).

    dataset, source = load(config)          six arrays, one row a transition (buffer.py tells which), and their origin
    buffer = make_buffer(config, dataset)   D: these, then everything seen online

A task has one of three formats, each with a reader below that turns it into the six arrays:

    robomimic   HDF5, people's demonstrations of lift, can and square: obs, next_obs, actions, rewards 0/1, dones
    ogbench     npz, undirected play in cube, scene and puzzle: states and actions; rewards follow from a task's goal
    own         HDF5 or npz, the six arrays themselves (docs/own_task.md)

and --data says where a file of it comes from: official ones are found on disk or downloaded, generated ones are made in
the simulator, auto is official where possible and generated, loudly, where not; anything else is a file of your own.
A set in many files (cube-quadruple's 100M transitions) stays on disk, as one mapped array.

    python data.py --task square                what a run would train on; fetches or generates what is missing
    python data.py --task square --picture      ... drawn: lengths, paths of hand and object (figures/data-square.png)
    python data.py --task square --check 20     ... and 20 demonstrations replayed in the simulator installed here

Plumbing is in tools/official: files.py reads, checks and remembers, fetch.py downloads, shards.py maps large sets.
"""
import functools
import os
from pathlib import Path

import numpy as np
import torch

import config as config_module
import envs
from buffer import FIELDS, ReplayBuffer
from config import UserError
from tools.official import files

DEMONSTRATIONS, TRANSITIONS = 300, 1_000_000     # generated where --data-size says nothing, for Robomimic and OGBench
UNASKED = 2e9                                    # bytes that --data auto may download


# ------------------------------------------------------------------------------------------ what the files mean
def read_robomimic(path: Path, task: envs.Task) -> dict[str, np.ndarray]:
    """robomimic low-dim HDF5 -> transitions. Rewards r - 1; terminals and masks both from `dones`, as released."""
    columns = {name: [] for name in FIELDS}
    for demo in files.demonstrations(path, task):
        done = demo["dones"]
        done[-1] = 1                                                           # an episode ends where it ends
        rows = demo["obs"], demo["actions"], demo["rewards"] - 1, 1 - done, done, demo["next_obs"]
        for name, value in zip(FIELDS, rows):
            columns[name].append(value)
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def read_ogbench(path: Path, *tasks: envs.Task) -> dict[str, np.ndarray]:
    """OGBench play npz -> transitions. The last row of a trajectory is only the state after its last transition. Where
    several tasks are asked for, which differ in their goals alone, rewards and masks are [n, tasks]."""
    rows = files.play(path, tasks[0])
    keep = rows["terminals"] == 0
    info = {name: rows.pop(name)[keep] for name in files.INFO if name in rows}
    labels = np.stack([relabel(info, task) for task in tasks], axis=-1)                              # [2, n, tasks]
    rewards, masks = labels if len(tasks) > 1 else labels[..., 0]
    return dict(observations=rows["observations"][keep], actions=rows["actions"][keep], rewards=rewards, masks=masks,
                terminals=np.r_[rows["terminals"][1:], 1][keep].astype(np.float32),
                next_observations=rows["observations"][1:][keep[:-1]])


def relabel(info: dict, task: envs.Task) -> tuple[np.ndarray, np.ndarray]:
    """ogbench's own rewards and masks (0 where the goal is reached) of a task. They speak of the state *before* a row's
    action, unlike online ones."""
    import ogbench.relabel_utils
    simulator, labels = simulator_of(task), dict(info)
    width = simulator.unwrapped._model.nq
    files.need(info["qpos"].shape[1] == width, f"qpos have {info['qpos'].shape[1]} numbers, the simulator has {width}")
    ogbench.relabel_utils.relabel_dataset(task.source, simulator, labels)
    return labels["rewards"], labels["masks"]


@functools.lru_cache(maxsize=3)
def simulator_of(task: envs.Task):
    simulator = envs.make(task)          # kept: it takes a second to make, and a set may have a hundred files
    simulator.reset()
    return simulator


READERS = {"robomimic": read_robomimic, "ogbench": read_ogbench, "own": files.table}


def read(path: Path, *tasks: envs.Task) -> dict[str, np.ndarray]:
    """A file of the task's format -> arrays by FIELDS, actions clipped to +-(1 - 1e-5). UserError if none."""
    with files.one_line(path, tasks[0]):
        dataset = READERS[tasks[0].suite](path, *tasks)
    dataset["actions"] = np.clip(dataset["actions"], -1 + 1e-5, 1 - 1e-5)
    return dataset


# ------------------------------------------------------------------------------------------ where they come from
def own_kind(path) -> str:
    """What a run's folder calls data from a file of one's own."""
    return f"own-{Path(path).stem}"


def find(config, task: envs.Task, folder: Path, say) -> tuple[str, str, list[tuple[Path, Path]]]:
    """(kind, why this kind, [(file, its record)]) for --data."""
    if config.data not in config_module.SOURCES:
        path = Path(config.data)
        return own_kind(path), "given with --data", [(path, folder / "own" / (path.name + ".json"))]
    if task.suite == "own":
        raise UserError(f"{task.name} is a task of your own: name the file of its data with --data")
    why = "asked for with --data generated"
    if config.data != "generated":
        from tools.official.fetch import fetch
        most = UNASKED if config.data == "auto" else float("inf")
        shards = -(-config.data_size // 1_000_000)         # official ones hold 1M each; 0 = all
        found, why = fetch(task, folder, most, shards, READERS[task.suite])
        if found:
            return "official", "", found
        if config.data == "official":
            raise UserError(f"the official data of {task.name} could not be obtained ({why}); "
                            "--data generated makes a stand-in")
        say(f"*** NO OFFICIAL DATA ({why}). A stand-in is generated in the simulator; results are marked so. ***")
    from tools.standins.generate import generate
    size = config.data_size or (DEMONSTRATIONS if task.suite == "robomimic" else TRANSITIONS)
    made = generate(task, size, folder / "generated", config.goal_share, config.workers or os.cpu_count())
    return "generated", why, [(path, files.record_of(path)) for path in made]


def load(config, say=print) -> tuple[dict, dict]:
    """The data of a run -> (arrays by FIELDS, source). source, which config.json records: kind, why, path, files,
    sha256, origin (generator, seed and mix, or the address), transitions, episodes, successes, longest. UserError where
    there are no usable data."""
    task, folder, records = envs.task(config.task), Path(config.data_dir or "data").expanduser(), []
    with files.one_at_a_time(folder):
        kind, why, found = find(config, task, folder, say)
        for path, record in found:
            with files.one_line(path, task):
                records.append(files.trusted(path, record, lambda path: read(path, task)))
        paths = [path for path, _ in found]
        if len(paths) > 1:
            from tools.official import shards
            dataset, counts = shards.load(paths, records, folder, task, read)
    if len(paths) == 1:
        dataset = read(paths[0], task)
        counts = files.count(dataset["terminals"], dataset["masks"] == 0) | dict(sha256=records[0]["sha256"])
    origin = {name: value for name, value in records[0].items() if name not in files.RECORD}
    source = dict(kind=kind, why=why, path=str(paths[0] if len(paths) == 1 else paths[0].parent),
                  files=[str(path) for path in paths], origin=origin) | counts
    say(f"data: {kind}, {source['transitions']:,} transitions, {source['episodes']:,} episodes, "
        f"{source['successes']:,} of them reach the goal ({source['path']})")
    return dataset, source


def make_buffer(config, dataset: dict, device="cpu") -> ReplayBuffer:
    """The buffer of a run that trains on `device`. The data lie there too, unless they come in shards or --data-device
    says otherwise: shards stay on disk, cached in whatever memory is free."""
    from tools.official.shards import ShardBuffer
    in_shards = "records" in dataset
    where = config.data_device if config.data_device != "auto" else "cpu" if in_shards else device
    arguments = (dataset, config.online_steps, config.chunk, config.discount, where, device)
    try:
        return ShardBuffer(*arguments, mix_size=config.mix_size) if in_shards else ReplayBuffer(*arguments)
    except torch.OutOfMemoryError:
        raise UserError("the GPU has no room for the data; --data-device cpu leaves them where they are") from None


def main() -> None:
    from tools.official import check
    from tools.pictures.data import draw
    from tools.training import command_line
    own = command_line.OneLineParser(add_help=False, allow_abbrev=False)
    own.add_argument("--picture", nargs="?", const="figures", metavar="FOLDER")
    own.add_argument("--check", nargs="?", type=int, const=20, metavar="N")
    asked, rest = own.parse_known_args()
    about = "Tells what data a run would train on. --picture [FOLDER] draws them, --check [N] replays N episodes."
    config, _ = command_line.parse(about, rest)
    dataset, source = load(config, lambda _: None)
    print(check.description(config, dataset, source))
    if asked.picture:
        print(f"picture    {draw(envs.task(config.task), dataset, source, Path(asked.picture))}")
    if asked.check is not None:
        check.replay(envs.task(config.task), source, asked.check)


if __name__ == "__main__":
    from tools.training.command_line import main as run_main
    run_main(main)
