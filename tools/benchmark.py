"""How fast, as a share of what this machine can do.

Rows of <out>/benchmark.csv. rate: GFLOP/s of matrix products, or calls a second (demonstrations: a minute). peak: of
the best square product, in fp32, of the same process. ratio: rate / peak, or what the row says. On a shared machine
only ratios mean anything.
"""
import argparse
import contextlib
import dataclasses
import statistics
import tempfile
import time
import timeit
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

import config
import envs
import run
import train_online
from buffer import ReplayBuffer
from tools.report import results
from tools.simulators import robosuite_setup
from tools.speed.fast import fast_act, fast_update, set_precision
from tools.speed.graph import PLAIN
from tools.speed.seeds import fast_updates
from tools.training import command_line
from tools.training.prepare import choose_device
from tools.training.stage import Stage

MODES = {"compiled auto": dict(compile=True), "plain auto": dict(compile=False),
         "compiled fp32": dict(compile=True, precision="fp32"), "plain fp32": dict(compile=False, precision="fp32")}
COMPILING = 10         # steps of a run until the compiler has seen everything
FORMATS = dict(ms=".2f", gflop=".3g", rate=".1f", peak=".0f", ratio=".2f")


def row(what, method, mode, taken=None, gflop=None, peak=None, **numbers) -> dict:
    """Of benchmark.csv, and printed at once: of the seconds taken and the work done in them, or with other numbers."""
    if taken:
        numbers |= dict(ms=1e3 * taken, rate=(gflop or 1) / taken)
    if gflop:
        numbers |= dict(gflop=gflop, peak=peak, ratio=numbers["rate"] / peak)
    cells = {name: f"{numbers[name]:{form}}" for name, form in FORMATS.items() if name in numbers}
    print(f"{what:32} {method:12} {mode:14}", *(f"{name} {cell:10}" for name, cell in cells.items()), flush=True)
    return dict(what=what, method=method, mode=mode) | cells


def ratios(what, times: dict, mode, column):
    """The methods' times / DFP's, where it is one of them; and the same of the paper, from a column of its Table 9."""
    lines = results.read_csv(results.PAPER / "times.csv") if column else ()
    paper = {line["method"]: float(line[column]) for line in lines}
    for method in [method for method in times if method != "dfp" and "dfp" in times]:
        yield row(f"{what} / dfp's", method, mode, ratio=times[method] / times["dfp"])
        if method in paper:
            yield row(f"{column[:-3].replace('_', ' ')} / dfp's", method, "Table 9", ratio=paper[method] / paper["dfp"])


def seconds(function, device, times: int) -> float:
    """Of a call: the median; on CUDA, where calls queue up as in training, the mean of ten times as many in a row."""
    for _ in range(PLAIN + 1):                                   # past compiling and, on CUDA, the recording of a graph
        function()
    if device.type == "cuda":
        return Timer("function()", globals=dict(function=function)).timeit(10 * times).mean
    return statistics.median(timeit.repeat(function, number=1, repeat=times))


def work(function) -> float:
    """GFLOP of a call, which must not be compiled: that hides its matrix products."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() / 1e9


def build(args, method: str = "dfp", **knobs) -> config.Config:
    return config.build(dict(task=args.task, method=method, preset=args.preset, **knobs))


def update_of(c: config.Config, device, online: bool, size: int = 100_000):
    """A function that makes one whole update, of c.seeds seeds at once, on transitions that are made up."""
    task, runs = envs.find_task(c.task), []
    obs, next_obs, action = *torch.rand(2, size, task.obs_dim), torch.rand(size, task.action_dim)
    dataset = dict(observations=obs, actions=action, rewards=torch.rand(size), masks=torch.ones(size),
                   terminals=torch.zeros(size), next_observations=next_obs)
    for seed in range(c.seeds):
        algo = run.algorithm(dataclasses.replace(c, seed=seed), task.obs_dim, task.action_dim, device)
        buffer = ReplayBuffer(dataset, 10, c.chunk, c.discount, device)
        if online:
            algo.start_online()
            buffer.add(obs[0], action[0], 0.0, False, False, next_obs[0])
        runs.append(SimpleNamespace(algo=algo, buffer=buffer))
    update = fast_updates(runs) if c.seeds > 1 else fast_update(algo, buffer)

    def step():
        set_precision(c)                                         # modes take turns
        starts = [one.buffer.starts(c.batch_size) for one in runs]
        update(starts if c.seeds > 1 else starts[0])
    return step


def peak_of(device, largest: int) -> float:
    """GFLOP/s of the best square matrix product, in fp32 (on CUDA in TF32, as training has it)."""
    torch.set_float32_matmul_precision("high")
    best, size = 0.0, 1024
    while size <= largest:
        product = partial(torch.matmul, *torch.randn(2, size, size, device=device))
        best, size = max(best, 2e-9 * size**3 / seconds(product, device, 3)), 2 * size
    return best


def updates(args, peak):
    """Of one method in all modes, or of several in the first one; and of several seeds of DFP."""
    modes, first = args.modes if len(args.methods) == 1 else args.modes[:1], args.modes[0]
    for stage, online, column in (("offline", False, None), ("online", True, "online_step_ms")):
        times = {}
        for method in args.methods:
            steps = {mode: update_of(build(args, method, **MODES[mode]), args.device, online) for mode in modes}
            if method == "dfp" and args.seeds > 1:
                steps["seeds"] = update_of(build(args, method, seeds=args.seeds, **MODES[first]), args.device, online)
            rounds = [{mode: seconds(step, args.device, args.repeat) for mode, step in steps.items()}
                      for _ in range(args.rounds)]               # in turns, so that a busy moment hits every mode
            taken = {mode: statistics.median(turn[mode] for turn in rounds) for mode in steps}
            gflop = work(update_of(build(args, method, compile=False), args.device, online))
            times[method] = taken[first]
            for mode in modes:
                yield row(f"{stage} update", method, mode, taken[mode], gflop, peak)
            if "seeds" in taken:
                yield row(f"{stage} update, {args.seeds} seeds / one", method, first, taken["seeds"],
                          ratio=taken["seeds"] / taken[first])
        yield from ratios(f"{stage} update", times, first, column)


def acting(args):
    task, times = envs.find_task(args.task), {}
    obs = np.zeros((1, task.obs_dim), np.float32)
    for method in args.methods:
        c = build(args, method)
        set_precision(c)
        act = fast_act(run.algorithm(c, task.obs_dim, task.action_dim, args.device))
        times[method] = seconds(lambda: act(obs).cpu(), args.device, 50)
        yield row(f"act, best of {c.best_of}", method, "auto", times[method])
    yield from ratios("act", times, "auto", "action_ms")


def simulator_step(args):
    """Of one process; of robosuite's also without tools/simulators/fast_robosuite.py, in turns."""
    with contextlib.closing(envs.make(args.task)) as env:
        env.reset(seed=0)
        step = partial(env.step, np.zeros(env.action_space.shape, np.float32))
        fast = getattr(getattr(env, "sim", None), "step", None)              # of robosuite alone, and where it is fast
        own, taken, taken_by_own = getattr(fast, "slow", None), [], []
        for _ in range(args.rounds):
            taken.append(seconds(step, torch.device("cpu"), 50))
            if own:
                env.sim.step = own
                taken_by_own.append(seconds(step, torch.device("cpu"), 50))
                env.sim.step = fast
    taken = statistics.median(taken)
    yield row("simulator step", "-", "one process", taken)
    if own:
        taken_by_own = statistics.median(taken_by_own)
        yield row("simulator step, robosuite's own", "-", "one process", taken_by_own)
        yield row("simulator step / robosuite's own", "-", "one process", ratio=taken / taken_by_own)


