"""Many evaluation episodes side by side: evaluate.play() in threads, each with a simulator in a process of its own."""
import functools
import queue
import threading
from concurrent.futures import ThreadPoolExecutor

import envs
from config import UserError
from tools.simulators.process import SimulatorLost, Simulators


class Stopped(Exception):
    """A stop was asked for."""


class Remote:
    """A simulator in another process, which play() takes for an environment."""

    def __init__(self, simulators: Simulators, i: int, stop):
        self.simulators, self.i, self.stop = simulators, i, stop

    def reset(self, seed: int) -> tuple:
        return self.answer("reset", seed)

    def step(self, action) -> tuple:
        return self.answer("step", action)

    def answer(self, call: str, argument) -> tuple:
        if self.stop and self.stop():
            raise Stopped
        self.simulators.send(self.i, call, argument)
        return self.simulators.receive(self.i)


class Evaluator:
    """evaluator(act, episodes) -> what play() gave of each: evaluate's, which plays one. The result does not depend on
    the number of `workers`, the simulators' processes. They start at the first call and stay."""

    def __init__(self, task: envs.Task, workers: int, play, make=envs.make):
        # make gets the Task and not its name, because a new process does not know what this one has registered.
        self.make, self.workers, self.play, self.simulators = functools.partial(make, task), max(1, workers), play, None

    def __call__(self, act, episodes: int, best_of: int | None = None, stop=None, first: int = 0) -> list | None:
        """act: see dfp.DFP.act. first: the number of the first episode. stop() is asked at every step; once it is true
        the result is None. UserError when simulators keep dying, and for numbers that are not finite."""
        for _ in range(3):
            try:
                return self.play_all(act, range(first, first + episodes), best_of, stop)
            except Stopped:
                return None
            except SimulatorLost as error:       # the same episodes once more: results depend on their seeds alone
                print(f"\na simulator was lost while evaluating ({error}); starting this evaluation again")
                lost = error
        raise UserError(f"simulators failed in three tries at one evaluation, the last with: {lost}; fewer --workers?")

    def play_all(self, act, numbers, best_of, stop) -> list[dict]:
        """Whatever is raised in one episode ends all."""
        if self.simulators is None:
            self.simulators = Simulators(self.make, self.workers)
        free, one_at_a_time = queue.SimpleQueue(), threading.Lock()
        for i in range(self.workers):
            free.put(Remote(self.simulators, i, stop))

        def careful_act(*arguments):
            with one_at_a_time:                  # the policy's own threads are as many as there are cores
                return act(*arguments)

        def play_one(number):
            simulator = free.get()
            try:
                return self.play(careful_act, simulator, number, best_of)
            finally:
                free.put(simulator)
        pool = ThreadPoolExecutor(self.workers)
        try:
            return [*pool.map(play_one, numbers)]
        except BaseException:
            self.close()                         # threads that wait for a simulator end with it
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def close(self) -> None:
        if self.simulators is not None:
            self.simulators.close()
            self.simulators = None
