"""What a data set holds, in words, and whether it fits the simulator installed here: python data.py --task T --check.

A set recorded with another version of a simulator, or with other gains, is a common reason for "it does not learn": the
actions no longer do what they did. So recorded actions are played from the recorded state, to see where they lead now.
"""
import json
from pathlib import Path

import numpy as np

import envs
from buffer import FIELDS
from config import Config, UserError
from tools.official import files

ENOUGH = 0.95            # of the replayed episodes must succeed (Robomimic), of the rows agree (OGBench)
SAME = 0.05              # OGBench: most that two observations of one state may differ; positions in them are decimetres
IRRELEVANT = ("has_", "use_", "camera", "render", "lite_physics", "hard_reset", "ignore_done")      # to the physics


# ------------------------------------------------------------------------------------------------------------- words
def description(config: Config, dataset: dict, source: dict) -> str:
    """The lines that `python data.py` prints; arguments as data.load has them."""
    lengths, rewards, actions = columns(dataset)
    transitions, episodes, successes = source["transitions"], source["episodes"], source["successes"]
    if "records" in dataset:
        memory = f"{dataset['records'].nbytes / 1e9:.2f} GB on disk, of which what is sampled is read"
    else:
        row = 4 * sum(dataset[name][0].size for name in FIELDS)
        memory = (f"{row * transitions / 1e9:.2f} GB and {row * config.online_steps / 1e9:.2f} GB "
                  f"for {config.online_steps:,} online steps")
    why = f", {source['why']}" if source["why"] else ""
    number = f", {len(source['files'])} files" if len(source["files"]) > 1 else ""
    ranges = "  ".join(f"{low:.2f} to {high:.2f}" for low, high in zip(actions.min(axis=0), actions.max(axis=0)))
    return "\n".join((
        f"{config.task}: {source['kind']} data{why}",
        f"file       {source['path']}{number}",
        f"origin     {made_how(source['origin'])}",
        f"sha256     {source['sha256']}",
        f"episodes   {episodes:,} of {lengths.min()} to {lengths.max()} steps, mean {lengths.mean():.0f}; "
        f"{transitions:,} transitions",
        f"success    {successes:,} episodes reach the goal ({successes / episodes:.1%})",
        f"rewards    {rewards.min():g} to {rewards.max():g}, mean {rewards.mean():.3f}",
        f"actions    {ranges}",
        f"memory     {memory}"))


def made_how(origin: dict) -> str:
    if "generator" not in origin:
        return origin.get("url", "was there already, nothing recorded")
    mix = f", {origin['goal_share']:.0%} aimed at the goal" if origin.get("goal_share") else ""
    return (f"generator {origin['generator']}, seed {origin['seed']}{mix}, attempts {origin['attempts']}, "
            f"{origin['versions']}")


