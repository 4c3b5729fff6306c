"""Stand-in OGBench data, made with the simulators' own scripted oracles.

The official `play` sets come from an oracle that follows one noisy plan after another towards random targets: move this
cube there, press that button. The oracles are part of the ogbench package, so a small set of the same kind can be made
anywhere. `play_episode` is one such episode. But random targets hardly ever complete a task (about one transition in a
thousand for two cubes), and a small set may hold no reward to learn from. `goal_episode` therefore aims the same
oracle, with the same noise, at one task's goal. Data with such episodes in it is *easier* than the official data; say
so beside every number it leads to.

An episode is a dict of arrays in the layout of the official npz files, T rows each. Row t holds the state before
action t.
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
ON_GOAL = 0.04    # metres; the environments' and relabel_dataset's own tolerance
P_WANDER = 0.2    # share of a goal episode's plans that go to a random target: states off the direct path occur too
TAIL = 10         # rows after success: loading drops the last, and chunks of actions that begin at the goal need some


@functools.cache  # compiling a model takes a second, resetting it milliseconds
def make_env(env_name):
    """(environment, its oracles by the kind of target, its tasks)."""
    # Without the wrappers: no time limit, the length is ours to choose.
    env = gymnasium.make(f"{env_name}-v0", mode="data_collection", terminate_at_goal=False,
                         disable_env_checker=True).unwrapped
    # The first reset compiles the model and leaves the solver another warm start than later ones do. Spend it here,
    # or an episode would depend, in its last bits, on whether another was made before it.
    env.reset(seed=0)
    # The puzzles' buttons stand too close for open fingers.
    button = dict(NOISE, gripper_always_closed=env_name.startswith("puzzle"))
    oracles = dict(cube=CubePlanOracle(env=env, **NOISE), button=ButtonPlanOracle(env=env, **button),
                   drawer=DrawerPlanOracle(env=env, **NOISE), window=WindowPlanOracle(env=env, **NOISE))
    # Only a task-mode instance knows the tasks. It is never reset, hence never compiled.
    return env, oracles, gymnasium.make(f"{env_name}-v0", disable_env_checker=True).unwrapped.task_infos


def play_episode(env_name: str, seed: int, steps: int = 1001) -> dict:
    """One episode of random targets. Seeds numpy's global generator, which the oracles use: callers find it changed."""
    env, oracles, _ = make_env(env_name)
    np.random.seed(seed)
    ob, info = env.reset(seed=seed)
    while True:
        p_stack = np.random.uniform(*STACKING[env_name])
        rows = rollout(env, oracles, ob, info, steps, lambda: env.set_new_target(p_stack=p_stack))
        if env_name != "scene" or cube_in_sight(rows["qpos"]):
            return rows
        ob, info = env.reset()  # goes on in the same random streams, so the seed still decides everything


def goal_episode(env_name: str, task_id: int, seed: int, steps: int = 1001) -> dict:
    """One episode towards the goal of task `task_id`, which ends TAIL rows after reaching it or after `steps` rows.
    (Not of scene's tasks 4 and 5, which put the cube into the drawer.)"""
    env, oracles, tasks = make_env(env_name)
    task = tasks[task_id - 1]
    start, reached, aim = dict(
        cube=(start_cubes, cubes_reached, aim_cube),
        puzzle=(start_puzzle, puzzle_reached, aim_button),
        scene=(start_scene, scene_reached, aim_scene))[env_name.split("-")[0]]
    np.random.seed(seed)
    ob, info = env.reset(seed=seed)

    # Half of the episodes begin where the task begins, the others anywhere: a policy will stray from the direct path.
    start(env, task, at_task=np.random.rand() < 0.5)
    mujoco.mj_forward(env.model, env.data)

    def next_target():
        if np.random.rand() < P_WANDER or reached(env, task):
            return env.set_new_target(p_stack=0.0)
        aim(env, task)
        mujoco.mj_kinematics(env.model, env.data)
        return env.compute_observation(), env.get_reset_info()

    ob, info = next_target()
    return rollout(env, oracles, ob, info, steps, next_target, lambda: reached(env, task))


def rollout(env, oracles, ob, info, steps, next_target, reached=lambda: False):
    """Follow one plan after another; `next_target` sets the environment's next target and returns (ob, info)."""
    rows = defaultdict(list)
    oracle = oracles[info["privileged/target_task"]]
    oracle.reset(ob, info)
    end, success = steps, False
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
            target_ob, target_info = next_target()
            oracle = oracles[target_info["privileged/target_task"]]
            oracle.reset(target_ob, target_info)
    episode = {key: np.array(value, np.int64 if key == "button_states" else np.float32) for key, value in rows.items()}
    return episode | {"terminals": np.arange(end) == end - 1}


def cube_in_sight(qpos):
    """The official rule for scene: no episode pushes the cube to where it is hidden, unless it lies in the drawer."""
    y, z = qpos[:, 15], qpos[:, 16]
    return not ((y >= 0.29).any() or ((y <= -0.3) & ((z < 0.06) | (z > 0.08))).any())


