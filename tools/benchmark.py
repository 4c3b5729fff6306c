"""How fast, as a share of what this machine can do.

    python -m tools.benchmark                              DFP at the paper's size: updates, acting, simulator, batches
    python -m tools.benchmark --methods dfp qc-fql mvp     one update and one action of each method, beside DFP's
    python -m tools.benchmark --profile                    where an online step's time goes

Peak is the best square matrix product (1024 to 8192) of the same process with the same threads; work is counted from the
shapes of the matrix products that run (torch's FlopCounterMode), so rate / peak says how much is left on the table. Modes
are timed in turns, and the median is kept: on a shared machine only ratios within one run mean anything.
Prints a table and writes <out>/benchmark.csv: what, method, mode, ms, gflop, rate (GFLOP/s, 1/s, or what the row
says), peak, ratio. The ratio is rate / peak, or what the row says: time compiled / plain, a method's / DFP's, several seeds' / one's.
"""
import argparse
import contextlib
import dataclasses
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import config
import data
import envs
import run
import train_offline
from config import UserError
from tools import command_line, graph, results
from tools.seeds import Together

MODES = {"compiled auto": dict(compile=True), "plain auto": dict(compile=False),
         "compiled fp32": dict(compile=True, precision="fp32"), "plain fp32": dict(compile=False, precision="fp32")}
COLUMNS = ("what", "method", "mode", "ms", "gflop", "rate", "peak", "ratio")


def seconds(function, device, times: int) -> float:
    """Of a call: the median; on CUDA, where calls queue up as in training, the mean of ten times as many in a row."""
    taken, row = [], 1
    function()
    if device.type == "cuda":
        times, row = 1, 10 * times
        for _ in range(graph.PLAIN):                             # past the recording of its graph
            function()
        torch.cuda.synchronize()
    for _ in range(times):
        begin = time.perf_counter()
        for _ in range(row):
            function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append((time.perf_counter() - begin) / row)
    return statistics.median(taken)


def now(cuda: bool) -> float:
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def peaks(device, largest: int) -> dict[str, float]:
    """GFLOP/s of the best square matrix product, by precision."""
    best = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        best[name] = 0.0
        size = 1024
        while size <= largest:
            a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
            best[name] = max(best[name], 2e-9 * size**3 / seconds(lambda: a @ b, device, 3))
            size *= 2
    return best


def example(c: config.Config, device, size: int = 100_000, online: bool = True) -> data.ReplayBuffer:
    """A buffer of made-up transitions of the task's shapes, some of them online: time does not depend on what they say."""
    task, draw = envs.task(c.task), np.random.default_rng(0)
    shapes = dict(observations=(size, task.obs_dim), next_observations=(size, task.obs_dim), actions=(size, task.action_dim))
    arrays = {name: 2 * draw.random(shapes.get(name, size), np.float32) - 1 for name in data.FIELDS}
    arrays |= {"masks": np.ones(size, np.float32), "terminals": (np.arange(size) % 500 == 499).astype(np.float32)}
    buffer = data.ReplayBuffer(arrays, 10, c.chunk, c.discount, device)
    for _ in range(10 * online):
        buffer.add(np.zeros(task.obs_dim), np.zeros(task.action_dim), 0.0, False, False, np.zeros(task.obs_dim))
    return buffer


def algorithm(c: config.Config, device, online: bool):
    task = envs.task(c.task)
    algo = run.algorithm(c, task.obs_dim, task.action_dim, device)
    if online:
        algo.start_online()
    return algo


def build(args, method: str, online: bool, **knobs):
    """-> (algorithm, one whole update, its GFLOP)."""
    c = config.build(dict(task=args.task, method=method, preset=args.preset, **knobs))
    buffer = example(c, args.device, online=online)
    generator = torch.Generator(args.device).manual_seed(0)
    starts = lambda: buffer.starts(c.batch_size, generator)      # noqa: E731
    plain = dataclasses.replace(c, compile=False)                # the compiler hides products from the counter
    with FlopCounterMode(display=False) as counter:
        algorithm(plain, args.device, online).update(buffer.chunks(starts()))
    algo = algorithm(c, args.device, online)
    update = graph.graphed(algo, [buffer], buffer.chunks)

    def step():
        train_offline.set_precision(c)                           # modes take turns
        update(starts())
    return algo, step, counter.get_total_flops() / 1e9


