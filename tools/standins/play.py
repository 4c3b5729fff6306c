"""Stand-in OGBench data, made with the simulators' own scripted oracles.

`play_episode` follows one noisy plan after another towards random targets, as the official sets do. Those hardly ever
complete a task, and a small set may hold no reward: `goal_episode` aims the cubes' oracle at a task's goal. Data with
such episodes is *easier* than the official data; say so beside every number it leads to. An episode is a dict of
arrays of T rows as in the official npz files: row t holds the state before action t.
"""
import functools
from collections import defaultdict

import gymnasium
import mujoco
import numpy as np
import ogbench.manipspace  # noqa: F401  (registers the environments)
from ogbench.manipspace import lie
from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

NOISE = dict(noise=0.1, noise_smoothing=0.5)  # as the official play data: noise on the plan, none added to the actions
STACKING = {  # range of an episode's probability of placing a cube on another one, as in the official data
    "cube-single": (0.0, 0.0), "cube-double": (0.0, 0.25), "cube-triple": (0.05, 0.35), "cube-quadruple": (0.1, 0.5),
    "scene": (0.5, 0.5), "puzzle-3x3": (0.5, 0.5), "puzzle-4x4": (0.5, 0.5)}  # the last three have nothing to stack
TAIL = 10         # rows after success: loading drops the last, and chunks of actions that begin at the goal need some


@functools.cache  # compiling a model takes a second, resetting it milliseconds
def make_env(env_name):
    """An environment that knows its tasks, without a time limit, and its oracles by the kind of target."""
    env = gymnasium.make(f"{env_name}-v0", mode="data_collection", terminate_at_goal=False,
                         disable_env_checker=True).unwrapped
    # The first reset leaves the solver another warm start than later ones do. Spend it here, or the last bits of an
    # episode would depend on whether another was made before it.
    env.reset(seed=0)
    env.set_tasks()
    # The puzzles' buttons stand too close for open fingers.
    button = dict(NOISE, gripper_always_closed=env_name.startswith("puzzle"))
    oracles = dict(cube=CubePlanOracle(env=env, **NOISE), button=ButtonPlanOracle(env=env, **button),
                   drawer=DrawerPlanOracle(env=env, **NOISE), window=WindowPlanOracle(env=env, **NOISE))
    return env, oracles


def play_episode(env_name: str, seed: int, steps: int = 1001) -> dict:
    """One episode of random targets. Seeds numpy's global generator, which the oracles use: callers find it changed."""
    env, oracles = make_env(env_name)
    np.random.seed(seed)
    ob, info = env.reset(seed=seed)
    while True:
        p_stack = np.random.uniform(*STACKING[env_name])
        rows = rollout(env, oracles, ob, info, steps, lambda: env.set_new_target(p_stack=p_stack))
        if env_name != "scene" or cube_in_sight(rows["qpos"]):
            return rows
        ob, info = env.reset()  # goes on in the same random streams, so the seed still decides everything


def goal_episode(env_name: str, task_id: int, seed: int, steps: int = 1001) -> dict:
    """One episode of cubes towards a task's goal, which ends TAIL rows after reaching it or after `steps` rows."""
    env, oracles = make_env(env_name)
    task = env.task_infos[task_id - 1]
    np.random.seed(seed)
    env.reset(seed=seed)
    # Half of the episodes begin where the task begins, the others anywhere: a policy will stray from the direct path.
    if np.random.rand() < 0.5:
        for i, xyz in enumerate(task["init_xyzs"]):
            place(env.data.joint(f"object_joint_{i}").qpos, xyz + [*np.random.uniform(-0.01, 0.01, 2), 0.0])
    mujoco.mj_forward(env.model, env.data)

    def unmet():
        return np.linalg.norm(cube_xyzs(env) - task["goal_xyzs"], axis=-1) > 0.04        # the environments' tolerance

    def next_target():
        if np.random.rand() < 0.2 or not unmet().any():          # states off the direct path occur too
            return env.set_new_target(p_stack=0.0)
        aim_cube(env, task["goal_xyzs"], unmet())
        mujoco.mj_kinematics(env.model, env.data)
        return env.compute_observation(), env.get_reset_info()
    return rollout(env, oracles, *next_target(), steps, next_target, reached=lambda: not unmet().any())


