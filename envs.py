"""The tasks of the paper behind one gymnasium interface  (App. A.1).

    env = make("square")                     any name of config.TASKS
    obs, info = env.reset(seed=7)            the same seed gives the same episode, in any process
    obs, reward, terminated, truncated, info = env.step(action)     obs float32 [O], action [A] in [-1, 1]

What all tasks share:
    terminated   the task is done: nothing follows, the critic's mask is 0. In the paper's tasks only success does.
    truncated    the time limit: the world would go on, so the critic keeps bootstrapping (mask 1).
    success      info["success"], true at the step that reaches the goal.
    reward       Robomimic: 0 at success, -1 before (its sparse 0/1 minus 1); OGBench: -(conditions of the goal unmet).
                 It is of the state *after* the step. In OGBench's *data* it is of the state *before* it, as ogbench
                 labels them. The authors train on both together all the same, and so do we.
"""
import os
import warnings
from dataclasses import dataclass

import gymnasium
import numpy as np

from config import TASKS, UserError
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


# Name: robosuite's class, horizon, observations.
ROBOSUITE = {"lift": ("Lift", 300, 19), "can": ("PickPlaceCan", 300, 23), "square": ("NutAssemblySquare", 400, 23)}
# Environment: horizon, observations. Each has several tasks, which differ in their goal.
OGBENCH = {"cube-single": (200, 28), "cube-double": (500, 37), "cube-triple": (1000, 46), "cube-quadruple": (1000, 55),
           "scene": (750, 40), "puzzle-3x3": (500, 55), "puzzle-4x4": (500, 83)}


def _task(name: str) -> Task:
    if name in ROBOSUITE:
        source, horizon, obs_dim = ROBOSUITE[name]
        return Task(name, "robomimic", source, horizon, obs_dim, action_dim=7)
    source, number = name.rsplit("-task", 1)
    horizon, obs_dim = OGBENCH[source]
    return Task(name, "ogbench", source, horizon, obs_dim, action_dim=5, task_id=int(number))


TABLE = {name: _task(name) for name in TASKS}         # register() adds yours


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


# --------------------------------------------------------------------------------------------------- episodes
# Their seeds are below 2^32, which numpy asks for. Training, evaluation and generated data never share an episode.
EVAL_SEED = 4_000_000_000
DATA_SEED = 3_000_000_000


def training_seed(run_seed: int, episode: int) -> int:
    return (run_seed * 1_000_003 + episode) % DATA_SEED


# --------------------------------------------------------------------------------------------------- Robomimic
# The paper's order, 3 + 4 + 2 + object.
OBS_KEYS = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object")


def robosuite_obs(raw: dict) -> dict[str, np.ndarray]:
    """robosuite's observation -> robomimic's names: "object-state" is called "object" in the files."""
    return {key: raw["object-state" if key == "object" else key] for key in OBS_KEYS}


class RobomimicEnv(gymnasium.Env):
    """lift, can and square. robomimic's own wrapper imports mujoco_py and cannot be used; this is what it does."""
    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, task: Task, **overrides):
        from tools.simulators import robosuite_setup
        self.task, self.sim = task, robosuite_setup.make(task.source, **overrides)
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
        terminated = bool(self.sim._check_success())
        truncated = not terminated and self.steps >= self.task.horizon
        return self._flat(raw), float(reward) - 1.0, terminated, truncated, {"success": terminated}

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
    there is neither, termination. UserError for other spaces, for a name that a folder cannot have, and for a horizon,
    the steps after which an episode ends, that is no whole number above 0."""
    from tools.simulators import own
    end_in_one_line()                      # as the scripts do: a mistake in your task is told in one line, not a trace
    if name in TABLE and TABLE[name].suite != "own":
        raise UserError(f"{name!r} is a task of the paper: choose another name")
    env = make_env()
    new = Task(name, "own", "", horizon, *own.checked_sizes(name, env, horizon), factory=make_env)
    own.try_out(new, env)
    TABLE[name] = new
    if name not in TASKS:
        TASKS.append(name)
    return new
