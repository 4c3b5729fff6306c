"""The data of a run: from files to D, six arrays with a row for each transition  (App. A.1).

A task has one of three formats, each with a reader below:

    robomimic   HDF5, demonstrations of lift, can and square: obs, next_obs, actions, rewards 0/1, dones
    ogbench     npz, undirected play in cube, scene and puzzle: states and actions; rewards follow from a task's goal
    own         HDF5 or npz, the six arrays themselves (docs/extend.md)

--data says where the files come from. tools/official/fetch.py finds, fetches or makes them:

    official    the benchmark's, found on disk or downloaded
    generated   stand-ins, made in the simulator; those of lift, can and square lie in standins/
    auto        official where possible; else generated, and the run says so loudly. More than 2 GB are not downloaded
                unasked: the run ends and tells the choice
    a file      your own

    python data.py --task square                what a run would train on; fetches or generates what is missing
    python data.py --task square --picture      ... drawn: lengths, paths of hand and object (figures/data-square.png)
    python data.py --task square --check 20     ... and 20 demonstrations replayed in the simulator installed here
"""
import functools
from pathlib import Path

import numpy as np

import envs
from buffer import FIELDS
from tools.official import fetch, files, shards
from tools.training.files import one_at_a_time


def read_robomimic(path: Path, task: envs.Task) -> dict[str, np.ndarray]:
    """robomimic's low-dim HDF5 -> transitions. The file has, for each demonstration of T steps,

        data/demo_0/obs/<key> [T, n], actions [T, A], rewards [T] of 0 and 1, dones [T];  often next_obs/<key> [T, n]

    Rewards become r - 1. `dones` gives the terminals and the masks, as in the released code. A demonstration ends with
    success, so its last `done` is set to 1: leave failures out. In the official sets it is 1 already.
    """
    # An observation joins these keys in this order. The width of the last, the object, depends on the task.
    sizes = dict(zip(envs.OBS_KEYS, (3, 4, 2, task.obs_dim - 9)))
    parts = []
    for demo in files.demonstrations(path, task, sizes):         # its arrays by name, checked
        obs = np.concatenate([demo[f"obs/{key}"] for key in sizes], axis=1)                         # [T, O]
        if "next_obs/object" in demo:
            next_obs = np.concatenate([demo[f"next_obs/{key}"] for key in sizes], axis=1)
        else:                                    # the next row's obs; at the last row anything, as its mask is 0
            next_obs = np.concatenate([obs[1:], obs[-1:]])
        dones = demo["dones"]
        dones[-1] = 1
        parts.append(dict(observations=obs, actions=demo["actions"], rewards=demo["rewards"] - 1, masks=1 - dones,
                          terminals=dones, next_observations=next_obs))
    return {name: np.concatenate([part[name] for part in parts]) for name in FIELDS}


def read_ogbench(path: Path, task: envs.Task) -> dict[str, np.ndarray]:
    """OGBench's play npz -> transitions. The file has observations [T, O], actions [T, A], terminals [T] and the
    simulator's qpos [T, J]. The last row of a trajectory is only the state after its last transition. Rewards and masks
    follow from the task's goal. Unlike online ones they speak of the state *before* the action."""
    rows = files.read_play(path, task)              # the file's arrays by name, checked
    rewards, masks = label(rows, task)
    # Rows s0 s1 s2 of a trajectory, with terminals 0 0 1, are two transitions: s0 to s1 and s1 to s2. Each begins in a
    # row whose terminal is 0. It ends the episode if the row that it leads to has terminal 1.
    index = np.flatnonzero(rows["terminals"] == 0)
    return {"observations": rows["observations"][index], "actions": rows["actions"][index], "rewards": rewards[index],
            "masks": masks[index], "terminals": rows["terminals"][index + 1],
            "next_observations": rows["observations"][index + 1]}


@functools.cache
def simulator_of(task: envs.Task):
    """The task's environment, made once: that takes a second, and a set may have a hundred files."""
    return envs.make(task)


def label(rows: dict, task: envs.Task) -> tuple[np.ndarray, np.ndarray]:
    """Rewards [T] and masks [T] of a task, for the rows of a play file. ogbench's own function puts a simulator into
    each row's qpos and asks for the goal's conditions: a reward is minus the number of those that are unmet, a mask is
    0 where all are met."""
    from ogbench.relabel_utils import relabel_dataset    # late: it brings simulators along
    simulator, labelled = simulator_of(task), dict(rows)
    simulator.reset()
    joints = rows["qpos"].shape[1]
    files.require(joints == simulator.unwrapped._model.nq, f"qpos have {joints} numbers, unlike the simulator's")
    relabel_dataset(task.source, simulator, labelled)
    return labelled["rewards"], labelled["masks"]


def read_own(path: Path, task: envs.Task) -> dict[str, np.ndarray]:
    """The six arrays themselves."""
    widths = dict.fromkeys(FIELDS, ())
    widths |= {"observations": (task.obs_dim,), "actions": (task.action_dim,), "next_observations": (task.obs_dim,)}
    return files.checked_file(path, widths)      # shapes, finite numbers, flags of 0 or 1


READERS = {"robomimic": read_robomimic, "ogbench": read_ogbench, "own": read_own}


def read(path: Path, task: envs.Task) -> dict[str, np.ndarray]:
    """A file of the task's format -> arrays by FIELDS. UserError if it is broken. Actions are clipped to +-(1 - 1e-5).
    The released code does so for Robomimic alone."""
    with files.errors_in_one_line(path, task):
        dataset = READERS[task.suite](path, task)
    dataset["actions"] = np.clip(dataset["actions"], -1 + 1e-5, 1 - 1e-5)
    return dataset


def load(config, given=frozenset()) -> tuple[dict, dict]:
    """The data of a run -> (dataset, facts). UserError where there are no usable data.

    given     the names of the knobs set by hand: one that means nothing for these data is refused
    dataset   arrays by FIELDS, for ReplayBuffer. Where there are several files: an array on disk, for ShardBuffer
    facts     what config.json says of the data: kind, why, path, files, origin, sha256, transitions, episodes,
              successes, longest
    """
    task, folder = envs.find_task(config.task), Path(config.data_dir or "data")
    with one_at_a_time(folder):          # a lock: of two runs that start together one fetches, the other waits for it
        # find() tries the reader on each download: a file that it cannot read counts as not downloaded.
        paths, facts = fetch.find(config, given, task, folder, READERS[task.suite])
        if len(paths) == 1:
            checksum = files.checksum(paths[0], task)            # refuses a file that changed since it came here
            dataset = read(paths[0], task)
            counts = files.count(dataset["terminals"], dataset["masks"] == 0)
        else:
            # They may not fit into memory. shards.load() calls read() for each, and makes one array on disk of all.
            dataset, checksum, counts = shards.load(paths, folder, task, read)
    print(f"data: {facts['kind']}, {counts['transitions']:,} transitions, {counts['episodes']:,} episodes, "
          f"{counts['successes']:,} of them reach the goal ({facts['path']})")
    return dataset, facts | dict(sha256=checksum) | counts


if __name__ == "__main__":
    from tools.report.dataset import main as show
    from tools.training import command_line
    command_line.main(lambda: show(load))                  # tells what load() gives, draws it or replays it
