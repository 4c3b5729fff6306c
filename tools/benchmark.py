"""How fast, as a share of what this machine can do.

    python -m tools.benchmark                              DFP at the paper's size: updates, acting, simulator, batches
    python -m tools.benchmark --methods dfp qc-fql mvp     one update and one action of each method, beside DFP's
    python -m tools.benchmark --profile                    where an online update's time goes

Peak is the best square matrix product (1024 to 8192) in fp32 of the same process with the same threads; work is
counted from the shapes of the matrix products that run (torch's FlopCounterMode), so rate / peak says how much is left
on the table. Modes are timed in turns, and the median is kept: on a shared machine only ratios within one run mean
anything.

Prints a table and writes <out>/benchmark.csv: what, method, mode, ms, gflop, rate (GFLOP/s, 1/s, or what the row
says), peak, ratio. The ratio is rate / peak, or what the row says: time compiled / plain, a method's / DFP's, several
seeds' / one's.
"""
import argparse
import contextlib
import dataclasses
import multiprocessing
import resource
import statistics
import sys
import time
import timeit
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import profiler
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

import config
import envs
import run
from buffer import ReplayBuffer
from tools.report import results
from tools.simulators.evaluator import Evaluator
from tools.speed.fast import CompiledUpdate, fast_act, fast_update, set_precision
from tools.speed.graph import PLAIN
from tools.speed.seeds import fast_updates
from tools.training import command_line
from tools.training.prepare import choose_device

MODES = {"compiled auto": dict(compile=True), "plain auto": dict(compile=False),
         "compiled fp32": dict(compile=True, precision="fp32"), "plain fp32": dict(compile=False, precision="fp32")}
WIDTHS = dict(what=32, method=8, mode=14, ms=9, gflop=7, rate=9, peak=6, ratio=6)
FORMATS = dict(ms=".2f", gflop=".3g", rate=".1f", peak=".0f", ratio=".2f")


class Table:
    """The rows of benchmark.csv, each printed as it is added."""

    def __init__(self):
        self.rows = []
        self.show({name: name for name in WIDTHS})

    def add(self, what, method, mode, taken=None, gflop=None, peak=None, **numbers) -> None:
        """A row: of the seconds taken (and the work done in them), or with a number for the column rate or ratio."""
        if taken:
            numbers |= dict(ms=1e3 * taken, rate=(gflop or 1) / taken)
        if gflop:
            numbers |= dict(gflop=gflop, peak=peak, ratio=numbers["rate"] / peak)
        cells = {name: f"{number:{FORMATS[name]}}" for name, number in numbers.items()}
        self.rows.append(dict(what=what, method=method, mode=mode) | cells)
        self.show(self.rows[-1])

    def show(self, row) -> None:
        print("  ".join(f"{row.get(name, ''):>{width}}" for name, width in WIDTHS.items()), flush=True)

    def compare(self, what, times: dict, mode, column=None) -> None:
        """Ratios to DFP's time, where several methods were timed, and the paper's: a column of its Table 9."""
        paper = {row["method"]: row for row in results.read_csv(results.PAPER / "times.csv")} if column else {}
        for method in [m for m in times if m != "dfp" and "dfp" in times]:
            self.add(f"{what} / dfp's", method, mode, ratio=times[method] / times["dfp"])
            if method in paper:
                theirs = float(paper[method][column]) / float(paper["dfp"][column])
                self.add(f"{column[:-3].replace('_', ' ')} / dfp's", method, "Table 9", ratio=theirs)


# ------------------------------------------------------------------------------------------------- time, work, example
def seconds(function, device, times: int) -> float:
    """Of a call: the median; on CUDA, where calls queue up as in training, the mean of ten times as many in a row."""
    if device.type == "cuda":
        return Timer("function()", globals=dict(function=function)).timeit(10 * times).mean
    function()
    return statistics.median(timeit.repeat(function, number=1, repeat=times))


