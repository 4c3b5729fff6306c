"""Generates stand-in data, or finds them: says where they lie.     python -m tools.demos --task lift --size 300"""
from pathlib import Path

import envs
from config import UserError
from tools.standins.generate import generate
from tools.training import command_line


def main() -> None:
    parser = command_line.OneLineParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--task", required=True)
    parser.add_argument("--size", type=int, required=True, help="demonstrations (Robomimic) or transitions (OGBench)")
    parser.add_argument("--goal-share", type=float, default=0.0,
                        help="cubes: share of transitions from episodes aimed at the task's goal")
    parser.add_argument("--folder", type=Path, default="data/generated")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0 = one a core")
    args = parser.parse_args()
    if args.size < 1 or args.workers < 0 or not 0 <= args.goal_share <= 1:
        raise UserError("--size must be positive, --workers not negative, and --goal-share must lie in [0, 1]")
    for path in generate(envs.find_task(args.task), args.size, args.folder, args.goal_share, args.workers):
        print(path)


if __name__ == "__main__":
    command_line.main(main)
