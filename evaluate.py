"""Success rate of a policy over seeded episodes, and a film.

    python evaluate.py policies/lift --film lift.gif                     a policy that comes with this project
    python evaluate.py runs/lift/dfp/generated/quick/seed0 --episodes 50 --best-of 1

The result is printed and, if the first episode is number 0, appended to evaluate.csv in a run's folder. play() is one
episode, mean() the result. This script and training play many side by side, each simulator in a process of its own:
tools/simulators/evaluator.py.
"""
import contextlib
from pathlib import Path

import numpy as np
import torch

import envs
import run
from config import UserError
from tools.simulators.evaluator import Evaluator
from tools.simulators.process import cores
from tools.training import command_line
from tools.training.files import EVALUATE_COLUMNS, append_row, read_rows

MOST_EPISODES = 2**32 - envs.EVAL_SEED         # numpy's seeds end there


def play(act, env, number: int, best_of: int | None = None) -> dict:
    """Evaluation episode `number` -> {"success", "return", "length"}, the return not discounted. act: see dfp.DFP.act.
    It begins from its own seed and draws its own noise: every policy meets the same episodes, and training's random
    numbers are never touched."""
    obs, _ = env.reset(seed=envs.EVAL_SEED + number)
    noise = torch.Generator().manual_seed(envs.EVAL_SEED + number)
    rewards = []
    while True:
        chunk = act(obs[None], [noise], best_of)[0]                            # [H, A]
        for action in chunk.cpu().numpy():                                     # executed open loop
            obs, reward, terminated, truncated, info = env.step(action)
            rewards.append(reward)
            if terminated or truncated:
                return {"success": bool(info["success"]), "return": sum(rewards), "length": len(rewards)}


def mean(played: list[dict]) -> dict:
    """Of what play() gave -> {"success", "return", "length"}, means over the episodes, and how many "episodes"."""
    return {name: float(np.mean([one[name] for one in played])) for name in played[0]} | {"episodes": len(played)}


# --------------------------------------------------------------------------------------------------- the script
def parse():
    parser = command_line.OneLineParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("run", type=Path, help="the folder of a run or a policy")
    parser.add_argument("--episodes", type=int, default=50, help="episodes; always the same seeds, never training's")
    parser.add_argument("--first", type=int, default=0, help="number of the first one; training evaluates from 0 on")
    parser.add_argument("--best-of", type=int, default=0, help="samples to choose from; 0 = N', 1 = the raw policy")
    parser.add_argument("--workers", type=int, default=0, help="simulator processes; 0 = one a core")
    parser.add_argument("--film", default="", help="write the first three of them to this file, .gif or .mp4")
    args = parser.parse_args()
    if args.episodes < 1 or min(args.best_of, args.workers, args.first) < 0:
        raise UserError("--episodes must be positive, --best-of, --workers and --first not negative")
    if args.first + args.episodes > MOST_EPISODES:
        raise UserError(f"--first and --episodes: there are {MOST_EPISODES:,} evaluation episodes, numbered from 0")
    if args.film and Path(args.film).suffix not in (".gif", ".mp4"):
        raise UserError(f"--film {args.film}: its name must end in .gif or .mp4")
    return args


def main() -> None:
    args = parse()
    if args.film:
        from tools.pictures import film
        film.choose_renderer()                             # before anything imports mujoco, which looks only once
    policy = run.load(args.run)
    table = args.run / "evaluate.csv"
    read_rows(table)                                       # raises now, and not at the end, for a table that is broken
    best_of = args.best_of or policy.config.best_of
    if args.film:
        film.film(policy, args.film, play, range(args.first, args.first + min(3, args.episodes)), best_of)
    workers = min(args.workers or cores(), args.episodes)
    with contextlib.closing(Evaluator(envs.find_task(policy.config.task), workers, play)) as evaluator:
        result = mean(evaluator(policy.act, args.episodes, best_of, first=args.first))
    print(f"{policy.config.task}, step {policy.step}: success {result['success']:.1%} over {args.episodes} episodes, "
          f"length {result['length']:.0f}, return {result['return']:.1f}, best of {best_of}")
    if not run.is_exported(args.run) and args.first == 0:  # tools/report compares runs, by the usual episodes
        row = result | dict(step=policy.step, stage=policy.stage, best_of=best_of)
        append_row(table, {name: row[name] for name in EVALUATE_COLUMNS})


if __name__ == "__main__":
    command_line.main(main, renders=True)