def rollout(env, oracles, ob, info, steps, next_target, reached=lambda: False):
    """Follow one plan after another; `next_target` sets the environment's next target and returns (ob, info)."""
    def plan(ob, info):
        oracle = oracles[info["privileged/target_task"]]
        oracle.reset(ob, info)
        return oracle
    rows, oracle, end, success = defaultdict(list), plan(ob, info), steps, False
    while len(rows["actions"]) < end:
        action = np.clip(oracle.select_action(ob, info), -1, 1)
        next_ob, _, _, _, info = env.step(action)
        rows["observations"].append(ob)
        rows["actions"].append(action)
        rows["qpos"].append(info["prev_qpos"])
        rows["qvel"].append(info["prev_qvel"])
        if "button_states" in info:  # not in qpos: a button springs back, its state stays
            rows["button_states"].append(info["prev_button_states"])
        ob = next_ob
        if not success and reached():
            success, end = True, min(steps, len(rows["actions"]) + TAIL)
        if oracle.done:
            oracle = plan(*next_target())
    episode = {key: np.array(value, np.int64 if key == "button_states" else np.float32) for key, value in rows.items()}
    return episode | {"terminals": np.arange(end) == end - 1}


def cube_in_sight(qpos):
    """The official rule for scene: no episode pushes the cube to where it is hidden, unless it lies in the drawer."""
    y, z = qpos[:, 15], qpos[:, 16]
    return not ((y >= 0.29).any() or ((y <= -0.3) & ((z < 0.06) | (z > 0.08))).any())


def place(pose, xyz):
    """Sets a pose, 3 numbers and a quaternion, to a place and a random yaw."""
    pose[:3], pose[3:] = xyz, lie.SO3.from_z_radians(np.random.uniform(0, 2 * np.pi)).wxyz


def cube_xyzs(env):
    return np.stack([env.data.joint(f"object_joint_{i}").qpos[:3] for i in range(env._num_cubes)])


def aim_cube(env, goals, unmet):
    """Chooses a cube whose place is free. Where all places are taken (two cubes to swap, say), one to clear first."""
    xyzs = cube_xyzs(env)

    def near(a, b):  # [n, n]: which of a and b are at one place; a cube is 4 cm wide
        return np.linalg.norm(a[:, None, :2] - b[:, :2], axis=-1) < 0.05
    z, goal_z = xyzs[:, 2], goals[:, 2]
    covered = (near(xyzs, xyzs) & (z > z[:, None] + 0.02)).any(axis=1)  # another cube stands on it
    taken = near(goals, xyzs) & (z > goal_z[:, None] - 0.02) & ~np.eye(len(z), dtype=bool)  # [i, j]: i's goal, by j
    below = near(goals, goals) & (goal_z < goal_z[:, None])  # [i, j]: j's goal is under i's
    ready = np.flatnonzero(unmet & ~covered & ~taken.any(axis=1) & ~(below & unmet).any(axis=1))
    if len(ready):
        block = np.random.choice(ready)
        target = goals[block]
    else:
        in_the_way = np.nonzero(taken[unmet] & ~covered)[1]  # as often as it is in the way
        block = np.random.choice(in_the_way if len(in_the_way) else np.flatnonzero(~covered))
        # A spot away from every cube and goal. A crowded table may have none: then any spot, and another try later.
        for _ in range(100):
            target = np.array([*np.random.uniform(*env._target_sampling_bounds), 0.02])
            if not any(np.linalg.norm(target[:2] - p[:2]) < 0.1 for p in [*xyzs, *goals]):
                break
    pose, mocap = np.zeros(7), env._cube_target_mocap_ids[block]
    place(pose, target)
    env._target_block = block
    env.data.mocap_pos[mocap], env.data.mocap_quat[mocap] = pose[:3], pose[3:]
