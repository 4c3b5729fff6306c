"""A task of your own, which envs.register() makes known: what its environment must be, and what all tasks share."""
import contextlib
import reprlib

import gymnasium
import numpy as np

from tools.checks import UserError


def checked_sizes(name: str, env, horizon: int) -> tuple[int, int]:
    """(observation, action) sizes of what make() gave. UserError where any cannot be a task's."""
    if not name.isprintable() or "/" in name or name[:1] in ("", ".", " "):
        raise UserError(f"{name!r} cannot name a task: it must name a folder too, without slashes or a dot in front")
    if type(horizon) is not int or horizon < 1:
        raise UserError(f"{name}: horizon must be a whole number of steps above 0, not {horizon!r}")
    if not isinstance(env, gymnasium.Env):
        raise UserError(f"{name}: make() must give a gymnasium.Env, not {type(env).__name__}")
    obs, action = env.observation_space, env.action_space
    if len(obs.shape or ()) != 1 or len(action.shape or ()) != 1:
        raise UserError(f"{name}: observations and actions must be flat vectors, not {obs} and {action}")
    if not isinstance(action, gymnasium.spaces.Box) or (action.low != -1).any() or (action.high != 1).any():
        raise UserError(f"{name}: actions must be a Box in [-1, 1], not {action}; gymnasium.wrappers.RescaleAction "
                        "turns any other Box into one")
    return *obs.shape, *action.shape


def try_out(task, env) -> None:
    """One step, so that an environment that does not keep gymnasium's word is refused here, and not while training."""
    with contextlib.closing(OwnEnv(task, env)) as env:
        env.reset(seed=0)
        info = env.step(np.zeros(task.action_dim))[4]
    if not info["told"]:
        print(f"warning: {task.name}'s first step tells neither 'success' nor 'is_success' in its info: an episode "
              "that terminates without either counts as a success")


class OwnEnv(gymnasium.Wrapper):
    """A registered task, with what all tasks share. UserError where it does not keep gymnasium's word."""

    def __init__(self, task, env):
        super().__init__(env)
        self.horizon = task.horizon
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (task.obs_dim,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (task.action_dim,), np.float32)

    def reset(self, *, seed=None, options=None):
        obs, _ = answer(self.env.reset(seed=seed, options=options), "reset", "(observation, info)", 2)
        self.steps, self.success, self.told = 0, False, False
        return self.flat(obs), {"success": False}

    def step(self, action):
        returned = self.env.step(np.clip(action, -1, 1).astype(np.float32))
        obs, reward, terminated, truncated, info = answer(
            returned, "step", "(observation, reward, terminated, truncated, info)", 5)
        self.steps += 1
        truncated = not terminated and bool(truncated or self.steps >= self.horizon)
        # gymnasium-robotics calls it is_success, and some environments succeed in mid-episode and go on.
        told = [info[key] for key in ("success", "is_success") if key in info]
        self.told = self.told or bool(told)
        if any(told) or terminated and not self.told:
            self.success = True
        return (self.flat(obs), float(reward), bool(terminated), truncated,
                {"success": self.success, "told": self.told})

    def flat(self, obs) -> np.ndarray:
        try:
            obs = np.asarray(obs, np.float32)
        except (TypeError, ValueError):
            raise UserError(f"the observation {reprlib.repr(obs)} is no array of numbers; observation_space says "
                            f"{self.env.observation_space}") from None
        if obs.shape != self.observation_space.shape:
            raise UserError(f"observation has shape {obs.shape}, observation_space says {self.observation_space.shape}")
        return obs


def answer(returned, call: str, what: str, count: int) -> tuple:
    """What an environment's call returned, if it is of gymnasium's form."""
    if not isinstance(returned, tuple) or len(returned) != count:
        raise UserError(f"{call}() must return {what}, as gymnasium has it, not {reprlib.repr(returned)}")
    return returned