def place(pose, xyz):
    pose[:3], pose[3:] = xyz, lie.SO3.from_z_radians(np.random.uniform(0, 2 * np.pi)).wxyz


def place_cube(env, i, xyz):
    """Where a task begins: within a centimetre of what it says."""
    place(env.data.joint(f"object_joint_{i}").qpos, xyz + [*np.random.uniform(-0.01, 0.01, 2), 0.0])


# Cubes: move one whose place is free. Where all places are taken (two cubes to swap, say), clear one first.

def start_cubes(env, task, at_task):
    if at_task:
        for i, xyz in enumerate(task["init_xyzs"]):
            place_cube(env, i, xyz)


def cube_xyzs(env):
    return np.stack([env.data.joint(f"object_joint_{i}").qpos[:3] for i in range(env._num_cubes)])


def cubes_reached(env, task):
    return (np.linalg.norm(cube_xyzs(env) - task["goal_xyzs"], axis=-1) <= ON_GOAL).all()


def aim_cube(env, task):
    xyzs, goals = cube_xyzs(env), task["goal_xyzs"]
    unmet = np.linalg.norm(xyzs - goals, axis=-1) > ON_GOAL

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
    target_cube(env, block, target)


def target_cube(env, block, xyz):
    env._target_block, pose, mocap = block, np.zeros(7), env._cube_target_mocap_ids[block]
    place(pose, xyz)
    env.data.mocap_pos[mocap], env.data.mocap_quat[mocap] = pose[:3], pose[3:]


# Puzzles: a press flips a button and its neighbours (Lights Out), so order is irrelevant and no button is needed twice.

def flip_table(env):
    row, col = np.divmod(np.arange(env._num_buttons), env._num_cols)
    return (np.abs(row[:, None] - row) + np.abs(col[:, None] - col) <= 1).astype(int)  # (buttons, buttons)


def start_puzzle(env, task, at_task):
    # "Anywhere" means random presses away from the goal: of the 4x4 board's states only one in 16 can be solved at all.
    presses = np.random.randint(2, size=env._num_buttons)
    scrambled = (task["goal_button_states"] + presses @ flip_table(env)) % 2
    env._cur_button_states[:] = task["init_button_states"] if at_task else scrambled
    env._apply_button_states()


def puzzle_reached(env, task):
    return (env._cur_button_states == task["goal_button_states"]).all()


def aim_button(env, task):
    n = env._num_buttons
    presses = (np.arange(2**n)[:, None] >> np.arange(n)) & 1  # (2^n, n): every set of buttons
    wanted = env._cur_button_states != task["goal_button_states"]
    solves = (presses @ flip_table(env) % 2 == wanted).all(axis=1)
    shortest = min(presses[solves], key=sum)
    target_button(env, np.random.choice(np.flatnonzero(shortest)))


def target_button(env, button):
    env._target_button = button
    env._target_button_states[button] = 1 - env._cur_button_states[button]


# Scene: one cube, a drawer that button 0 locks (state 0) and a window that button 1 locks.

def start_scene(env, task, at_task):
    if at_task:
        begin, joint = task["init"], env.data.joint
        place_cube(env, 0, begin["block_xyzs"][0])
        joint("drawer_slide").qpos[0], joint("window_slide").qpos[0] = begin["drawer_pos"], begin["window_pos"]
        env._cur_button_states[:] = begin["button_states"]
        env._apply_button_states()


def scene_unmet(env, task):
    """{what: whether it is not yet as the goal has it}."""
    goal, joint = task["goal"], env.data.joint
    misses = dict(cube=joint("object_joint_0").qpos[:3] - goal["block_xyzs"][0],
                  drawer=joint("drawer_slide").qpos - goal["drawer_pos"],
                  window=joint("window_slide").qpos - goal["window_pos"])
    buttons = env._cur_button_states != goal["button_states"]
    return {name: np.linalg.norm(miss) > ON_GOAL for name, miss in misses.items()} | {0: buttons[0], 1: buttons[1]}


def scene_reached(env, task):
    return not any(scene_unmet(env, task).values())


def aim_scene(env, task):
    goal, unmet = task["goal"], scene_unmet(env, task)
    options = ["cube"] if unmet["cube"] else []
    for button, slide in enumerate(("drawer", "window")):
        if unmet[slide]:
            options.append(slide if env._cur_button_states[button] else button)  # unlock before moving
        elif unmet[button]:
            options.append(button)
    choice = options[np.random.randint(len(options))]
    env._target_task = choice if isinstance(choice, str) else "button"
    if choice == "cube":
        target_cube(env, 0, goal["block_xyzs"][0])
    elif choice == "drawer":
        env._target_drawer_pos = env.model.site("drawer_handle_center_target").pos[1] = goal["drawer_pos"]
    elif choice == "window":
        env._target_window_pos = env.model.site("window_handle_center_target").pos[0] = goal["window_pos"]
    else:
        target_button(env, choice)
