"""Environments in processes of their own, which may die, hang or raise: every such failure is met in one place.

    simulators = Simulators(make, 2);  simulators.send(0, "reset", seed);  simulators.answers() -> {0: (obs, info)}
"""
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing import resource_tracker

import numpy as np
from gymnasium.vector.utils import CloudpickleWrapper

from config import UserError


def behave_as_worker() -> None:
    """In worker processes: Ctrl-C reaches the whole process group, but only the main process answers it; and where that one
    is killed, the worker ends too, also in the middle of a step that hangs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()


@contextlib.contextmanager
def single_threaded_children():
    """Processes started within inherit OMP_NUM_THREADS=1: one simulator needs one core, not all of them."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS") if before is None else os.environ.update(OMP_NUM_THREADS=before)


class SimulatorLost(Exception):
    """A simulator's process has died, hangs, or raised."""


PATIENCE = 120              # seconds until a simulator counts as hung
START_PATIENCE = 300        # ... until its first answer: it imports and builds first, perhaps beside many others


class Simulators:
    """`count` environments, make() each, in processes of their own: spawned, which is safe on macOS and beside torch's threads.

    send() neither waits nor fails: whatever goes wrong in a process, its start included, is met in answers(). (gymnasium's
    AsyncVectorEnv builds one environment in the main process too, and waits without end for processes that start.)
    SimulatorLost where none can be started.
    """

    def __init__(self, make, count: int):
        context = multiprocessing.get_context("spawn")
        self.patience, self.asked, self.processes, self.pipes = START_PATIENCE, [], [], []
        resource_tracker.ensure_running()        # started by the first process, it would unblock the signal
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})        # children inherit it: see behave_as_worker
        try:
            with single_threaded_children():
                for _ in range(count):
                    mine, theirs = context.Pipe()
                    # cloudpickle, because a task of your own may be a lambda, or a class of a notebook
                    process = context.Process(target=_serve, args=(CloudpickleWrapper(make), theirs), daemon=True)
                    process.start()
                    theirs.close()               # so that the pipe ends where the process does
                    self.processes.append(process)
                    self.pipes.append(mine)
        except OSError as error:                 # no more processes, memory or files
            self.close()
            raise SimulatorLost(f"no process could be started: {error.strerror}") from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)

    def send(self, i: int, call: str, argument) -> None:
        """Asks environment i to "reset" with a seed or to "step" with an action. UserError for an action that is not finite:
        simulators make anything of such a one."""
        if not np.isfinite(argument).all():
            raise UserError("an action of the policy is not finite")
        self.asked.append(i)
        with contextlib.suppress(OSError):       # its process is gone, as answers() will find
            self.pipes[i].send((call, argument))

    def answers(self) -> dict[int, tuple]:
        """What the environments asked since the last time return, by number. SimulatorLost where one does not; UserError for
        an observation or reward that is not finite."""
        deadline, answers = time.monotonic() + self.patience, {}
        for i in self.asked:
            try:
                if not self.pipes[i].poll(max(0, deadline - time.monotonic())):
                    raise SimulatorLost(f"no answer in {self.patience} seconds")
                answer = self.pipes[i].recv()
            except (EOFError, OSError):
                self.processes[i].join(1)
                raise SimulatorLost(f"its process ended with exit code {self.processes[i].exitcode}") from None
            if isinstance(answer, str):
                raise SimulatorLost(answer)
            if not all(np.isfinite(number).all() for number in answer[:-1]):
                raise UserError("an observation or reward of the simulator is not finite")
            answers[i] = answer
        self.asked, self.patience = [], PATIENCE
        return answers

    def close(self) -> None:
        """Ends the processes, whatever they are doing."""
        for process, pipe in zip(self.processes, self.pipes):
            process.kill()
            process.join()
            pipe.close()


def _serve(make, pipe) -> None:
    """A simulator's process. An exception's text is an answer too, the last."""
    behave_as_worker()
    try:
        env = make()
        while True:
            call, argument = pipe.recv()
            pipe.send(env.reset(seed=argument) if call == "reset" else env.step(argument))
    except Exception as error:                   # the environment's, or EOFError: the main process is gone, nobody hears it
        with contextlib.suppress(OSError):
            pipe.send(f"{type(error).__name__} {error}".strip())
