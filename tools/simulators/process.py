"""Environments in processes of their own, which may die, hang or raise: every such failure is met in one place."""
import ast
import contextlib
import math
import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing import resource_tracker
from pathlib import Path

import numpy as np
from gymnasium.vector.utils import CloudpickleWrapper

from config import UserError


CGROUP = Path("/sys/fs/cgroup/cpu.max")


def behave_as_worker() -> None:
    """In worker processes: only the main process answers Ctrl-C, which reaches all of them; and where that one is
    killed, the worker ends too, also in the middle of a step that hangs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()


@contextlib.contextmanager
def children():
    """Processes started within inherit one thread, as a simulator needs one core alone, no renderer, whatever the shell
    says, and the script that runs only where it can be imported again."""
    from unittest import mock                    # late: those processes do without it
    script = contextlib.nullcontext()
    if not can_be_imported():                    # classes and functions of such a script travel by value
        script = mock.patch.multiple(sys.modules["__main__"], create=True, __file__=None, __spec__=None)
    with script, mock.patch.dict(os.environ, OMP_NUM_THREADS="1", MUJOCO_GL="disable"):
        yield


def can_be_imported() -> bool:
    """Whether a new process may import the script that runs. Not one from standard input, nor one that works as soon as
    it is imported, without `if __name__ == "__main__":`."""
    script, frame = vars(sys.modules["__main__"]), sys._getframe()
    if not os.path.isfile(script.get("__file__") or ""):
        return False
    while frame and not (frame.f_globals is script and frame.f_code.co_name == "<module>"):
        frame = frame.f_back
    if frame is None:                            # works elsewhere, as in a thread
        return True
    for statement in ast.parse(Path(script["__file__"]).read_bytes()).body:
        if statement.lineno <= frame.f_lineno <= statement.end_lineno:
            return isinstance(statement, ast.If) and "__name__" in ast.unparse(statement.test)
    return False


def cores() -> int:
    """CPU cores that this process may use: those it is bound to, and no more than its container's share."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with contextlib.suppress(OSError, ValueError):         # no such file, or "max"
        quota, period = CGROUP.read_text().split()
        count = min(count, math.ceil(int(quota) / int(period)))
    return count


class SimulatorLost(Exception):
    """A simulator's process has died, hangs, or raised."""


PATIENCE = 300              # seconds until a simulator counts as hung; it may be building, beside many others


class Simulators:
    """`count` environments, make() each. They are spawned: safe beside torch's threads. SimulatorLost where none can be
    started. gymnasium's AsyncVectorEnv would wait without end for a process that does not start."""

    def __init__(self, make, count: int):
        context = multiprocessing.get_context("spawn")
        self.processes, self.pipes = [], []
        resource_tracker.ensure_running()        # started by the first process, it would unblock the signal
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # children inherit: see behave_as_worker
        try:
            with children():
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
        """Asks environment i to "reset" with a seed, "step" with an action, or "play" a chunk: an answer for each step,
        until the episode ends. Neither waits nor fails: what goes wrong in a process is met in receive(). UserError for
        an action that is not finite, of which simulators make anything."""
        if not np.isfinite(argument).all():
            raise UserError("an action of the policy is not finite")
        with contextlib.suppress(OSError):       # its process is gone, as receive() will find
            self.pipes[i].send((call, argument))

    def receive(self, i: int) -> tuple:
        """What environment i's reset() or step() returned. SimulatorLost where no answer comes; UserError for numbers
        that are not finite, and for what an environment does wrong."""
        try:
            if not self.pipes[i].poll(PATIENCE):
                raise SimulatorLost(f"no answer in {PATIENCE} seconds")
            answer = self.pipes[i].recv()
        except (EOFError, OSError):
            self.processes[i].join(1)
            raise SimulatorLost(f"its process ended with exit code {self.processes[i].exitcode}") from None
        if isinstance(answer, UserError):
            raise answer
        if isinstance(answer, str):
            raise SimulatorLost(answer)
        if not all(np.isfinite(number).all() for number in answer[:-1]):
            raise UserError("an observation or reward of the simulator is not finite")
        return answer

    def close(self) -> None:
        """Ends the processes, whatever they are doing."""
        for process, pipe in zip(self.processes, self.pipes):
            process.kill()
            process.join()
            pipe.close()


def _serve(make, pipe) -> None:
    """A simulator's process. An exception is an answer too, the last: of any but ours only its text may be sent."""
    behave_as_worker()
    try:
        env = make()
        while True:
            call, argument = pipe.recv()
            if call == "reset":
                pipe.send(env.reset(seed=argument))
            for action in {"reset": (), "step": (argument,), "play": argument}[call]:
                answer = env.step(action)
                pipe.send(answer)
                _, _, terminated, truncated, _ = answer
                if terminated or truncated:
                    break
    except Exception as error:       # the environment's, or EOFError: the main process is gone, nobody hears it
        with contextlib.suppress(OSError):
            pipe.send(error if isinstance(error, UserError) else f"{type(error).__name__} {error}".strip())