def whole_run(args):
    """Steps a second of train_online.py's second stage, with everything but evaluations, in the first mode."""
    at = []

    def noted(stage, info=None, own=Stage.end_step):
        at.append(time.perf_counter())
        own(stage, info)
    with mock.patch.object(Stage, "end_step", noted), tempfile.TemporaryDirectory() as out:
        train_online.train(task=args.task, method=args.methods[0], preset=args.preset, device=args.device.type, out=out,
                           data="generated", data_dir=out, data_size=300 if args.task in config.ROBOMIMIC else 2_000,
                           offline_steps=1, warmup=0, online_steps=args.steps + COMPILING, eval_every=10**9,
                           eval_episodes=1, **MODES[args.modes[0]])
    yield row("step of a run", args.methods[0], args.modes[0], (at[-1] - at[COMPILING]) / args.steps)


def demonstrations(args):
    """Kept ones a minute, by one process: an attempt of each operator."""
    from tools.standins.operators import OPERATORS, demonstrate
    env, kept, begun = robosuite_setup.make(envs.find_task(args.task).source), 0, time.perf_counter()
    for seed in range(len(OPERATORS)):
        kept += demonstrate(env, args.task, envs.DATA_SEED + seed) is not None
    yield row("demonstrations a minute", "-", "one process", rate=60 * kept / (time.perf_counter() - begun))


def main() -> None:
    parser = command_line.OneLineParser(description=__doc__.split("\n")[0],
                                        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    option = parser.add_argument
    option("--task", default="cube-double-task2", help="whose sizes and constants")
    option("--preset", default="paper", choices=("paper", "quick", "laptop"), help="network and batch size")
    option("--methods", nargs="+", default=["dfp"], choices=config.METHODS, metavar="METHOD", help="methods to compare")
    option("--modes", nargs="+", default=list(MODES), choices=MODES, help="several methods are compared in the first")
    option("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where to train")
    option("--largest", type=int, default=8192, help="largest matrix product tried for the peak")
    option("--rounds", type=int, default=3, help="turns each mode gets")
    option("--repeat", type=int, default=5, help="updates in a turn")
    option("--steps", type=int, default=300, help="steps of the whole run that is timed")
    option("--seeds", type=int, default=5, help="so many seeds stacked into one update, beside one; 1: left out")
    option("--out", default="results", help="folder of benchmark.csv")
    args = parser.parse_args()
    args.device = choose_device(config.build(dict(device=args.device)))
    if threads := build(args).threads:
        torch.set_num_threads(threads)
    peak = peak_of(args.device, args.largest)
    rows = [row("matrix product, peak", "-", "fp32", rate=peak), *updates(args, peak), *acting(args)]
    with contextlib.suppress(ImportError):                       # a machine without simulators goes without these rows
        rows += [*simulator_step(args), *whole_run(args)]
        if args.task in config.ROBOMIMIC:
            rows += demonstrations(args)
    Path(args.out).mkdir(parents=True, exist_ok=True)
    results.write_csv(Path(args.out, "benchmark.csv"), rows, ("what", "method", "mode", *FORMATS))


if __name__ == "__main__":
    command_line.main(main)
