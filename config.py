"""Every knob: name, default, meaning. Then what differs by task (Tables 5 and 8), and what a preset changes.

The defaults are the paper's for lift, can and square. Each knob is an option of the scripts: `topk_weight` is
--topk-weight. Where several places have a value for it, the strongest counts:

    option on the command line  >  method  >  preset  >  task  >  default

`python train_online.py --task square --preset laptop --print-config` prints what comes of it, and trains nothing.
Which methods read a knob, and which knobs may differ when a run is resumed, tools/checks.py tells.
"""
import dataclasses
from dataclasses import dataclass, field
from typing import NamedTuple

from tools.checks import UserError, as_plain, check, check_given, known_only

PRESETS = ("paper", "quick", "laptop", "released", "offline-rl")


class Method(NamedTuple):
    family: str       # runs of one family share a stage 1, where they agree in the knobs that stage 1 reads
    path: str         # module and class
    values: dict      # knobs of its own: App. A.2's, and Table 2's


METHODS = {
    "bfn": Method("bfn", "baselines.flow.BFN", dict(chunk=1, best_of=4)),
    "qc-bfn": Method("bfn", "baselines.flow.BFN", dict(best_of=32)),
    "fql": Method("fql", "baselines.flow.FQL", dict(chunk=1, best_of=1)),
    "qc-fql": Method("fql", "baselines.flow.FQL", dict(best_of=1)),
    "mvp": Method("mvp", "baselines.meanflow.MVP", dict(best_of=16)),
    "mvp-topk": Method("mvp", "baselines.meanflow.MVPTopK", dict(best_of=16)),
    "dfp": Method("dfp", "dfp.DFP", {}),
    "dfp-no-topk": Method("dfp", "dfp.DFP", dict(topk_weight=0.0)),        # Table 2's ablation
}
SOURCES = ("auto", "official", "generated")          # of data, besides a file of one's own


