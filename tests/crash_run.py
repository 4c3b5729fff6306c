"""A run that kills itself: python crash_run.py WHERE NTH WHEN [train_online's options]

WHERE is a function, "module.name" or "module.class.name"; at its NTH call, before or after it (WHEN), the process gets a
SIGKILL: no handler runs, no file is closed. "clock SECONDS -" kills at a time instead. Only for test_crash.py.
"""
import functools
import importlib
import os
import signal
import sys
import threading
from pathlib import Path


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def arm(where: str, nth: int, when: str) -> None:
    module, *owners, name = where.split(".") if "tools" not in where else [where.rsplit(".", 1)[0], where.rsplit(".", 1)[1]]
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    function, calls = getattr(owner, name), []

    @functools.wraps(function)
    def deadly(*args, **kwargs):
        calls.append(1)
        if len(calls) == nth and when == "before":
            die()
        result = function(*args, **kwargs)
        if len(calls) == nth and when == "after":
            die()
        return result
    setattr(owner, name, deadly)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    where, nth, when, *sys.argv[1:] = sys.argv[1:]
    import config
    import train_online
    if where == "clock":
        threading.Timer(float(nth), die).start()
    elif where != "never":
        arm(where, int(nth), when)
    config.main(train_online.main)