def updates(args, peak, add) -> dict:
    """-> {stage: DFP's update in the first mode}, for seeds()."""
    times, ones = {}, {}
    for online in (False, True):
        for method in args.methods:
            ready = {}
            for mode, knobs in MODES.items():
                if mode in (args.modes if len(args.methods) == 1 else args.modes[:1]):
                    _, step, gflop = build(args, method, online, **knobs)
                    begin = time.perf_counter()
                    step()
                    ready[mode] = (step, gflop, time.perf_counter() - begin)
            taken = {mode: [] for mode in ready}
            for _ in range(args.rounds):                         # in turns, so that a busy moment hits every mode
                for mode, (step, _, _) in ready.items():
                    taken[mode].append(seconds(step, args.device, args.repeat))
            stage = "online" if online else "offline"
            if method == "dfp":
                ones[stage] = ready[args.modes[0]][0]
            t = times[stage, method] = {mode: statistics.median(found) for mode, found in taken.items()}
            for mode, (_, gflop, first) in ready.items():
                add(f"{stage} update", method, mode, t[mode], gflop=gflop, peak=peak["fp32"])
                add(f"first {stage} update", method, mode, first)
            for precision in ("auto", "fp32"):
                if {f"compiled {precision}", f"plain {precision}"} <= t.keys():
                    add(f"{stage} update, compiled / plain", method, precision, ratio=t[f"compiled {precision}"] / t[f"plain {precision}"])
    for stage, column in (("offline", None), ("online", "online_step_ms")):
        compare(f"{stage} update", {m: times[stage, m].get(args.modes[0]) for m in args.methods}, args.modes[0], add, column)
    return ones


def compare(what, times, mode, add, column=None) -> None:
    """Rows of ratios to DFP's time, where several methods were timed, and the paper's (a column of its Table 9)."""
    theirs = {row["method"]: float(row[column]) for row in results.read_csv(results.PAPER / "times.csv")} if column else {}
    for method, t in times.items():
        if method != "dfp" and times.get("dfp"):
            add(f"{what} / dfp's", method, mode, ratio=t / times["dfp"])
            if method in theirs:
                add(f"{column[:-3].replace('_', ' ')} / dfp's", method, "Table 9", ratio=theirs[method] / theirs["dfp"])


def seeds(args, ones, add) -> None:
    """Several seeds stacked into one update, beside one."""
    mode, count = args.modes[0], args.seeds
    c = config.build(dict(task=args.task, preset=args.preset) | MODES[mode])
    for stage, online in (("offline", False), ("online", True)):
        together = Together([algorithm(dataclasses.replace(c, seed=k), args.device, online) for k in range(count)])
        buffer, draw = example(c, args.device, online=online), torch.Generator(args.device).manual_seed(0)
        step = graph.graphed(together, [buffer], lambda starts: [buffer.chunks(at) for at in starts])      # noqa: B023

        def several():
            train_offline.set_precision(c)
            step([buffer.starts(c.batch_size, draw) for _ in range(count)])                                         # noqa: B023
        times = [statistics.median(seconds(f, args.device, args.repeat) for _ in range(args.rounds)) for f in (ones[stage], several)]
        add(f"{stage} update of {count} seeds", "dfp", mode, times[1])
        add(f"{stage} update, {count} seeds / one", "dfp", mode, ratio=times[1] / times[0])


def acting_seconds(algo, c) -> tuple[float, float]:
    """-> (seconds, GFLOP) of choosing a chunk."""
    act, obs, generator = graph.acting(algo), np.zeros((1, envs.task(c.task).obs_dim), np.float32), torch.Generator().manual_seed(0)
    with FlopCounterMode(display=False) as counter:
        algo.act(obs, generator)
    return seconds(lambda: act(obs, generator).cpu(), algo.device, 50), counter.get_total_flops() / 1e9


def acting(args, peak, add) -> None:
    times = {}
    for method in args.methods:
        c = config.build(dict(task=args.task, method=method, preset=args.preset))
        times[method], gflop = acting_seconds(algorithm(c, args.device, False), c)
        add(f"act, best of {c.best_of}", method, "auto", times[method], gflop=gflop, peak=peak["fp32"])
    compare("act", times, "auto", add, "action_ms")


def simulator_seconds(task: str) -> float:
    env, zero = envs.make(task), np.zeros(envs.task(task).action_dim, np.float32)
    env.reset(seed=0)
    taken = seconds(lambda: env.step(zero), torch.device("cpu"), 100)
    env.close()
    return taken


def simulating(args, add) -> None:
    c = config.build(dict(task=args.task))
    add("simulator step", "-", "one process", simulator_seconds(c.task))
    algo, _, _ = build(args, "dfp", False, compile=False)
    evaluator = envs.Evaluator(c.task, c.chunk, args.workers)
    evaluator(algo.act, args.workers)                            # starts the processes
    begin = time.perf_counter()
    result = evaluator(algo.act, 2 * args.workers)
    add("evaluation step", "dfp", f"{args.workers} processes", (time.perf_counter() - begin) / (result["length"] * result["episodes"]))
    evaluator.close()
    buffer, generator = example(c, args.device, 1_000_000), torch.Generator(args.device).manual_seed(0)
    add("batch of 1M transitions", "-", str(args.device), seconds(lambda: buffer.sample(c.batch_size, generator), args.device, 200))