def knob(default, help, choices=None):
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass
class Config:
    # ---- what to run
    task: str = knob("square", "task name; --task list prints them all")
    method: str = knob("dfp", "algorithm", METHODS)
    preset: str = knob("paper", "set of values: the paper's, two smaller ones, the released code's, or Table 8's",
                       PRESETS)
    seed: int = knob(0, "seed of the run: initial weights, batches, noise, environments")
    seeds: int = knob(1, "number of independent runs, from --seed upwards, batched on one device")

    # ---- how long (paper: 1M + 1M, Table 5)
    offline_steps: int = knob(1_000_000, "gradient steps of stage 1")
    online_steps: int = knob(1_000_000, "environment steps of stage 2")
    warmup: int = knob(5_000, "first online steps that collect data without an update (released code)")

    # ---- networks and optimiser (Table 5)
    layers: int = knob(4, "hidden layers of actor and critic (Table 5)")
    hidden: int = knob(512, "width of each hidden layer (Table 5)")
    ensemble: int = knob(2, "critics in the ensemble (Table 5)")
    q_aggregate: str = knob("mean", "one value from the ensemble (Table 5: mean)", ("mean", "min"))
    batch_size: int = knob(256, "states per update (Table 5)")
    lr: float = knob(3e-4, "Adam's learning rate (Table 5)")
    discount: float = knob(0.99, "gamma per environment step (Table 5)")
    target_rate: float = knob(5e-3, "tau: how fast the target critic follows (Table 5)")

    # ---- the policy (Table 5)
    chunk: int = knob(5, "H: actions generated and executed at once (Table 5)")
    num_generated: int = knob(8, "N_gen: samples per state that the drift moves (Table 5)")
    temperatures: tuple = knob((0.005, 0.05), "h: kernel widths of the drift loss, as shares of the mean "
                              "distance (Table 5, by task)")
    best_of: int = knob(4, "N': samples to choose from when acting and bootstrapping (Table 5, by task)")
    bc_weight: float = knob(1.0, "weight of L_BC (Eq. 18)")
    mask_bc: bool = knob(True, "L_BC leaves out chunk steps past an episode's end")
    topk_offline: bool = knob(False, "L_topK in stage 1 too (Table 8)")

    # ---- policy improvement (Table 5)
    num_candidates: int = knob(16, "N: candidates drawn from pi_old (Table 5, by task)")
    top_k: int = knob(2, "K: candidates kept as positives (Table 5, by task)")
    topk_weight: float = knob(0.5, "lambda: weight of L_topK (Table 5, by task)")
    ema_rate: float = knob(1e-4, "tau_EMA: how fast pi_old follows pi_theta (Table 5)")
    acting_ema_rate: float = knob(1.0, "rate of an average of pi_theta that acts in its place; 1: no average, as in "
                                  "the paper")

    # ---- the baselines (baselines/; App. A.2)
    flow_steps: int = knob(10, "Euler steps from noise to action (App. A.2)")
    distill_weight: float = knob(10_000.0, "alpha: weight of the distillation beside -Q (App. A.2, by task)")
    ivc_weight: float = knob(1.0, "weight of the instantaneous velocity constraint (App. A.2, by task)")
    time_mean: float = knob(-0.4, "mean of the logit-normal times (released code)")
    time_std: float = knob(1.0, "standard deviation of the logit-normal times (released code)")

    # ---- data
    data: str = knob("auto", "auto, official (the benchmark's), generated (simulated), or a file of your own")
    data_dir: str = knob("", "where data are kept (default: data/; official files are also found where robomimic and "
                         "ogbench keep them)")
    data_size: int = knob(0, "demonstrations to generate (lift, can, square; 0 = 300), or transitions to generate "
                          "(0 = 1M) or to use of a set of many files, in whole files (0 = all)")
    data_device: str = knob("auto", "where the buffer lies; auto = where training happens, or on disk where the data "
                            "are many files", ("auto", "cpu", "cuda"))
    mix_size: int = knob(1_000_000, "M, for data of many files: with n online transitions a share n / (M + n) of a "
                         "batch is online")
    goal_share: float = knob(0.0, "generated data of cubes: share of transitions from episodes aimed at the goal")

    # ---- evaluation and running
    eval_every: int = knob(100_000, "steps between evaluations")
    eval_episodes: int = knob(50, "episodes of an evaluation; where it is set by hand, also of a stage's last one")
    final_episodes: int = knob(100, "episodes of the evaluation that ends a stage")
    log_every: int = knob(500, "steps between rows of train.csv")
    device: str = knob("auto", "where to train", ("auto", "cpu", "cuda"))
    precision: str = knob("auto", "auto: bf16 for passes that propose and rank actions, where that is faster, and TF32 "
                          "on CUDA; fp32: neither", ("auto", "fp32"))
    compile: bool = knob(True, "torch.compile the losses")
    workers: int = knob(0, "simulator processes for evaluation and data; 0 = one a core")
    threads: int = knob(0, "CPU threads for torch; 0 = torch's choice")
    out: str = knob("runs", "folder that run folders are made in")
    resume: bool = knob(False, "continue an unfinished run in its folder")
    log: str = knob("csv", "tracker besides the CSV files", ("csv", "tensorboard", "wandb"))

    def plain(self) -> dict:
        """The knobs as a file gives them back: tuples as lists."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}


# ------------------------------------------------------------------------------------------------- Tables 5 and 8
ROBOMIMIC = ("lift", "can", "square")
CUBES = tuple(f"cube-{n}-task{k}" for n in ("double", "triple", "quadruple") for k in (2, 3, 4))
OFFLINE_RL = ("cube-single-task2", "cube-double-task2", "scene-task2", "puzzle-3x3-task4", "puzzle-4x4-task4")
TASKS = [*ROBOMIMIC, *CUBES, *(t for t in OFFLINE_RL if t not in CUBES)]       # envs.register adds yours


# Where a task departs from the defaults above. Table 5 and App. A.2 tell of Robomimic and of two to four cubes, not of
# one cube, scene and puzzles. For these lambda, h, N and K are Table 8's, alpha is from FQL's README, N' and MVP's
# weight are as with two cubes.
TASK_VALUES = {
    "lift": {}, "can": {}, "square": {},
    "cube-single":    dict(temperatures=(0.05,), top_k=8, best_of=16, distill_weight=300.0, topk_weight=0.45),
    "cube-double":    dict(temperatures=(0.05,), top_k=4, best_of=16, distill_weight=300.0),
    "cube-triple":    dict(temperatures=(0.05,), top_k=4, best_of=16, distill_weight=100.0, ivc_weight=0.0),
    "cube-quadruple": dict(temperatures=(0.05,), top_k=4, best_of=16, distill_weight=100.0),
    "scene":          dict(temperatures=(0.01, 0.05), top_k=8, best_of=16, distill_weight=300.0),
    "puzzle-3x3":     dict(temperatures=(0.01, 0.05), top_k=8, best_of=16, distill_weight=1000.0),
    "puzzle-4x4":     dict(temperatures=(0.01, 0.05), top_k=16, best_of=16, distill_weight=1000.0, num_candidates=32),
}


def task_values(task: str) -> dict:
    """Of cube-double-task3: those of cube-double. A task of your own has these too, unless you give other ones."""
    return TASK_VALUES.get(task.rpartition("-task")[0] or task, TASK_VALUES["cube-double"])


# ------------------------------------------------------------------------------------------------- presets
# One CPU thread for torch: the other core is for the simulator and for half of each update (tools/speed/halves.py).
QUICK = dict(threads=1, batch_size=128, warmup=500, log_every=100, eval_episodes=20, final_episodes=50,
             data="generated")
# The weights wander at a constant learning rate, and their average acts better (docs/results.md). In quick theta acts,
# as in the paper.
LAPTOP = QUICK | dict(acting_ema_rate=1e-3)


class Size(NamedTuple):
    hidden: int
    lr: float
    offline_steps: int
    online_steps: int
    eval_every: int
    data_size: int
    goal_share: float
    q_aggregate: str = "mean"


# quick ends within an hour. can and square need three times lift's updates, so an update must be cheaper: half the
# width. A narrow network learns faster with a larger learning rate (results/batch).
# laptop has more updates, as imitation needs them. On square the paper's mean of the two critics makes Q too high, and
# two seeds end lower than with their minimum (docs/results.md). can, the like task, has the minimum too.
# Random play hardly ever reaches the goal, and these sets are small. So half of a cubes' set is aimed at the goal.
SIZES = {
    #                        hidden,  lr,   offline, online,  evaluate, data size, goal share, q_aggregate
    ("quick", "lift"):        Size(128, 3e-4,   8_000, 16_000,  4_000,     300, 0.0),
    ("quick", "can"):         Size( 64, 1e-3,  24_000, 48_000, 12_000,     300, 0.0),
    ("quick", "square"):      Size( 64, 1e-3,  24_000, 48_000, 24_000,     300, 0.0),
    ("quick", "one cube"):    Size(128, 3e-4,   8_000, 16_000,  4_000,  40_000, 0.5),
    ("quick", "cubes"):       Size(128, 1e-3,  24_000, 60_000, 12_000, 100_000, 0.5),
    ("quick", "others"):      Size(128, 3e-4,   8_000, 16_000,  4_000, 100_000, 0.0),
    ("laptop", "lift"):       Size(128, 5e-4,  20_000, 20_000, 10_000,     300, 0.0),
    ("laptop", "can"):        Size(128, 5e-4, 120_000, 60_000, 30_000,     300, 0.0, "min"),
    ("laptop", "square"):     Size(128, 5e-4, 120_000, 60_000, 30_000,     300, 0.0, "min"),
    ("laptop", "one cube"):   Size(128, 5e-4,  20_000, 20_000, 10_000, 100_000, 0.5),
    ("laptop", "cubes"):      Size(128, 5e-4, 120_000, 60_000, 30_000, 200_000, 0.5),
    ("laptop", "others"):     Size(128, 5e-4, 120_000, 60_000, 30_000, 200_000, 0.0),
}
# A task of your own is one of the others, whatever its name.
SIZE_OF = {"lift": "lift", "can": "can", "square": "square", "cube-single-task2": "one cube"} | \
    dict.fromkeys(CUBES, "cubes")


def preset_values(preset: str, task: str, method: str) -> dict:
    """What the preset changes. UserError where it has nothing for the task or the method."""
    if preset in ("quick", "laptop"):
        size = SIZES[preset, SIZE_OF.get(task, "others")]
        return (QUICK if preset == "quick" else LAPTOP) | size._asdict()
    is_dfp = METHODS[method].family == "dfp"
    if preset == "released":     # the shipped YAML: one setting for every task, positives not masked
        if not is_dfp:
            raise UserError(f"--preset released is DFP's own; with --method {method} take another one")
        return dict(temperatures=(0.1,), best_of=16, top_k=4, num_candidates=16, topk_weight=0.5, mask_bc=False)
    if preset == "offline-rl":   # Table 8: no chunks, no best of N', L_BC + lambda L_topK from the first step
        if task not in OFFLINE_RL:
            raise UserError(f"--preset offline-rl has values for {', '.join(OFFLINE_RL)} only (Table 8), not for "
                            f"{task}")
        table_8 = dict(chunk=1, best_of=1, topk_offline=True)
        if task == "cube-double-task2":              # the only one whose lambda and K are not those of TASK_VALUES
            table_8 |= dict(topk_weight=0.55, top_k=8)
        # Table 8 is DFP's. Its rivals in pure offline RL are as they are.
        return (table_8 if is_dfp else {}) | dict(online_steps=0, warmup=0)
    return {}


# ------------------------------------------------------------------------------------------------- one Config
def build(given: dict) -> Config:
    """A checked Config from the knobs given by name. UserError for what cannot work."""
    given = {name: as_plain(name, value) for name, value in given.items()}
    task, method, preset = (given.get(k, getattr(Config, k)) for k in ("task", "method", "preset"))
    check_given(given, Config, method, names=dict(task=TASKS, method=METHODS, preset=PRESETS), sources=SOURCES)
    # From weak to strong: the precedence at the top of this file.
    values = task_values(task) | preset_values(preset, task, method) | METHODS[method].values | given
    if "eval_episodes" in given and "final_episodes" not in given:           # it holds at the end of a stage too
        values["final_episodes"] = given["eval_episodes"]
    config = Config(**values)
    check(config)
    return config


def from_plain(knobs: dict) -> Config:
    """What Config.plain() gave, from a file. A knob that the file lacks has its default."""
    known_only(knobs, Config)
    config = Config(**{k: tuple(v) if isinstance(v, list) else v for k, v in knobs.items()})
    check(config)
    return config