def columns(dataset: dict, most: int = 100_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(length of each episode, rewards [n], actions [n, A]); of a set in many files, these at `most` of its rows."""
    if "records" not in dataset:
        return np.diff(np.flatnonzero(dataset["terminals"]), prepend=-1), dataset["rewards"], dataset["actions"]
    every = -(-len(dataset["records"]) // most)
    rows = dataset["records"][::every].numpy()
    actions_end = dataset["terminal_at"]
    actions = rows[:, actions_end - dataset["action_dim"] : actions_end]
    return np.diff(dataset["lasts"].numpy(), prepend=-1), rows[:, dataset["reward_at"]], actions


# ------------------------------------------------------------------------------------------------------------- replay
def replay(task: envs.Task, source: dict, episodes: int) -> None:
    """Prints what replaying `episodes` of the first file shows. UserError where it does not fit the simulator."""
    if episodes < 1 or task.suite == "own":
        raise UserError("--check replays episodes of the paper's tasks, at least one")
    path = Path(source["files"][0])
    with files.one_line(path, task):
        files.need(len(source["files"]) > 1 or files.sha256(path) == source["sha256"],
                   "it no longer has the checksum that was recorded")
        replay_suite = replay_robomimic if task.suite == "robomimic" else replay_ogbench
        fits, text = replay_suite(task, path, episodes)
    print(text)
    if not fits:
        raise UserError(f"{source['path']} does not fit the simulator that is installed here")


def replay_robomimic(task: envs.Task, path: Path, episodes: int) -> tuple[bool, str]:
    """Plays recorded actions open loop from the first recorded state -> (enough succeed, text)."""
    import h5py
    env, succeeded, worst = envs.make_robosuite(task), 0, 0.0
    env.reset()
    with h5py.File(path, "r") as file:
        demos = files.in_order(file["data"])
        chosen = np.linspace(0, len(demos) - 1, min(episodes, len(demos))).astype(int)
        for number in chosen:
            demo = file["data"][demos[number]]
            states = demo["states"][()]
            set_state(env, demo.attrs["model_file"], states[0])
            for action, state in zip(demo["actions"][()], states):
                apart = np.abs(env.sim.get_state().flatten() - state)          # of time, positions, velocities
                worst = max(worst, apart[1 : 1 + env.sim.model.nq].max())
                env.step(action)
            succeeded += bool(env._check_success())
        different = differences(json.loads(file["data"].attrs["env_args"]), task)
    env.close()
    share = succeeded / len(chosen)
    text = (f"replay     {succeeded} of {len(chosen)} demonstrations succeed ({share:.0%}); "
            f"positions differ by {worst:.2g} at most")
    return share >= ENOUGH, "\n".join([text] + [f"differs    {line}" for line in different])


def set_state(env, model: str, state: np.ndarray) -> None:
    """Puts robosuite into a recorded state of a recorded model (lift's cube has another size in every episode)."""
    env.reset_from_xml_string(env.edit_model_xml(model))
    env.sim.reset()
    env.sim.set_state_from_flattened(state)
    env.sim.forward()
    # The controller pulls the elbow towards the joints the episode began with. It has seen others, those of the reset
    # above: without this line the hand is centimetres off within seconds.
    robot = env.robots[0]
    arm = robot.composite_controller.part_controllers["right"]
    arm.update_initial_joints(env.sim.data.qpos[robot._ref_joint_pos_indexes])


def differences(recorded: dict, task: envs.Task) -> list[str]:
    """Where the environment that recorded a file differs from this one: a line for each setting."""
    def walk(theirs, ours, name=""):
        if isinstance(theirs, dict) and isinstance(ours, dict):
            for key in theirs.keys() & ours.keys():
                yield from walk(theirs[key], ours[key], f"{name}.{key}" if name else key)
        elif theirs != ours:
            yield f"{name}: {theirs} in the file, {ours} here"
    lines = walk(recorded["env_kwargs"], envs.robosuite_args(task))
    lines = [line for line in lines if not line.startswith(IRRELEVANT)]
    version = envs.import_robosuite().__version__
    if recorded.get("env_version") != version:
        lines.append(f"robosuite: {recorded.get('env_version')} in the file, {version} here")
    return sorted(lines)


def replay_ogbench(task: envs.Task, path: Path, episodes: int, rows: int = 50) -> tuple[bool, str]:
    """Puts the simulator into recorded states, compares what is observed there, and where one action leads -> (they
    agree, text). Not compared: the force between the fingers (number 18), which depends on the past. The hand's place
    was observed one physics step late in some environments, hence a tolerance."""
    import mujoco
    env = envs.make(task)
    env.reset(seed=0)
    play, inner, compared = files.play(path, task, "qvel"), env.unwrapped, np.arange(task.obs_dim) != 18
    begins = np.flatnonzero(np.r_[1, play["terminals"][:-1]])[:episodes]
    usable = np.flatnonzero(play["terminals"][: begins[-1] + 1000] == 0)[:-1]
    seen, led = [], []
    for i in usable[np.linspace(0, len(usable) - 1, min(rows * episodes, len(usable))).astype(int)]:
        inner._data.qpos[:], inner._data.qvel[:] = play["qpos"][i], play["qvel"][i]
        if "button_states" in play:
            inner._cur_button_states[:] = play["button_states"][i]
            inner._apply_button_states()
        mujoco.mj_forward(inner._model, inner._data)
        seen.append(np.abs(inner.compute_observation() - play["observations"][i])[compared].max())
        inner.step(play["actions"][i])
        led.append(np.abs(inner._data.qpos - play["qpos"][i + 1]).max())
    env.close()
    share = np.mean(np.array(seen) <= SAME)
    return bool(share >= ENOUGH and np.median(led) <= SAME), (
        f"replay     {len(seen)} states: {share:.0%} of the recomputed observations agree, "
        f"they differ by {max(seen):.2g} at most;\n"
        f"           one action leads to joints that differ by {np.median(led):.2g} (median), {max(led):.2g} at most")
