"""Rolls a policy out in parallel processes: success rate, return and length over seeded episodes."""
import functools

import gymnasium
import numpy as np
import torch

import envs
from config import UserError
from tools.simulators.process import SimulatorLost, Simulators


class ChunkEnv(gymnasium.Wrapper):
    """One step = one whole chunk [H, A], executed open loop (Alg. 1, line 1) until it or the episode ends.

    Rewards are summed, info counts the steps.
    """

    def __init__(self, env: gymnasium.Env, chunk: int):
        super().__init__(env)
        low, high = env.action_space.low, env.action_space.high
        self.action_space = gymnasium.spaces.Box(np.tile(low, (chunk, 1)), np.tile(high, (chunk, 1)), dtype=np.float32)

    def step(self, actions):
        total = 0.0
        for steps, action in enumerate(actions, 1):
            obs, reward, terminated, truncated, info = self.env.step(action)
            total += reward
            if terminated or truncated or not np.isfinite(obs).all():        # Simulators.receive() complains
                break
        return obs, total, terminated, truncated, info | {"steps": steps}


def make_chunked(name: str | envs.Task, chunk: int) -> gymnasium.Env:
    return ChunkEnv(envs.make(name), chunk)


class Evaluator:
    """Rolls a policy out in `workers` processes. evaluator(act, episodes) -> {"success", "return", "length", ...}.

    Episode i always starts from seed EVAL_SEED + i and draws its own noise, so results depend neither on the number of
    workers nor on what was evaluated before, and training's random numbers are never touched. Processes start at the
    first call and stay. They are told the Task, not its name: a process that has just begun does not know tasks
    registered in this one.
    """

    def __init__(self, name: str | envs.Task, chunk: int, workers: int, make=make_chunked):
        self.make, self.workers, self.simulators = functools.partial(make, name, chunk), max(1, workers), None

    def __call__(self, act, episodes: int, best_of: int | None = None, stop=None) -> dict | None:
        """act(obs [n, O], generators, best_of) -> chunks [n, H, A]; see dfp.DFP.act. stop() is asked between chunks:
        once true, there is no result. UserError when simulators keep dying, and for numbers that are not finite."""
        for _ in range(3):
            try:
                return self.roll_out(act, episodes, best_of, stop)
            except SimulatorLost as error:       # the same episodes once more: results depend on their seeds alone
                self.close()
                print(f"\na simulator was lost while evaluating ({error}); starting this evaluation again")
                lost = error
        raise UserError(f"simulators failed in three tries at one evaluation, the last with: {lost}; fewer --workers?")

    def roll_out(self, act, episodes, best_of, stop) -> dict | None:
        if self.simulators is None:
            self.simulators = Simulators(self.make, self.workers)
        success, returns, lengths = np.zeros(episodes, bool), np.zeros(episodes), np.zeros(episodes, int)
        todo = iter(range(episodes))
        episode_of, obs, generators = {}, {}, {}                 # by worker

        def begin(workers) -> None:
            for i in workers:
                episode_of.pop(i, None)
                if (episode := next(todo, None)) is not None:
                    episode_of[i], generators[i] = episode, torch.Generator().manual_seed(envs.EVAL_SEED + episode)
                    self.simulators.send(i, "reset", envs.EVAL_SEED + episode)
            for i in workers:
                if i in episode_of:
                    obs[i] = self.simulators.receive(i)[0]

        begin(range(self.workers))
        while episode_of:                         # in step: who gets which episode must not depend on who is faster
            if stop and stop():
                self.close()                      # answers may be on their way
                return None
            workers = list(episode_of)
            seen = np.stack([obs[i] for i in workers])
            actions = act(seen, [generators[i] for i in workers], best_of).cpu().numpy()
            for i, action in zip(workers, actions):
                self.simulators.send(i, "step", action)
            over = []
            for i in workers:
                obs[i], reward, terminated, truncated, info = self.simulators.receive(i)
                returns[episode_of[i]] += reward
                lengths[episode_of[i]] += info["steps"]
                if terminated or truncated:
                    success[episode_of[i]] = info["success"]
                    over.append(i)
            begin(over)
        return {"success": float(success.mean()), "episodes": episodes, "length": float(lengths.mean()),
                "return": float(returns.mean())}

    def close(self) -> None:
        if self.simulators is not None:
            self.simulators.close()
            self.simulators = None
