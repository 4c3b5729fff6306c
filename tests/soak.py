"""A soak of the online stage: do memory, open files or processes grow?  Linux only (/proc).

    python tests/soak.py 30                          minutes, from the first online update on; prints a table
    python tests/soak.py 30 --task cube-single-task2 --data-size 4000        further words go to train_online.py

Exits with 1 where the last third's median lies above the middle third's: memory by more than 5 % (the replay buffer's
own, touched as it fills, included: 192 bytes a step of lift), files and processes at all. The first third is warm-up.
"""
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMITS = {"main MB": 1.05, "workers MB": 1.05, "files": 1.0, "processes": 1.0}
WORDS = ("--task lift --preset quick --data generated --data-size 20 --offline-steps 100 --online-steps 1000000 "
         "--threads 1")
SAMPLES = 30


def measure(leader: int) -> dict:
    """Memory, open files and processes of a process and those of its group."""
    memory, files = {}, 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rsplit(")", 1)[1].split()[2]) == leader:
                pages = int((folder / "statm").read_text().split()[1])
                memory[int(folder.name)] = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
                files += len(list((folder / "fd").iterdir()))
        except OSError:                                          # it has just ended
            continue
    main = memory.get(leader, 0)
    return {"main MB": main, "workers MB": sum(memory.values()) - main, "files": files, "processes": len(memory)}


def grown(samples: list[dict]) -> list[str]:
    """What grew from the middle third to the last, in words."""
    third, found = len(samples) // 3, []
    for name, limit in LIMITS.items():
        before, after = (statistics.median(s[name] for s in part) for part in (samples[third:-third], samples[-third:]))
        if after > limit * before:
            found.append(f"{name} grew from {before:.0f} to {after:.0f}")
    return found


def newest_step(folder: str) -> str | None:
    """Of train.csv, once there is an online one."""
    tables = [path.read_text() for path in Path(folder).glob("runs/*/*/*/*/seed0/train.csv")]
    rows = [line for table in tables for line in table.splitlines() if ",online," in line]
    return rows[-1].split(",")[0] if rows else None


def main(minutes: float, words: list[str]) -> int:
    samples = []
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen([sys.executable, str(ROOT / "train_online.py"), *shlex.split(WORDS), *words],
                                   cwd=folder, stdout=sys.stderr, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            while not newest_step(folder) and process.poll() is None:
                time.sleep(0.2)
            print("minute    step", *(f"{name:>12}" for name in LIMITS))
            for i in range(1, SAMPLES + 1):
                time.sleep(minutes * 60 / SAMPLES)
                if process.poll() is not None:
                    print(f"the run ended with exit code {process.returncode}")
                    return 2
                samples.append(measure(process.pid))
                print(f"{minutes * i / SAMPLES:6.1f} {newest_step(folder):>7}",
                      *(f"{value:12.0f}" for value in samples[-1].values()), flush=True)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
    print(*(grown(samples) or ["nothing grew"]), sep="\n")
    return bool(grown(samples))


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