def work(function) -> float:
    """GFLOP of a call, which must not be compiled: that hides its matrix products."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() / 1e9


def build(args, method: str = "dfp", **knobs) -> config.Config:
    return config.build(dict(task=args.task, method=method, preset=args.preset, **knobs))


def ready(c: config.Config, device, online: bool, size: int = 100_000) -> SimpleNamespace:
    """An algorithm and a buffer. The transitions are made up: time does not depend on what they say."""
    task = envs.task(c.task)
    algo = run.algorithm(c, task.obs_dim, task.action_dim, device)
    obs, next_obs, action = *torch.rand(2, size, task.obs_dim), 2 * torch.rand(size, task.action_dim) - 1
    dataset = dict(observations=obs, actions=action, rewards=torch.rand(size), masks=torch.ones(size),
                   terminals=torch.arange(size) % 500 == 499, next_observations=next_obs)
    buffer = ReplayBuffer(dataset, 10, c.chunk, c.discount, device)
    if online:
        algo.start_online()
        buffer.add(obs[0], action[0], 0.0, False, False, next_obs[0])
    return SimpleNamespace(algo=algo, buffer=buffer)


def update_of(c: config.Config, device, online: bool, size: int = 100_000):
    """A function that makes one whole update, of c.seeds seeds at once. It has been compiled, on CUDA recorded."""
    runs = [ready(dataclasses.replace(c, seed=k), device, online, size) for k in range(c.seeds)]
    update = fast_updates(runs) if c.seeds > 1 else fast_update(runs[0].algo, runs[0].buffer)

    def step():
        set_precision(c)                                         # modes take turns
        starts = [one.buffer.starts(c.batch_size) for one in runs]
        update(starts if c.seeds > 1 else starts[0])
    for _ in range(PLAIN + 1 if c.compile else 0):
        step()
    return step


# -------------------------------------------------------------------------------------------------- what is measured
def peak_of(device, largest: int) -> float:
    """GFLOP/s of the best square matrix product, in fp32 (on CUDA in TF32, as training has it)."""
    torch.set_float32_matmul_precision("high")
    best, size = 0.0, 1024
    while size <= largest:
        product = partial(torch.matmul, *torch.randn(2, size, size, device=device))
        best = max(best, 2e-9 * size**3 / seconds(product, device, 3))
        size *= 2
    return best


def updates(args, peak, table) -> None:
    """Of one method in all modes, or of several in the first one; and of several seeds of DFP."""
    modes, first = args.modes if len(args.methods) == 1 else args.modes[:1], args.modes[0]
    for stage, online, column in (("offline", False, None), ("online", True, "online_step_ms")):
        times = {}
        for method in args.methods:
            configs = {mode: build(args, method, **MODES[mode]) for mode in modes}
            if method == "dfp" and args.seeds > 1:
                configs["seeds"] = dataclasses.replace(configs[first], seeds=args.seeds)
            steps = {mode: update_of(c, args.device, online) for mode, c in configs.items()}
            rounds = [{mode: seconds(step, args.device, args.repeat) for mode, step in steps.items()}
                      for _ in range(args.rounds)]               # in turns, so that a busy moment hits every mode
            taken = {mode: statistics.median(turn[mode] for turn in rounds) for mode in steps}
            gflop = work(update_of(build(args, method, compile=False), args.device, online))
            for mode in modes:
                table.add(f"{stage} update", method, mode, taken[mode], gflop=gflop, peak=peak)
            for precision in ("auto", "fp32"):
                compiled, plain = (taken.get(f"{how} {precision}") for how in ("compiled", "plain"))
                if compiled and plain:
                    table.add(f"{stage} update, compiled / plain", method, precision, ratio=compiled / plain)
            if "seeds" in taken:
                table.add(f"{stage} update of {args.seeds} seeds", method, first, taken["seeds"])
                ratio = taken["seeds"] / taken[first]
                table.add(f"{stage} update, {args.seeds} seeds / one", method, first, ratio=ratio)
            times[method] = taken[first]
        table.compare(f"{stage} update", times, first, column)


def acting(args, peak, table) -> None:
    times, obs = {}, np.zeros((1, envs.task(args.task).obs_dim), np.float32)

    def choose(act):
        return act(obs).cpu()
    for method in args.methods:
        c = build(args, method)
        set_precision(c)
        algo = ready(c, args.device, online=False).algo
        act, gflop = partial(choose, fast_act(algo)), work(partial(choose, algo.act))
        for _ in range(PLAIN + 1):                               # past the recording of its graph
            act()
        times[method] = seconds(act, args.device, 50)
        table.add(f"act, best of {c.best_of}", method, "auto", times[method], gflop=gflop, peak=peak)
    table.compare("act", times, "auto", "action_ms")


def simulating(args, table) -> None:
    with contextlib.closing(envs.make(args.task)) as env:
        env.reset(seed=0)
        step = partial(env.step, np.zeros(env.action_space.shape, np.float32))
        table.add("simulator step", "-", "one process", seconds(step, torch.device("cpu"), 100))
    act = ready(build(args), args.device, online=False).algo.act
    with contextlib.closing(Evaluator(envs.task(args.task), args.workers)) as evaluator:
        evaluator(act, args.workers)                             # starts the processes
        begin = time.perf_counter()
        result = evaluator(act, 2 * args.workers)
        taken = (time.perf_counter() - begin) / (result["length"] * result["episodes"])
    table.add("evaluation step", "dfp", f"{args.workers} processes", taken)


def of_a_million(args, table) -> None:
    """A batch of 1M transitions, and the memory that training on them takes, in a process of its own."""
    c, device = build(args), str(args.device)
    sample = partial(ready(c, args.device, online=False, size=1_000_000).buffer.sample, c.batch_size)
    table.add("batch of 1M transitions", "-", device, seconds(sample, args.device, 200))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
        table.add("peak memory, MiB", "dfp", device, rate=other.submit(memory, c, args.device).result())


def memory(c: config.Config, device) -> float:
    """MiB at most, of this process: on a GPU what tensors take of it, else all."""
    update_of(c, device, online=True, size=1_000_000)()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def profile(args) -> None:
    """An online update by its parts and its operations, compiled; on a GPU as it is before it becomes one graph."""
    c = build(args, args.methods[0])
    one = ready(c, args.device, online=True)
    step = CompiledUpdate(one.algo)
    for owner, part in ((one.buffer, "sample"), (one.algo, "draw_noise"), (step, "critic_loss"), (step, "actor_loss"),
                        (one.algo, "gradient_step"), (step, "update")):
        setattr(owner, part, profiler.record_function(part)(getattr(owner, part)))
    set_precision(c)
    step.update(one.buffer.sample(c.batch_size))                 # compiles
    with profiler.profile() as found:
        for _ in range(args.repeat):
            step.update(one.buffer.sample(c.batch_size))
    order = f"{args.device.type}_time_total"
    print(found.key_averages().table(sort_by=order, row_limit=100, max_name_column_width=40))


# ------------------------------------------------------------------------------------------------------- the command
def parse():
    parser = command_line.OneLineParser(description=__doc__.split("\n")[0],
                                        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    option = parser.add_argument
    option("--task", default="cube-double-task2", help="whose sizes and constants")
    option("--preset", default="paper", choices=("paper", "quick"), help="network and batch size")
    option("--methods", nargs="+", default=["dfp"], choices=config.METHODS, metavar="METHOD",
           help="methods to compare; several: in one mode each")
    option("--modes", nargs="+", default=list(MODES), choices=MODES, help="several methods are compared in the first")
    option("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where to train")
    option("--threads", type=int, default=0, help="CPU threads; 0 = torch's choice")
    option("--workers", type=int, default=2, help="simulator processes of an evaluation")
    option("--largest", type=int, default=8192, help="largest matrix product tried for the peak")
    option("--rounds", type=int, default=3, help="turns each mode gets")
    option("--repeat", type=int, default=5, help="updates in a turn")
    option("--seeds", type=int, default=5, help="so many seeds stacked into one update, beside one; 1: left out")
    option("--profile", action="store_true", help="profile the online update of the first method, and stop")
    option("--out", default="results", help="folder of benchmark.csv")
    return parser.parse_args()


def main() -> None:
    args = parse()
    args.device = choose_device(config.build(dict(device=args.device)))
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.profile:
        return profile(args)
    table, peak = Table(), peak_of(args.device, args.largest)
    table.add("matrix product, peak", "-", "fp32", rate=peak)
    updates(args, peak, table)
    acting(args, peak, table)
    with contextlib.suppress(ImportError):                       # a machine without simulators
        simulating(args, table)
    of_a_million(args, table)
    Path(args.out).mkdir(parents=True, exist_ok=True)
    results.write_csv(Path(args.out, "benchmark.csv"), table.rows, WIDTHS)


if __name__ == "__main__":
    command_line.main(main)
