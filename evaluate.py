"""Success rate of a policy over seeded episodes, and a film.

    python evaluate.py policies/lift --film lift.gif                     a policy that comes with this project
    python evaluate.py runs/lift/dfp/generated/quick/seed0 --episodes 50 --best-of 1

Episode i always begins from seed EVAL_SEED + i and draws its own noise, so every policy meets the same episodes, and
training's random numbers are never touched. Training evaluates with the same class, Evaluator.
"""
import contextlib
import functools
from pathlib import Path

import numpy as np
import torch

import envs
import run
from config import UserError
from tools.simulators.process import SimulatorLost, Simulators, cores
from tools.training import command_line
from tools.training.files import EVALUATE_COLUMNS, append_row, read_rows


MOST_EPISODES = 100_000_000          # numpy's seeds end at 2^32


class Episode:
    """One evaluation episode. Its number decides where it begins and which noise the policy gets."""

    def __init__(self, number: int):
        self.seed = envs.EVAL_SEED + number
        self.noise = torch.Generator().manual_seed(self.seed)
        self.obs, self.rewards, self.success = None, [], False


class Evaluator:
    """evaluator(act, episodes) -> {"success", "return", "length", "episodes"}: means over episodes, which are played in
    `workers` processes. The result does not depend on their number. They start at the first call and stay."""

    def __init__(self, task: envs.Task, workers: int, make=envs.make):
        # make gets the Task and not its name, because a new process does not know what this one has registered.
        self.make, self.workers, self.simulators = functools.partial(make, task), max(1, workers), None

    def __call__(self, act, episodes: int, best_of: int | None = None, stop=None, first: int = 0) -> dict | None:
        """act: see dfp.DFP.act. first: the number of the first episode. stop() is asked between chunks; once it is true
        the result is None. UserError when simulators keep dying, and for numbers that are not finite."""
        for _ in range(3):
            try:
                numbered = [Episode(number) for number in range(first, first + episodes)]
                return self.roll_out(act, numbered, best_of, stop)
            except SimulatorLost as error:       # the same episodes once more: results depend on their seeds alone
                self.close()
                print(f"\na simulator was lost while evaluating ({error}); starting this evaluation again")
                lost = error
        raise UserError(f"simulators failed in three tries at one evaluation, the last with: {lost}; fewer --workers?")

    def roll_out(self, act, episodes, best_of, stop) -> dict | None:
        """Of one episode this is: reset; until it ends: chunk = act(obs), and a step for each action of the chunk. But
        as many are played side by side as there are simulators, and the policy acts for all of them in one call."""
        if self.simulators is None:
            self.simulators = Simulators(self.make, self.workers)
        waiting, playing = [*episodes], {}                                     # playing: {simulator: its episode}

        while waiting or playing:
            # Simulators that are free begin the next episodes.
            free = [i for i in range(self.workers) if i not in playing][:len(waiting)]
            for i in free:
                playing[i] = waiting.pop(0)
                self.simulators.send(i, "reset", playing[i].seed)
            for i in free:
                playing[i].obs = self.simulators.receive(i)[0]
            if stop and stop():
                self.close()                      # they may be in mid-episode; the next call starts new ones
                return None

            # The policy acts. Each row has its own noise, whoever plays beside it.
            obs, noise = np.stack([e.obs for e in playing.values()]), [e.noise for e in playing.values()]
            chunk_of = dict(zip(playing, act(obs, noise, best_of).cpu().numpy()))
            for i, chunk in chunk_of.items():
                self.simulators.send(i, "play", chunk)

            # Each chunk is executed open loop. A simulator answers once an action, and not beyond its episode's end.
            for i, chunk in chunk_of.items():
                episode = playing[i]
                for _ in chunk:
                    episode.obs, reward, terminated, truncated, info = self.simulators.receive(i)
                    episode.rewards.append(reward)
                    if terminated or truncated:
                        episode.success = info["success"]
                        del playing[i]
                        break
        return {"success": float(np.mean([e.success for e in episodes])), "episodes": len(episodes),
                "length": float(np.mean([len(e.rewards) for e in episodes])),
                "return": float(np.mean([sum(e.rewards) for e in episodes]))}

    def close(self) -> None:
        if self.simulators is not None:
            self.simulators.close()
            self.simulators = None


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
    read_rows(table)                                       # a table that cannot be added to is refused now, not later
    if args.film:
        film.film(policy, args.film, range(args.first, args.first + min(3, args.episodes)), args.best_of or None)
    workers = min(args.workers or cores(), args.episodes)
    with contextlib.closing(Evaluator(envs.task(policy.config.task), workers)) as evaluator:
        result = evaluator(policy.act, args.episodes, args.best_of or None, first=args.first)
    best_of = args.best_of or policy.config.best_of
    print(f"{policy.config.task}, step {policy.step}: success {result['success']:.1%} over {args.episodes} episodes, "
          f"length {result['length']:.0f}, return {result['return']:.1f}, best of {best_of}")
    if not run.is_exported(args.run) and not args.first:
        row = result | dict(step=policy.step, stage=policy.stage, best_of=best_of)
        append_row(table, {name: row[name] for name in EVALUATE_COLUMNS})               # kept for tools/report


if __name__ == "__main__":
    command_line.main(main, renders=True)
