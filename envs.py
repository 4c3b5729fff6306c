"""The tasks of the paper behind one gymnasium interface  (App. A.1).

    env = make("square")                     any name of config.TASKS
    obs, info = env.reset(seed=7)            the same seed gives the same episode, in any process
    obs, reward, terminated, truncated, info = env.step(action)     obs float32 [O], action [A] in [-1, 1]

What all tasks share:
    terminated   the task is done: nothing follows, the critic's mask is 0. In the paper's tasks only success does.
    truncated    the time limit: the world would go on, so the critic keeps bootstrapping (mask 1).
    success      info["success"], true at the step that reaches the goal.
    reward       Robomimic: 0 at success, -1 before (its sparse 0/1 minus 1); OGBench: -(conditions of the goal unmet).
                 It is of the state *after* the step. In OGBench's *data* it is of the state *before* it: ogbench
                 labels them so, and the released code takes them so.
"""
import os
import warnings
from dataclasses import dataclass

import gymnasium
import numpy as np

from config import ROBOMIMIC, TASKS, UserError
from tools.checks import end_in_one_line, nearest

# Training renders nothing. mujoco reads this when it is first imported; evaluate.py --film chooses a renderer before.
os.environ.setdefault("MUJOCO_GL", "disable")


@dataclass(frozen=True)
class Task:
    """What the rest of the code may know of a task without building its simulator."""
    name: str
    suite: str            # "robomimic", "ogbench" or "own"
    source: str           # robosuite's class, or OGBench's environment name
    horizon: int          # steps until truncation (App. A.1)
    obs_dim: int
    action_dim: int
    task_id: int = 0      # OGBench: which of the environment's fixed goals
    factory: object = None     # own: the function that makes the environment


def _tasks() -> dict[str, Task]:
    table = {"lift": Task("lift", "robomimic", "Lift", horizon=300, obs_dim=19, action_dim=7),
             "can": Task("can", "robomimic", "PickPlaceCan", horizon=300, obs_dim=23, action_dim=7),
             "square": Task("square", "robomimic", "NutAssemblySquare", horizon=400, obs_dim=23, action_dim=7)}
    horizon_and_obs_dim = {"cube-single": (200, 28), "cube-double": (500, 37), "cube-triple": (1000, 46),
                           "cube-quadruple": (1000, 55), "scene": (750, 40), "puzzle-3x3": (500, 55),
                           "puzzle-4x4": (500, 83)}
    for name in TASKS:
        if name not in ROBOMIMIC:
            source, task_id = name.rsplit("-task", 1)
            horizon, obs_dim = horizon_and_obs_dim[source]
            table[name] = Task(name, "ogbench", source, horizon, obs_dim, action_dim=5, task_id=int(task_id))
    return table


TABLE = _tasks()


def find_task(name: str | Task) -> Task:
    """The task of that name, or the Task itself. UserError for an unknown name."""
    if isinstance(name, Task):
        return name
    if name not in TABLE:
        raise UserError(f"unknown task {name!r}{nearest(name, TABLE)} Known: {', '.join(TABLE)}")
    return TABLE[name]


def make(name: str | Task, **overrides) -> gymnasium.Env:
    """The environment of a task of config.TASKS; overrides go to the simulator. UserError for an unknown name."""
    found = find_task(name)
    if found.suite == "own":
        from tools.simulators.own import OwnEnv
        return OwnEnv(found, found.factory(**overrides))
    return (RobomimicEnv if found.suite == "robomimic" else OGBenchEnv)(found, **overrides)


# --------------------------------------------------------------------------------------------------- Robomimic
# The paper's order, 3 + 4 + 2 + object.
OBS_KEYS = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object")


def robosuite_arguments(source: str) -> dict:
    """What the official v1.5 files record as env_args, but for lite_physics. So generated and official data come from
    one environment."""
    osc = dict(type="OSC_POSE", input_max=1, input_min=-1, output_max=[0.05] * 3 + [0.5] * 3,
               output_min=[-0.05] * 3 + [-0.5] * 3, kp=150, damping=1, impedance_mode="fixed", kp_limits=[0, 300],
               damping_limits=[0, 10], position_limits=None, orientation_limits=None, uncouple_pos_ori=True,
               control_delta=True, interpolation=None, ramp_ratio=0.2, input_ref_frame="world",
               gripper=dict(type="GRIP"))
    return dict(robots=["Panda"], controller_configs=dict(type="BASIC", body_parts=dict(right=osc)), control_freq=20,
                lite_physics=True,              # faster; replayed demonstrations are the same without it, bit for bit
                reward_shaping=False, ignore_done=True, use_object_obs=True, use_camera_obs=False,
                has_renderer=False, has_offscreen_renderer=False,
                # Rebuilding the model at each reset takes 0.15-0.5 s. Only lift needs it: the cube's size is random
                # there.
                hard_reset=source == "Lift")


