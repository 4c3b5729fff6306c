"""How often the six scripted operators succeed, and how far apart their ways are from one and the same start.

    python -m tools.compare_operators --task can --episodes 30               success per operator, and the lengths of the successes
    python -m tools.compare_operators --task square --picture FILE           all operators' paths from one start
"""
from pathlib import Path
from types import SimpleNamespace

import numpy as np

import envs
from tools import command_line
from tools.operators import BODY, OPERATORS, begin, demonstrate

NEAR = 0.10      # metres: nearer, slips and what undoes them are longer than the way itself and would drown it


def compare(env, task: str, scene: int, times: int, approach_only=False, most: int = 400) -> list[SimpleNamespace]:
    """Each operator `times` times from one and the same start, till success. group: the operator and whether habits were mirrored;
    reach [T, 3]: the hand's way to the object; approach: the part of it before the hand is NEAR; thing [T', 3]: the object's way."""
    tries = []
    for number, operator in enumerate(OPERATORS):
        for time in range(times):
            raw, hand = begin(env, task, operator, scene, np.random.default_rng([scene, number, time]))
            reach, approach, thing, success = [], [], [], False
            while not success and len(thing) < most:
                place, steps = raw["robot0_eef_pos"], len(thing)
                thing.append(raw[BODY[task] + "_pos"])
                near = np.linalg.norm(place - thing[-1]) < NEAR
                if near and approach_only:
                    break
                if not near and len(approach) == steps:                          # till the hand is near for the first time
                    approach.append(place)
                if hand.phase == "reach" and len(reach) == steps:                # the first reach, if it has to try again
                    reach.append(place)
                raw = env.step(hand.act(raw))[0]
                success = bool(env._check_success())
            tries.append(SimpleNamespace(operator=operator.name, group=(operator.name, hand.plan.mirrored), success=success,
                                         reach=np.array(reach), approach=np.array(approach), thing=np.array(thing)))
    return tries


def spread(paths, groups) -> float:
    """How many times farther apart paths are between groups than within one (medians of the mean distance)."""
    def resample(path, points=30):                # by the way travelled, so that speed makes no difference
        travelled = np.r_[0, np.linalg.norm(np.diff(path, axis=0), axis=1).cumsum()]
        return np.stack([np.interp(np.linspace(0, travelled[-1], points), travelled, column) for column in path.T], 1)
    paths = np.array([resample(path) for path in paths])
    distance = np.linalg.norm(paths[:, None] - paths[None], axis=-1).mean(-1)
    same = np.array([[a == b for a in groups] for b in groups])
    return float(np.median(distance[~same]) / np.median(distance[same & ~np.eye(len(paths), dtype=bool)]))


def draw(task: str, path: str, scene: int = 7, times: int = 5) -> None:
    """Paths of all operators from one start: the way to the object from above, the object's way to the goal from the side."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, (above, side) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    colors = dict(zip((operator.name for operator in OPERATORS), ("#d62728", "#ff7f0e", "#2ca02c", "#17becf", "#1f77b4", "#9467bd")))
    tries = compare(envs.make_robosuite(task), task, scene, times)
    for t in tries:
        above.plot(t.reach[:, 0], t.reach[:, 1], color=colors[t.operator], lw=1, alpha=0.8)
        side.plot(t.thing[:, 1], t.thing[:, 2], color=colors[t.operator], lw=1, alpha=0.8, label=t.operator)
    above.plot(*tries[0].thing[0, :2], "ks", ms=5)
    above.set(xlabel="x (m)", ylabel="y (m)", aspect="equal")
    above.set_title(f"{task}, from above: the hand to the object", fontsize=10)
    side.set(xlabel="y (m)", ylabel="z (m)")
    side.set_title("from the side: the object to the goal", fontsize=10)
    handles = dict(zip(*reversed(side.get_legend_handles_labels())))
    side.legend(handles.values(), handles.keys(), fontsize=7)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    apart = [spread(paths, [t.group for t in tries]) for paths in ([t.approach for t in tries], [t.thing for t in tries])]
    print(f"{path}; from start {scene}, the hand's ways to the object lie {apart[0]:.1f} times farther apart between groups than within one, "
          f"the object's own {apart[1]:.1f} times")


def main():
    parser = command_line.OneLineParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--task", choices=list(BODY), default="can")
    parser.add_argument("--episodes", type=int, default=30)
    parser.add_argument("--picture", metavar="FILE", help="draw all operators' paths from one start instead")
    parser.add_argument("--scene", type=int, default=7, help="... from which start")
    args = parser.parse_args()
    if args.picture:
        return draw(args.task, args.picture, args.scene)
    env, lengths = envs.make_robosuite(args.task), {operator.name: [] for operator in OPERATORS}
    for seed in range(args.episodes):
        episode = demonstrate(env, args.task, seed)
        lengths[OPERATORS[seed % len(OPERATORS)].name].append(len(episode["actions"]) if episode else 0)
    for name, values in {**lengths, "all": [n for per_operator in lengths.values() for n in per_operator]}.items():
        steps = np.array(values)                  # 0 marks a failure
        kept = steps[steps > 0] if steps.any() else np.nan
        print(f"{name:9}{np.mean(steps > 0):5.0%} of {len(steps):3}   {np.mean(kept):4.0f} ± {np.std(kept):.0f} steps")


if __name__ == "__main__":
    command_line.main(main)
