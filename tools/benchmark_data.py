"""How fast batches come from a set in many files, beside the same data in memory  ->  a table and results/data.csv.

    python -m tools.benchmark_data --rows 20000

Files as wide as cube-quadruple's hold random numbers. For 1, 10 and 100 of them, batches of 256 chunks of 5 steps, each way in
turn, several rounds within one run: only their ratios mean something on another machine.

    memory     the arrays a small set would have (ReplayBuffer)
    mapped     tools/shards.py, with the file in the system's cache, as after a while where it fits
    cold       the same, with an empty cache before every batch, as at the start or where the file is far larger than memory
"""
import csv
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import data
import envs
from tools import command_line, shards

COUNTS, ROUNDS = (1, 10, 100), 5


def random_file(path: Path, rows: int, task: envs.Task, qpos: int) -> None:
    rng = np.random.default_rng(0)
    np.savez(path, observations=rng.normal(size=(rows, task.obs_dim)).astype("f4"), qpos=np.zeros((rows, qpos), "f4"),
             actions=rng.uniform(-1, 1, (rows, task.action_dim)).astype("f4"), terminals=np.arange(1, rows + 1) % 1001 % rows == 0)


def plain(dataset: dict) -> dict:
    """The same rows as ReplayBuffer wants them."""
    return shards.ShardBuffer(dataset, 0, 1, 1.0).transitions(torch.arange(len(dataset["records"])))


def seconds(buffer, batches: int, before=lambda: None) -> float:
    spent, generator = 0.0, torch.Generator().manual_seed(0)
    for _ in range(batches):
        before()
        begin = time.perf_counter()
        buffer.sample(256, generator)
        spent += time.perf_counter() - begin
    return spent / batches


def main() -> None:
    parser = command_line.OneLineParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--rows", type=int, default=20_020, help="rows in each file, trajectories of 1,001; the official ones have 1,001,000")
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("results/data.csv"))
    args = parser.parse_args()
    task, out = envs.task("cube-quadruple-task2"), []
    with tempfile.TemporaryDirectory() as folder:
        one = Path(folder) / "set/part-000.npz"
        one.parent.mkdir()
        random_file(one, args.rows // 1001 * 1001, task, qpos=42)
        paths = [one] + [one.with_name(f"part-{i:03d}.npz") for i in range(1, COUNTS[-1])]
        for path in paths[1:]:
            os.link(one, path)
        begin = time.perf_counter()
        _, counts = shards.load(paths, [dict(sha256=path.name) for path in paths], Path(folder), task)
        print(f"{counts['transitions']:,} transitions made into arrays at {counts['transitions'] / (time.perf_counter() - begin):,.0f} a second")
        place = Path(folder) / "maps/set/rows.f32"

        def forget():
            if hasattr(os, "posix_fadvise"):
                file = os.open(place, os.O_RDONLY)
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(file)
        for number in COUNTS:
            dataset, counts = shards.load(paths[:number], [dict(sha256=path.name) for path in paths[:number]], Path(folder), task)
            ways = dict(memory=(data.ReplayBuffer(plain(dataset), 0, 5, 0.99), args.batches), mapped=(shards.ShardBuffer(dataset, 0, 5, 0.99), args.batches))
            found = {name: min(seconds(*way) for _ in range(ROUNDS)) for name, way in ways.items()}
            found["cold"] = seconds(ways["mapped"][0], args.batches // 10, forget)
            out += [dict(files=number, transitions=counts["transitions"], way=name, batches_per_second=round(1 / value),
                         relative_to_memory=round(found["memory"] / value, 3)) for name, value in found.items()]
    for row in out:
        print("  ".join(f"{value:>12,}" if isinstance(value, int) else f"{value:>12}" for value in row.values()))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with open(args.out, "w", newline="") as file:
        writer = csv.DictWriter(file, list(out[0]))
        writer.writeheader()
        writer.writerows(out)


if __name__ == "__main__":
    command_line.main(main)
