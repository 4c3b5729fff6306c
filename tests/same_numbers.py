"""Whether another version of this code computes the same numbers: small whole runs of both, compared bit for bit.

    python tests/same_numbers.py HEAD~3          a commit, or the folder of another checkout, against this one: minutes

In plain fp32 on one CPU thread. Some of our runs meet Ctrl-C in mid-chunk and are resumed; they must end as theirs that
went through. Compared are both checkpoints, online.f32, and the tables but for `seconds`. Exit code 1 for a difference.
"""
import csv
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.utils import _pytree as pytree

ROOT = Path(__file__).resolve().parent.parent
TOY = "toy --data ../../toy.npz --hidden 16 --batch-size 8 --offline-steps 60 --online-steps 200 --eval-every 50"
LIFT = ("lift --data generated --data-size 6 --data-dir ../../data --hidden 32 --batch-size 32 --offline-steps 40 "
        "--online-steps 120 --eval-every 80")
RUNS = {"toy": TOY, "toy, interrupted": TOY, "two seeds": TOY + " --seeds 2", "qc-fql": TOY + " --method qc-fql",
        "mvp-topk": TOY + " --method mvp-topk", "lift": LIFT, "lift, interrupted": LIFT}
FOR_ALL = ("--preset quick --no-compile --precision fp32 --device cpu --threads 1 --workers 1 --layers 2 --warmup 20 "
           "--log-every 4 --eval-episodes 2 --task ")
STOPS = (11, 58, 104)        # online steps: the next one that leaves a chunk unfinished is followed by Ctrl-C
# How a checkpoint says where an episode stands is up to the version; what becomes of it is compared.
LEFT_OUT = ("pt['collecting']", "pt['episode']", "pt['world']", "['resume']", "['seconds']", "['format']")

START = """
import os, signal, sys
stop = int(sys.argv.pop(1))
import envs, torch, toy, train_online
buffer = (sys.modules.get("buffer") or sys.modules["data"]).ReplayBuffer          # an older layout has it in data.py
def add_and_stop(self, *transition, add=buffer.add):
    add(self, *transition)
    ended = self.transitions(torch.arange(self.offline_size - 1, self.size))["terminals"].flip(0)
    if 0 < stop < len(ended) and int(ended.argmax()) % self.chunk:        # so many steps after an episode's end
        os.kill(os.getpid(), signal.SIGINT)
buffer.add = add_and_stop
envs.register("toy", toy.Toy, toy.TASK.horizon)
train_online.main()
"""


def read(path: Path):
    """A file of a run as nested dicts and lists of arrays and plain data."""
    if path.suffix == ".pt":
        state = torch.load(path)                                 # an older format holds the state as bytes
        return torch.load(io.BytesIO(state["state"].numpy().tobytes())) if "sha256" in state else state
    if path.suffix == ".csv":
        return [path.read_text().split()[0], *csv.DictReader(io.StringIO(path.read_text()))]
    return np.fromfile(path, np.float32)


def python(tree: Path, folder: Path, code: str, *words, ends_with: int = 0) -> None:
    """Runs the code in this folder, with the modules of this checkout."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=folder, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": f"{tree}:{tree / 'tests'}"})
    if done.returncode != ends_with:
        sys.exit(f"{tree}: {' '.join(words)}: exit code {done.returncode}, not {ends_with}\n{done.stdout}{done.stderr}")


def play(tree: Path, folder: Path, knobs: str, stops=()) -> dict:
    """A whole run -> all that its folder says, by name."""
    words = (FOR_ALL + knobs).split() + ["--resume"] * bool(stops)
    for stop in stops:
        python(tree, folder, START, str(stop), *words, ends_with=130)
    if stops or not folder.exists():                             # theirs has been played where ours is interrupted
        python(tree, folder, START, "0", *words)
    leaves = {str(path.relative_to(folder)) + pytree.keystr(where): leaf
              for path in folder.rglob("*.*") if path.suffix in (".pt", ".csv", ".f32")
              for where, leaf in pytree.tree_leaves_with_path(read(path))}
    return {name: leaf for name, leaf in leaves.items() if not any(word in name for word in LEFT_OUT)}


def difference(a, b) -> str:
    """What to say of the two; "" where they are equal bit for bit, nan included."""
    a, b = np.asarray(a), np.asarray(b)
    if (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()):
        return ""
    floats = a.shape == b.shape and a.dtype == b.dtype == np.float32
    return f"differs by up to {abs(a - b).max():.3g}" if floats else f"is {a}, now {b}"


def main(version: str = "HEAD", *runs: str) -> bool:       # runs: some of RUNS; none named: all
    with tempfile.TemporaryDirectory() as scratch:
        before, differ = Path(version).resolve(), 0
        if not before.is_dir():
            before = Path(scratch, "before")
            archive = subprocess.check_output(["git", "archive", version], cwd=ROOT)
            tarfile.open(fileobj=io.BytesIO(archive)).extractall(before, filter="data")
        python(before, Path(scratch), "import toy; toy.write_data('toy.npz')")
        for run in runs or RUNS:
            theirs = play(before, Path(scratch, "theirs", run.removesuffix(", interrupted")), RUNS[run])
            ours = play(ROOT, Path(scratch, "ours", run), RUNS[run], STOPS if "interrupted" in run else ())
            told = [f"{run}: {name} {what}" for name in theirs | ours
                    if (what := difference(theirs.get(name), ours.get(name)))]
            found = f"{run}: {len(told)} values differ" if told else f"equal bit for bit: {run} ({len(ours)} values)"
            print("\n".join([*told[:20], found]), flush=True)
            differ += len(told)
    return differ > 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
