"""What a data set holds, in words, and whether it fits the simulator installed here: python data.py --task T --check.

A set recorded with another simulator or other gains teaches nothing: its actions no longer do what they did.
"""
import contextlib
import json
import sys
from pathlib import Path

import numpy as np

import envs
from config import Config, UserError
from tools.official import files
from tools.simulators import robosuite_setup
from tools.training import command_line

ENOUGH = 0.95            # of the replayed episodes must succeed (Robomimic), of the rows agree (OGBench)
SAME = 0.05              # OGBench: most that two observations of one state may differ (positions: decimetres)


def main(load) -> None:
    """python data.py. load: data.load, as that file imports this one."""
    parser = command_line.OneLineParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--picture", nargs="?", const="figures", metavar="FOLDER")
    parser.add_argument("--check", nargs="?", type=int, const=20, metavar="N")
    asked, rest = parser.parse_known_args()
    about = "Tells what data a run would train on. --picture [FOLDER] draws them, --check [N] replays N episodes."
    config, given = command_line.parse(about, rest)
    with contextlib.redirect_stdout(sys.stderr):
        dataset, facts = load(config, given)
    print(description(config, dataset, facts))
    if asked.picture:
        from tools.pictures.data import draw                     # late: matplotlib takes a second to import
        print(f"picture    {draw(envs.find_task(config.task), dataset, facts, Path(asked.picture))}")
    if asked.check is not None:
        replay(envs.find_task(config.task), facts, asked.check)


def description(config: Config, dataset: dict, facts: dict) -> str:
    """What `python data.py` prints; arguments as data.load has them."""
    lengths, actions = files.lengths(dataset), first_actions(dataset)
    return "\n".join((
        f"{config.task}: {facts['kind']} data{', ' if facts['why'] else ''}{facts['why']}",
        f"file       {facts['path']}, {len(facts['files'])} in all",
        f"origin     {', '.join(f'{name} {value}' for name, value in facts['origin'].items()) or 'nothing recorded'}",
        f"episodes   {len(lengths):,} of {lengths.min()}-{lengths.max()} steps, {facts['transitions']:,} transitions",
        f"success    {facts['successes']:,} episodes reach the goal ({facts['successes'] / len(lengths):.1%})",
        f"actions    {'  '.join(f'{low:.2f} to {high:.2f}' for low, high in zip(actions.min(0), actions.max(0)))}"))


def first_actions(dataset: dict) -> np.ndarray:
    """All actions [n, A]; of a set in many files, those of its first rows."""
    if "records" not in dataset:
        return dataset["actions"]
    end = dataset["terminal_at"]
    return dataset["records"][:100_000, end - dataset["action_dim"] : end].numpy()


def replay(task: envs.Task, facts: dict, episodes: int) -> None:
    """Prints what replaying `episodes` of the first file shows. UserError where it does not fit the simulator."""
    if episodes < 1 or task.suite == "own":
        raise UserError("--check replays episodes of the paper's tasks, at least one")
    path = Path(facts["files"][0])
    files.checksum(path, task)
    with files.errors_in_one_line(path, task):
        fits, text = (replay_robomimic if task.suite == "robomimic" else replay_ogbench)(task, path, episodes)
    print(text)
    if not fits:
        raise UserError(f"{facts['path']} does not fit the simulator that is installed here")


def replay_robomimic(task: envs.Task, path: Path, episodes: int) -> tuple[bool, str]:
    """Plays actions open loop from the first recorded state -> (enough succeed, text)."""
    import h5py
    env, succeeded = robosuite_setup.make(task.source), []
    env.reset()
    with h5py.File(path, "r") as file:
        for name in files.spaced(np.array(files.in_order(file["data"])), episodes):
            demo = file["data"][name]
            attrs = demo.attrs if "model_file" in demo.attrs else file["data"].attrs
            model = attrs["model_file"].split("\n")
            for number, line in json.loads(demo.attrs.get("model_lines", "{}")).items():     # stand-ins: what differs
                model[int(number)] = line
            env.reset_from_xml_string(env.edit_model_xml("\n".join(model)))      # lift's cube: each time another
            env.sim.reset()
            env.sim.set_state_from_flattened(demo["states"][0])
            env.sim.forward()
            # The controller pulls the elbow towards the joints the episode began with. It has seen others, those of
            # the reset above: without this line the hand is centimetres off within seconds.
            arm = env.robots[0].composite_controller.part_controllers["right"]
            arm.update_initial_joints(env.sim.data.qpos[env.robots[0]._ref_joint_pos_indexes])
            for action in demo["actions"][()]:
                env.step(action)
            succeeded.append(bool(env._check_success()))
        recorded = json.loads(file["data"].attrs["env_args"])
    env.close()
    share, installed = np.mean(succeeded), robosuite_setup.import_robosuite().__version__
    return share >= ENOUGH, (f"replay     {sum(succeeded)} of {len(succeeded)} demonstrations succeed ({share:.0%}); "
                             f"recorded with robosuite {recorded.get('env_version')}, {installed} is installed")


def replay_ogbench(task: envs.Task, path: Path, episodes: int) -> tuple[bool, str]:
    """Compares what is observed in 50 recorded states an episode, and where one action leads -> (they agree, text).
    SAME tolerates that some environments observed the hand's place one physics step late."""
    import mujoco
    env = envs.make(task)
    env.reset(seed=0)
    play, inner, seen, led = files.read_play(path, task, "qvel"), env.unwrapped, [], []
    compared = np.arange(task.obs_dim) != 18                     # the force between the fingers depends on the past
    end = np.flatnonzero(play["terminals"])[:episodes][-1]
    for i in files.spaced(np.flatnonzero(play["terminals"][:end] == 0), 50 * episodes):
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
        f"replay     {len(seen)} states: {share:.0%} of the recomputed observations agree, to {max(seen):.2g};\n"
        f"           one action leads to joints that differ by {np.median(led):.2g} (median), {max(led):.2g} at most")
