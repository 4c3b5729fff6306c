"""Whether another version of this code computes the same numbers: small whole runs of both, compared bit for bit.

    python tests/same_numbers.py HEAD~3          a commit, against what is in this folder: minutes

In plain fp32 on one CPU thread. What differs is an AssertionError that names the file.
"""
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import toy

ROOT = Path(__file__).resolve().parent.parent
ALL = ("--preset quick --no-compile --precision fp32 --device cpu --threads 1 --workers 1 --layers 2 --warmup 20 "
       "--log-every 4 --eval-episodes 2 --task ")
TOY = "toy --data ../../toy.npz --hidden 16 --batch-size 8 --offline-steps 60 --online-steps 200 --eval-every 50"
RUNS = {"toy": TOY, "two seeds": TOY + " --seeds 2", "qc-fql": TOY + " --method qc-fql",
        "mvp-topk": TOY + " --method mvp-topk", "lift": "lift --data generated --data-size 6 --data-dir ../../data "
        "--hidden 32 --batch-size 32 --offline-steps 40 --online-steps 120 --eval-every 80"}
START = "import envs, toy, train_online; envs.register('toy', toy.Toy, toy.TASK.horizon); train_online.main()"


def play(tree: Path, folder: Path, knobs: str) -> list[Path]:
    """A whole run by the code in `tree` -> its folders, one a seed."""
    folder.mkdir(parents=True)
    subprocess.run([sys.executable, "-c", START, *(ALL + knobs).split()], cwd=folder, check=True,
                   stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": f"{tree}:{tree / 'tests'}"})
    return sorted(path.parent for path in folder.rglob("config.json"))


def main(version: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        scratch, before = Path(scratch), Path(scratch, "before")
        toy.write_data(scratch / "toy.npz")
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", before, version], cwd=ROOT, check=True)
        try:
            for name, knobs in RUNS.items():
                theirs = play(before, scratch / "theirs" / name, knobs)
                for one, two in zip(theirs, play(ROOT, scratch / "ours" / name, knobs), strict=True):
                    toy.assert_same_runs(one, two, aside=("config", "identity"))      # one may have knobs that are new
                print("equal bit for bit:", name, flush=True)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", before], cwd=ROOT, check=True)


if __name__ == "__main__":
    main(sys.argv[1])
