"""Rolls a policy out in parallel processes: success rate, return and length over seeded episodes."""
import functools

import numpy as np
import torch

import envs
from config import UserError
from tools.simulators.process import SimulatorLost, Simulators


class Evaluator:
    """Rolls a policy out in `workers` processes. evaluator(act, episodes) -> {"success", "return", "length", ...}.

    Episode i always starts from seed EVAL_SEED + i and draws its own noise, so results depend neither on the number of
    workers nor on what was evaluated before, and training's random numbers are never touched. Processes start at the
    first call and stay. They are told the Task, not its name: a new process does not know what this one registered.
    """

    def __init__(self, task: envs.Task, workers: int, make=envs.make):
        self.make, self.workers, self.simulators = functools.partial(make, task), max(1, workers), None

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
                return self.close()               # simulators may be in mid-episode: no result, and others next time
            workers = list(episode_of)
            chunks = act(np.stack([obs[i] for i in workers]), [generators[i] for i in workers], best_of).cpu().numpy()
            for i, chunk in zip(workers, chunks):
                self.simulators.send(i, "play", chunk)           # open loop, until it or the episode ends
            over = []
            for i, chunk in zip(workers, chunks):
                for _ in chunk:
                    obs[i], reward, terminated, truncated, info = self.simulators.receive(i)
                    returns[episode_of[i]] += reward
                    lengths[episode_of[i]] += 1
                    if terminated or truncated:
                        success[episode_of[i]] = info["success"]
                        over.append(i)
                        break
            begin(over)
        return {"success": float(success.mean()), "episodes": episodes, "length": float(lengths.mean()),
                "return": float(returns.mean())}

    def close(self) -> None:
        if self.simulators is not None:
            self.simulators.close()
            self.simulators = None
