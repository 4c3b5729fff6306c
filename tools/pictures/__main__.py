"""Draws the pictures of the concept files and the baselines into figures/, in seconds; dfp's in a minute.

    python -m tools.pictures drift        those of drift.py; without a name, all
"""
import torch

from tools.pictures import bandit, concepts, rivals
from tools.training import command_line

DRAW = {"drift": concepts.drift, "policy": concepts.policy, "critic": concepts.critic, "topk": concepts.topk,
        "dfp": bandit.draw, "flow": rivals.flow, "meanflow": rivals.meanflow}


def main() -> None:
    parser = command_line.OneLineParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("name", nargs="?", choices=[*DRAW], help="the file whose pictures to draw; none: all")
    name = parser.parse_args().name
    torch.set_num_threads(1)                               # more gain nothing at such sizes
    for draw in [DRAW[name]] if name else DRAW.values():
        draw()


if __name__ == "__main__":
    command_line.main(main)
