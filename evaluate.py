"""Success rate of a saved policy over seeded episodes, and a film. The episodes are played, chunk by chunk and open
loop, by tools/simulators/evaluator.py; episode i begins from seed EVAL_SEED + i, so every policy meets the same ones.

    python evaluate.py policies/lift --film lift.gif                     a policy that comes with this project
    python evaluate.py runs/lift/dfp/generated/quick/seed0 --episodes 50 --best-of 1
"""
import os
from pathlib import Path

import envs
import run
from config import UserError
from tools.simulators.evaluator import Evaluator
from tools.training import command_line
from tools.training.files import EVALUATE_COLUMNS, append_row, read_rows


def parse():
    parser = command_line.OneLineParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("run", type=Path, help="a run's folder")
    parser.add_argument("--episodes", type=int, default=50, help="episodes; always the same seeds, never training's")
    parser.add_argument("--best-of", type=int, default=0,
                        help="samples to choose from; 0 = the method's N', 1 = the raw policy")
    parser.add_argument("--workers", type=int, default=0, help="simulator processes; 0 = one a core")
    parser.add_argument("--film", default="", help="write the first three episodes to this file, .gif or .mp4")
    args = parser.parse_args()
    if args.episodes < 1 or args.best_of < 0 or args.workers < 0:
        raise UserError("--episodes must be positive, --best-of and --workers not negative")
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
    read_rows(table)                                       # UserError now, and not after an hour, for what is no table
    if args.film:
        film.film(policy, args.film, min(3, args.episodes), args.best_of or None)
    evaluator = Evaluator(envs.task(policy.config.task), args.workers or os.cpu_count())
    try:
        result = evaluator(policy.act, args.episodes, args.best_of or None)
    finally:
        evaluator.close()
    best_of = args.best_of or policy.config.best_of
    print(f"{policy.config.task}, step {policy.step}: success {result['success']:.1%} over {args.episodes} episodes, "
          f"length {result['length']:.0f}, return {result['return']:.1f}, best of {best_of}")
    if not run.is_exported(args.run):
        row = result | dict(step=policy.step, stage=policy.stage, best_of=best_of)
        append_row(table, {name: row[name] for name in EVALUATE_COLUMNS})               # kept for tools/report


if __name__ == "__main__":
    command_line.main(main)
