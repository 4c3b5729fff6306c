"""What a data set holds, in words and in a picture, and whether it fits the simulator installed here: python data.py --task T.

A set recorded with another version of a simulator, or with other gains, is a common reason for "it does not learn": the
actions no longer do what they did. So --check plays recorded actions from the recorded state and compares where they lead.
"""
import json
from pathlib import Path

import numpy as np

import data
import envs
from config import UserError
from tools import files

ENOUGH = 0.95            # of the replayed episodes must succeed (Robomimic), of the rows agree (OGBench)
SAME = 0.05              # OGBench: most that two observations of one state may differ; positions in them are decimetres


def inspect(config, dataset: dict, source: dict, picture: str | None, check: int | None) -> None:
    task = envs.task(config.task)
    print(description(config, dataset, source))
    if picture:
        print(f"picture    {draw(task, dataset, source, Path(picture))}")
    if check is not None:
        if check < 1 or task.suite == "own":
            raise UserError("--check replays episodes of the paper's tasks, at least one")
        for path in source["files"]:
            if len(source["files"]) == 1 and files.sha256(path) != source["sha256"]:
                raise UserError(f"{path} no longer has the checksum that was recorded; delete it to fetch or generate it again")
        fits, text = (replay_robomimic if task.suite == "robomimic" else replay_ogbench)(task, Path(source["files"][0]), check)
        print(text)
        if not fits:
            raise UserError(f"{source['path']} does not fit the simulator that is installed here")


# ------------------------------------------------------------------------------------------------------------- words
def description(config, dataset: dict, source: dict) -> str:
    lengths, rewards, actions = columns(dataset)
    in_shards, n = "records" in dataset, source["transitions"]
    width = dataset["records"].shape[1] if in_shards else sum(int(np.prod(dataset[name].shape[1:])) for name in data.FIELDS)
    origin = source["origin"]
    if "generator" in origin:
        mix = f", {origin['goal_share']:.0%} aimed at the goal" if origin.get("goal_share") else ""
        made = f"generator {origin['generator']}, seed {origin['seed']}{mix}, attempts {origin['attempts']}, {origin['versions']}"
    else:
        made = origin.get("url", "was there already, nothing recorded")
    return "\n".join((
        f"{config.task}: {source['kind']} data{', ' * bool(source['why'])}{source['why']}",
        f"file       {source['path']}" + (f", {len(source['files'])} files" if len(source["files"]) > 1 else ""),
        f"origin     {made}",
        f"sha256     {source['sha256']}",
        f"episodes   {source['episodes']:,} of {lengths.min()} to {lengths.max()} steps, mean {lengths.mean():.0f}; {n:,} transitions",
        f"success    {source['successes']:,} episodes reach the goal ({source['successes'] / source['episodes']:.1%})",
        f"rewards    {rewards.min():g} to {rewards.max():g}, mean {rewards.mean():.3f}",
        f"actions    {'  '.join(f'{low:.2f} to {high:.2f}' for low, high in zip(actions.min(0), actions.max(0)))}",
        f"memory     {4 * width * n / 1e9:.2f} GB " + ("on disk, of which what is sampled is read" if in_shards else
                                                    f"and {4 * width * config.online_steps / 1e9:.2f} GB for {config.online_steps:,} online steps")))