def memory(task: str, preset: str, device) -> float:
    """MiB at most, of a process that trains online on 1M transitions: on a GPU what tensors take of it, else all."""
    c = config.build(dict(task=task, preset=preset))
    algo, buffer = algorithm(c, device, True), example(c, device, 1_000_000)
    update = graph.graphed(algo, [buffer], buffer.chunks)
    for _ in range(graph.PLAIN + 2):
        update(buffer.starts(c.batch_size))
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def profile(args) -> None:
    """Where an online step's time goes: its parts, then the operations of its update, compiled as in training."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record
    cuda = args.device.type == "cuda"
    c = config.build(dict(task=args.task, method=args.methods[0], preset=args.preset))
    train_offline.set_precision(c)
    algo, buffer, generator = algorithm(c, args.device, True), example(c, args.device), torch.Generator(args.device).manual_seed(0)
    parts = dict(draw_noise="noise", critic_loss="critic's loss", actor_loss="actor's loss", descend="backward pass, averages, Adam")
    spent = dict.fromkeys(("update", "batch", *parts.values()), 0.0)

    def timed(what, function):
        def call(*inputs):
            begin = now(cuda)
            result = function(*inputs)
            spent[what] += (now(cuda) - begin) / args.repeat
            return result
        return call
    for name, what in parts.items():
        setattr(algo, name, timed(what, getattr(algo, name)))
    sample = timed("batch", lambda: buffer.sample(c.batch_size, generator))
    step = timed("update", lambda: algo.update(sample()))

    def steps():
        spent.update(dict.fromkeys(spent, 0.0))
        for _ in range(args.repeat):
            step()
    steps()                                                      # compiles
    steps()
    print(f"an online step of {c.method} on {c.task}, {args.device}:" + " each part waited for, where training has one CUDA graph" * cuda)
    with contextlib.suppress(ImportError):
        print(f"{1e3 * simulator_seconds(c.task):9.2f} ms  simulator, in a process of its own, while the update runs")
    print(f"{1e3 * acting_seconds(algo, c)[0] / c.chunk:9.2f} ms  1/{c.chunk} of choosing a chunk")
    for what, t in spent.items():
        print(f"{1e3 * t:9.2f} ms  {'' if what == 'update' else '  of it '}{what}")
    with record(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda) as recorded:
        steps()
    print(f"the operations of {args.repeat} updates:")
    print(recorded.key_averages().table(sort_by=f"self_{args.device.type}_time_total", row_limit=20, max_name_column_width=40))


def main() -> None:
    parser = command_line.OneLineParser(description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--task", default="cube-double-task2", help="whose sizes and constants")
    parser.add_argument("--preset", default="paper", choices=("paper", "quick"), help="network and batch size")
    parser.add_argument("--methods", nargs="+", default=["dfp"], help="methods to compare; several: in one mode each")
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES, help="several methods are compared in the first")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 = torch's choice")
    parser.add_argument("--workers", type=int, default=2, help="simulator processes of an evaluation")
    parser.add_argument("--largest", type=int, default=8192, help="largest matrix product tried for the peak")
    parser.add_argument("--rounds", type=int, default=3, help="turns each mode gets")
    parser.add_argument("--repeat", type=int, default=5, help="updates in a turn")
    parser.add_argument("--seeds", type=int, default=5, help="so many seeds stacked into one update, beside one; 1: left out")
    parser.add_argument("--profile", action="store_true", help="profile the online update of the first method, and stop")
    parser.add_argument("--out", default="results", help="folder of benchmark.csv")
    args = parser.parse_args()
    unknown = [m for m in args.methods if m not in config.METHODS]
    if unknown:
        raise UserError(f"unknown method {unknown[0]!r}. Known: {', '.join(config.METHODS)}")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this torch sees no GPU")
    args.device = torch.device("cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu")
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("high")                   # the peak of fp32 products is that of TF32, on CUDA
    if args.profile:
        return profile(args)

    rows = []

    def show(row):
        print("  ".join(f"{row.get(k, ''):>{w}}" for k, w in zip(COLUMNS, (32, 8, 14, 9, 7, 9, 6, 6))), flush=True)

    def add(what, method, mode, t=None, gflop=None, peak=None, rate=None, ratio=None):
        """A row: of a time in seconds (and its work), of a rate, or of a ratio."""
        rate = rate or t and (gflop or 1) / t
        ratio = ratio or peak and rate / peak
        numbers = dict(ms=t and f"{1e3 * t:.2f}", gflop=gflop and f"{gflop:.3g}", rate=rate and f"{rate:.1f}", peak=peak and f"{peak:.0f}",
                       ratio=ratio and f"{ratio:.2f}")
        rows.append(dict(what=what, method=method, mode=mode) | {k: v for k, v in numbers.items() if v})
        show(rows[-1])

    show(dict(zip(COLUMNS, COLUMNS)))
    peak = peaks(args.device, args.largest)
    for name, value in peak.items():
        add("matrix product, peak", "-", name, rate=value)
    with tempfile.TemporaryDirectory() as cold, mock.patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=cold):
        ones = updates(args, peak, add)                          # first ones compile: nothing of an earlier run helps them
    acting(args, peak, add)
    if args.seeds > 1 and "dfp" in args.methods:
        seeds(args, ones, add)
    with contextlib.suppress(ImportError):
        simulating(args, add)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
        add("peak memory, MiB", "dfp", str(args.device), rate=other.submit(memory, args.task, args.preset, args.device).result())
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    results.write_csv(out / "benchmark.csv", rows, COLUMNS)


if __name__ == "__main__":
    command_line.main(main)
