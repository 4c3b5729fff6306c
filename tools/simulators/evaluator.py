"""Evaluation episodes as evaluate.play() plays them, many side by side, each in a process of its own."""
import functools

import numpy as np
import torch

import envs
from config import UserError
from tools.simulators.process import SimulatorLost, Simulators


class Episode:
    """One evaluation episode. Its number decides where it begins and which noise the policy gets."""

    def __init__(self, number: int):
        self.seed = envs.EVAL_SEED + number
        self.noise = torch.Generator().manual_seed(self.seed)
        self.obs, self.rewards, self.success = None, [], False


class Evaluator:
    """evaluator(act, episodes) -> {"success", "return", "length", "episodes"}: means over episodes, which are played in
    `workers` processes. The result does not depend on their number. They start at the first call and stay."""

    def __init__(self, task: envs.Task, workers: int, make=envs.make):
        # make gets the Task and not its name, because a new process does not know what this one has registered.
        self.make, self.workers, self.simulators = functools.partial(make, task), max(1, workers), None

    def __call__(self, act, episodes: int, best_of: int | None = None, stop=None, first: int = 0) -> dict | None:
        """act: see dfp.DFP.act. first: the number of the first episode. stop() is asked between chunks; once it is true
        the result is None. UserError when simulators keep dying, and for numbers that are not finite."""
        for _ in range(3):
            try:
                numbered = [Episode(number) for number in range(first, first + episodes)]
                return self.roll_out(act, numbered, best_of, stop)
            except SimulatorLost as error:       # the same episodes once more: results depend on their seeds alone
                self.close()
                print(f"\na simulator was lost while evaluating ({error}); starting this evaluation again")
                lost = error
        raise UserError(f"simulators failed in three tries at one evaluation, the last with: {lost}; fewer --workers?")

    def roll_out(self, act, episodes, best_of, stop) -> dict | None:
        """As many episodes at a time as there are simulators. The policy acts for all of them in one call."""
        if self.simulators is None:
            self.simulators = Simulators(self.make, self.workers)
        waiting, playing = [*episodes], {}                                     # playing: {simulator: its episode}

        while waiting or playing:
            # Simulators that are free begin the next episodes.
            free = [i for i in range(self.workers) if i not in playing][:len(waiting)]
            for i in free:
                playing[i] = waiting.pop(0)
                self.simulators.send(i, "reset", playing[i].seed)
            for i in free:
                playing[i].obs = self.simulators.receive(i)[0]
            if stop and stop():
                self.close()                      # they may be in mid-episode; the next call starts new ones
                return None

            # The policy acts. Each row has its own noise, whoever plays beside it.
            obs, noise = np.stack([e.obs for e in playing.values()]), [e.noise for e in playing.values()]
            chunk_of = dict(zip(playing, act(obs, noise, best_of).cpu().numpy()))
            for i, chunk in chunk_of.items():
                self.simulators.send(i, "play", chunk)

            # Each chunk is executed open loop. A simulator answers once an action, and not beyond its episode's end.
            for i, chunk in chunk_of.items():
                episode = playing[i]
                for _ in chunk:
                    episode.obs, reward, terminated, truncated, info = self.simulators.receive(i)
                    episode.rewards.append(reward)
                    if terminated or truncated:
                        episode.success = info["success"]
                        del playing[i]
                        break
        return {"success": float(np.mean([e.success for e in episodes])), "episodes": len(episodes),
                "length": float(np.mean([len(e.rewards) for e in episodes])),
                "return": float(np.mean([sum(e.rewards) for e in episodes]))}

    def close(self) -> None:
        if self.simulators is not None:
            self.simulators.close()
            self.simulators = None