def make_robosuite(name: str | Task, **overrides):
    """The raw robosuite environment of a Robomimic task, in which tools/standins/operators.py demonstrates. Its step()
    is replaced by a faster one with equal results: tools/simulators/fast_robosuite.py."""
    from tools.simulators import robosuite_setup
    source = find_task(name).source
    return robosuite_setup.make(source, robosuite_arguments(source) | overrides)


def robosuite_obs(raw: dict) -> dict[str, np.ndarray]:
    """robosuite's observation -> robomimic's names: "object-state" is called "object" in the files."""
    return {key: raw["object-state" if key == "object" else key] for key in OBS_KEYS}


class RobomimicEnv(gymnasium.Env):
    """lift, can and square. robomimic's own wrapper imports mujoco_py and cannot be used; this is what it does."""
    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, task: Task, **overrides):
        self.task, self.sim = task, make_robosuite(task, **overrides)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (self.task.obs_dim,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (self.task.action_dim,), np.float32)

    def _flat(self, raw) -> np.ndarray:
        return np.concatenate([*robosuite_obs(raw).values()]).astype(np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            np.random.seed(seed)         # robosuite places objects with numpy's global generator: one env per process
        self.steps = 0
        self.sim.reset()
        # Right after reset can's and square's object observation is stale (zeros). Refresh it here, once; between
        # steps a forced update would disturb the sensors' clocks.
        return self._flat(self.sim._get_observations(force_update=True)), {"success": False}

    def step(self, action):
        raw, reward, _, _ = self.sim.step(np.clip(action, -1, 1))
        self.steps += 1
        success = bool(self.sim._check_success())
        return (self._flat(raw), float(reward) - 1.0, success, not success and self.steps >= self.task.horizon,
                {"success": success})

    def render(self):
        return self.sim.sim.render(width=256, height=256, camera_name="agentview")[::-1]

    def close(self):
        self.sim.close()


# --------------------------------------------------------------------------------------------------- OGBench
class OGBenchEnv(gymnasium.Wrapper):
    """cube-*, scene, puzzle-*: ogbench's single-task environments."""

    def __init__(self, task: Task, **overrides):
        from tools.simulators.robosuite_setup import import_mujoco
        import_mujoco()
        import ogbench  # noqa: F401  registers the environments
        # Not shown: gymnasium's complaint that ogbench's bounds are float64 and its observations float32.
        warnings.filterwarnings("ignore", message=".*precision lowered.*", module="gymnasium")
        self.task = task
        # 'post': reward and success speak of the state after the step, as in ogbench 1.1.2, which the paper used. From
        # 1.2.0 on the single-task default is 'pre', the state before: every reward would come one step late.
        super().__init__(gymnasium.make(f"{task.source}-singletask-task{task.task_id}-v0",
                                        success_timing="post", max_episode_steps=task.horizon,
                                        disable_env_checker=True, **overrides))
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (self.task.obs_dim,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (self.task.action_dim,), np.float32)

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            np.random.seed(seed)
        obs, _ = self.env.reset(seed=seed, options=options)
        return obs.astype(np.float32), {"success": False}

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(np.clip(action, -1, 1))
        return (obs.astype(np.float32), float(reward), bool(terminated), bool(truncated and not terminated),
                {"success": bool(info["success"])})


# --------------------------------------------------------------------------------------------------- your own
def register(name: str, make_env, horizon: int) -> Task:
    """A task of your own: from here on every function and option knows it. make_env() -> a gymnasium environment with
    flat observations and actions in [-1, 1]. Success is info["success"] or info["is_success"], true at any step; where
    there is neither, termination. UserError for other spaces, and for a name that a folder cannot have."""
    from tools.simulators import own
    end_in_one_line()                      # as the scripts do: a mistake in your task is told in one line, not a trace
    if name in TABLE and TABLE[name].suite != "own":
        raise UserError(f"{name!r} is a task of the paper: choose another name")
    env = make_env()
    new = Task(name, "own", "", horizon, *own.checked_sizes(name, env), factory=make_env)
    own.try_out(new, env)
    TABLE[name] = new
    if name not in TASKS:
        TASKS.append(name)
    return new


# --------------------------------------------------------------------------------------------------- seeds of episodes
# Below 2^32, which numpy asks for. Training, evaluation and generated data never share an episode.
EVAL_SEED = 4_000_000_000
DATA_SEED = 3_000_000_000


def training_seed(run_seed: int, episode: int) -> int:
    return (run_seed * 1_000_003 + episode) % DATA_SEED