def columns(dataset: dict, most: int = 100_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(length of each episode, rewards, actions); of sets in many files, the last two from at most `most` rows."""
    if "records" not in dataset:
        return np.diff(np.flatnonzero(dataset["terminals"]), prepend=-1), dataset["rewards"], dataset["actions"]
    some = dataset["records"][:: -(-len(dataset["records"]) // most)].numpy()
    return np.diff(dataset["lasts"].numpy(), prepend=-1), some[:, dataset["reward_at"]], some[:, dataset["terminal_at"] - dataset["action_dim"]: dataset["terminal_at"]]


# ------------------------------------------------------------------------------------------------------------- picture
def draw(task: envs.Task, dataset: dict, source: dict, folder: Path, episodes: int = 30) -> Path:
    """Lengths of all episodes; paths of the hand and of the first object in some, seen from above and from the side."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    lengths, _, _ = columns(dataset)
    observations = dataset["records"][:, : task.obs_dim].numpy() if "records" in dataset else dataset["observations"]
    # Where hand and object stand in an observation: Robomimic's OBS_KEYS; OGBench's joints 12, hand 3, yaw 2, fingers 2, object.
    hand, thing = dict(robomimic=(0, 9), ogbench=(12, None if task.source.startswith("puzzle") else 19), own=(None, None))[task.suite]
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    axes[0].hist(lengths, bins=40, color="0.5")
    axes[0].set(xlabel="steps", ylabel="episodes", title=f"{task.name}, {source['kind']}: {len(lengths):,} episodes")
    ends = np.cumsum(lengths)
    for i in np.linspace(0, len(lengths) - 1, min(episodes, len(lengths))).astype(int):
        rows = observations[ends[i] - lengths[i]: ends[i]]
        for start, color, label in ((hand, "#1f77b4", "hand"), (thing, "#d62728", "object")):
            if start is not None:
                for axis, height in ((axes[1], 1), (axes[2], 2)):
                    axis.plot(rows[:, start], rows[:, start + height], color=color, lw=0.7, alpha=0.6, label=label if i == 0 else None)
    axes[1].set(xlabel="x", ylabel="y", title="from above", aspect="equal")
    axes[2].set(xlabel="x", ylabel="z", title="from the side", aspect="equal")
    if hand is not None:
        axes[1].legend(fontsize=8)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"data-{task.name}.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


# ------------------------------------------------------------------------------------------------------------- replay
def replay_robomimic(task: envs.Task, path: Path, episodes: int) -> tuple[bool, str]:
    """Plays recorded actions open loop from the first recorded state -> (enough succeed, text)."""
    import h5py
    env, succeeded, worst = envs.make_robosuite(task), 0, 0.0
    env.reset()
    with h5py.File(path, "r") as file, data.one_line(path, task):
        demos = sorted(file["data"], key=lambda name: int(name.split("_")[1]))
        chosen = [demos[i] for i in np.linspace(0, len(demos) - 1, min(episodes, len(demos))).astype(int)]
        for name in chosen:
            demo = file["data"][name]
            states = demo["states"][()]
            set_state(env, demo.attrs["model_file"], states[0])
            for action, state in zip(demo["actions"][()], states):
                here = env.sim.get_state().flatten()
                worst = max(worst, np.abs(here - state)[1: 1 + env.sim.model.nq].max())       # time, positions, velocities
                env.step(action)
            succeeded += bool(env._check_success())
        different = differences(json.loads(file["data"].attrs["env_args"]), task)
    env.close()
    fits = succeeded >= ENOUGH * len(chosen)
    text = f"replay     {succeeded} of {len(chosen)} demonstrations succeed ({succeeded / len(chosen):.0%}); positions differ by {worst:.2g} at most"
    return fits, "\n".join([text] + [f"differs    {line}" for line in different])


def set_state(env, model: str, state: np.ndarray) -> None:
    """Puts robosuite into a recorded state of a recorded model (lift's cube has another size in every episode)."""
    env.reset_from_xml_string(env.edit_model_xml(model))
    env.sim.reset()
    env.sim.set_state_from_flattened(state)
    env.sim.forward()
    # The controller pulls the elbow towards the joints the episode began with. It has seen others, those of the reset above:
    # without this line the hand is centimetres off within seconds.
    robot = env.robots[0]
    robot.composite_controller.part_controllers["right"].update_initial_joints(env.sim.data.qpos[robot._ref_joint_pos_indexes])


def differences(recorded: dict, task: envs.Task) -> list[str]:
    """Where the environment that recorded a file differs from this one: a line for each setting."""
    def walk(theirs, ours, name=""):
        if isinstance(theirs, dict) and isinstance(ours, dict):
            for key in theirs.keys() & ours.keys():
                yield from walk(theirs[key], ours[key], f"{name}.{key}" if name else key)
        elif theirs != ours:
            yield f"{name}: {theirs} in the file, {ours} here"
    lines = [line for line in walk(recorded["env_kwargs"], envs.robosuite_args(task)) if not line.startswith(PICTURES)]
    version = envs.import_robosuite().__version__
    if recorded.get("env_version") != version:
        lines.append(f"robosuite: {recorded.get('env_version')} in the file, {version} here")
    return sorted(lines)


PICTURES = ("has_", "use_", "camera", "render", "lite_physics", "hard_reset", "ignore_done")      # change nothing in the physics


def replay_ogbench(task: envs.Task, path: Path, episodes: int, rows: int = 50) -> tuple[bool, str]:
    """Puts the simulator into recorded states, compares what is observed there, and where one action leads -> (they agree, text).

    Not compared: the force between the fingers (number 18), which depends on the past. The hand's place was observed one physics
    step late in some environments, hence a tolerance."""
    import mujoco
    wrapped = envs.make(task)
    wrapped.reset(seed=0)
    env, compared = wrapped.unwrapped, np.arange(task.obs_dim) != 18
    seen, led = [], []
    with data.one_line(path, task):
        *sizes, extra = data.words_for(task)
        block = next(files.blocks(path, *sizes, (*extra, "qvel")))
        data.relabel({name: block[name] for name in data.INFO if name in block}, task, wrapped)        # compares the widths
        trajectories = np.flatnonzero(np.r_[1, block["terminals"][:-1]])[:episodes]
        inside = np.flatnonzero(block["terminals"][: trajectories[-1] + 1000] == 0)[:-1]
        for i in inside[np.linspace(0, len(inside) - 1, min(rows * episodes, len(inside))).astype(int)]:
            env._data.qpos[:], env._data.qvel[:] = block["qpos"][i], block["qvel"][i]
            if "button_states" in block:
                env._cur_button_states[:] = block["button_states"][i]
                env._apply_button_states()
            mujoco.mj_forward(env._model, env._data)
            seen.append(np.abs(env.compute_observation() - block["observations"][i])[compared].max())
            env.step(block["actions"][i])
            led.append(np.abs(env._data.qpos - block["qpos"][i + 1]).max())
    wrapped.close()
    share = np.mean(np.array(seen) <= SAME)
    return bool(share >= ENOUGH and np.median(led) <= SAME), (
        f"replay     {len(seen)} states: {share:.0%} of the recomputed observations agree, they differ by {max(seen):.2g} at most;\n"
        f"           one action leads to joints that differ by {np.median(led):.2g} (median), {max(led):.2g} at most")
