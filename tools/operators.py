"""Six scripted operators for lift, can and square: a stand-in for robomimic's multi-human demonstrations.

What the multi-human data are known for is kept. The operators are uneven in skill, two worse, two okay, two better:
speed, tremor, slips, sloppy aim, detours, pauses, grasps that close on air. And each has habits of their own, followed most of
the time and mirrored otherwise: side of approach, wrist angle, bend and height of the path. So one observation has
several right actions.

An episode runs through phases,

    reach -> grasp -> carry -> release -> retreat      lift and square succeed in carry, before letting go

and each phase is a servo on what a policy can see: hand, fingers, object. Descending, lifting and placing are no
phases: the height aimed for is a function of the horizontal error, a funnel, so straying from the line raises the hand
again.
A memoryless policy can therefore imitate nearly all of it. What it cannot see: a pause, a detour's first half, the
tremor's momentum, and whether a grasp is about to be fumbled.

    python -m tools.operators --task can --episodes 30               success per operator, and the lengths of the successes
    python -m tools.operators --task square --picture FILE           all operators' paths from one start
"""
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from scipy.spatial.transform import Rotation

import envs
from tools import command_line

BODY = {"lift": "cube", "can": "Can", "square": "SquareNut"}      # the object's name in robosuite's observations
# Scales all speeds, so that successes are about as long as the multi-human ones: 104, 209 and 269 steps.
PACE = {"lift": 0.78, "can": 1.32, "square": 0.88}
SLOWEST = 0.12            # command on the way to object or goal, of at most 1
FINGERS_OPEN, FINGERS_SHUT = 0.06, 0.02   # metres between the fingers: at most 0.08; cube, can, handle .04, .05, .03


@dataclass(frozen=True)
class Operator:
    name: str
    # skill
    speed: float      # cap on the command's length; a full command, 1, moves the hand by 12 mm a step
    gain: float       # command per 5 cm of error
    noise: float      # standard deviation of the tremor, far from contact
    jitter: float     # metres by which waypoints in free space vary
    detour: float     # probability of first heading for a wrong place; on the way to the object, and to the goal
    pause: float      # probability per step, away from contact, of nearly stopping for 3 to 8 steps
    fumble: float     # probability that the first grasp closes above the object
    slip: float       # probability per step, near the object or the goal, of sliding aside for 2 to 4 steps
    # habits
    mirror: float     # probability that an episode has lean, wrist and bend with the opposite sign
    lean: tuple       # metres (x, y) beside the object where the descent begins
    wrist: float      # preferred yaw of the hand; 0 is straight ahead
    bend: float       # metres aimed to the left of the target on the way to it
    carry: float      # metres by which the object is carried higher than needed
    slack: float      # metres below carrying height where sideways motion may begin: a large one cuts the corner


OPERATORS = (
    #        name        speed gain noise jitter detour pause fumble slip mirror     lean       wrist bend  carry slack
    Operator("worse-a",  .46, .50, .12, .025,   .40,  .020,  .10, .035,  .35, (+.00, +.05),  +.5, +.06, .06, .04),
    Operator("worse-b",  .50, .60, .14, .030,   .50,  .015,  .08, .035,  .20, (-.05, -.01),  -.4, -.08, .03, .07),
    Operator("okay-a",   .52, .60, .07, .015,   .25,  .010,  .05, .025,  .30, (+.01, -.05),  +.0, +.05, .08, .05),
    Operator("okay-b",   .56, .70, .06, .015,   .20,  .008,  .04, .025,  .15, (+.04, +.03),  +.7, -.04, .02, .10),
    Operator("better-a", .60, .80, .03, .008,   .06,  .003,  .01, .015,  .25, (+.00, +.02),  -.1, +.02, .02, .08),
    Operator("better-b", .68, .80, .02, .006,   .04,  .002,  .01, .015,  .10, (-.03, -.02),  -.6, -.03, .05, .06),
)


def wrap(angle, period=2 * np.pi):
    """The same angle modulo the period, in [-period/2, period/2)."""
    return (angle + period / 2) % period - period / 2


def yaw_of(quat):
    """Yaw of a quaternion (x, y, z, w); the body may stand upright or, like the hand, upside down."""
    x_axis = Rotation.from_quat(quat).as_matrix()[:, 0]
    return np.arctan2(x_axis[1], x_axis[0])


def cap(vector, length):
    return vector * min(1, length / max(np.linalg.norm(vector), 1e-9))


def make_plan(env, task, operator, obs, rng):
    """What is decided once an episode: the operator's habits, a little different each time, fitted to the task."""
    sign = -1 if rng.random() < operator.mirror else 1
    wrist = sign * operator.wrist + rng.normal(0, 0.15)
    plan = SimpleNamespace(
        mirrored=sign < 0,
        lean=sign * np.array(operator.lean) + rng.normal(0, operator.jitter, 2),
        bend=sign * operator.bend * rng.uniform(0.6, 1.4),
        hover=rng.uniform(0.08, 0.12),            # metres above `straight` at which the descent begins
        fumble=rng.random() < operator.fumble,
        detour={phase: rng.random() < operator.detour for phase in ("reach", "carry")},
        turn_to=None)                             # yaw of the object at the goal, where it matters
    thing, thing_yaw = obs[BODY[task] + "_pos"], yaw_of(obs[BODY[task] + "_quat"])
    # grasp_offset   from the object's centre to the hand, in the object's frame
    # straight       metres above the grasp where the hand must be right over it: the fingers reach the object's top;
    #                a fumbled grasp closes a little higher, on air
    # goal           where the object's centre ends; carry_z is its height on the way
    if task == "lift":
        plan.grasp_offset, plan.straight = np.zeros(3), 0.03
        plan.hand_yaw = wrist + wrap(thing_yaw - wrist, np.pi / 2)       # any quarter turn holds a cube
        plan.goal = thing + [0, 0, 0.15]
        plan.carry_z = plan.goal[2]
    elif task == "can":
        plan.grasp_offset, plan.straight = np.array([0, 0, rng.uniform(0, 0.025)]), 0.06
        plan.hand_yaw = wrist                                            # a can is round
        # Short of the compartment's centre (.20, .40): the arm stalls beyond 0.82 m. Dropped from 4 cm, because success
        # asks for a hand 4 cm away.
        plan.goal = np.array([0.15, 0.34, 0.90]) + rng.uniform(-0.015, 0.015, 3)
        plan.carry_z = 1.0 + operator.carry + rng.normal(0, operator.jitter / 2)
    elif task == "square":
        plan.grasp_offset, plan.straight = np.array([rng.uniform(0.063, 0.070), 0, 0]), 0.02      # the handle, 0.044 to 0.079
        plan.lean[0] = abs(plan.lean[0])       # not from the base: the arm can hardly fold further
        plan.goal = np.array(env.sim.data.body_xpos[env.peg1_body_id])
        plan.carry_z = plan.goal[2] + 0.13 + operator.carry              # the peg's top is at +0.10
        # Two hand yaws hold the handle, and the nut fits the peg at four; three, because a handle that ends pointing
        # along +x is out of reach. Of what the wrist's joint allows, take the least turning, with regard for the habit.
        options = [(hand, turn) for hand in wrap(thing_yaw + np.array([0, np.pi]))
                   for turn in wrap(np.array([1, 2, 3]) * np.pi / 2 - thing_yaw)
                   if -1.7 < hand < 2.2 and -1.7 < hand + turn < 2.2]
        costs = [abs(turn) + 0.5 * abs(hand - wrist) + rng.normal(0, 0.4) for hand, turn in options]
        plan.hand_yaw, turn = options[int(np.argmin(costs))]
        plan.turn_to = thing_yaw + turn
    return plan


class Hand:
    """One operator in one episode: from observations to actions."""

    def __init__(self, task, operator, plan, rng):
        self.task, self.operator, self.plan, self.rng = task, operator, plan, rng
        self.tremor, self.pause_left, self.slip_left, self.width = np.zeros(6), 0, 0, 0.0
        self.enter("reach")

    def enter(self, phase):
        self.phase, self.steps, self.detour = phase, 0, None
        if self.plan.detour.get(phase):           # once an episode, also where the phase is entered again
            self.plan.detour[phase] = False
            angle = self.rng.uniform(0, 2 * np.pi)
            self.detour = self.rng.uniform(0.05, 0.10) * np.array([np.cos(angle), np.sin(angle)])

    def act(self, obs):
        plan, slack = self.plan, self.operator.slack
        hand, hand_yaw = obs["robot0_eef_pos"], yaw_of(obs["robot0_eef_quat"])
        thing, thing_yaw = obs[BODY[self.task] + "_pos"], yaw_of(obs[BODY[self.task] + "_quat"])
        previous_width, self.width = self.width, obs["robot0_gripper_qpos"] @ [1, -1]
        grasp = thing + Rotation.from_euler("z", thing_yaw).apply(plan.grasp_offset)
        target_yaw = plan.hand_yaw
        self.steps += 1

        # Missed or lost: the fingers have met nothing, or the object stayed behind. Both can be seen. The hand opens again
        # at once: fingers this close always mean "open", so a policy that has closed on air learns the way out.
        if (self.phase in ("grasp", "carry") and self.width < FINGERS_SHUT
                or self.phase == "carry" and np.linalg.norm(hand - grasp) > 0.035):
            plan.fumble = False
            self.enter("reach")
        if plan.fumble:
            grasp[2] += plan.straight + 0.025

        if self.phase == "reach":
            # From hovering height down, the path is a parabola: it comes from the side of the lean and ends vertical.
            height = np.clip((hand[2] - grasp[2] - plan.straight) / plan.hover, 0, 1)
            aim = grasp[:2] + plan.lean * height**2
            turn = wrap(target_yaw - hand_yaw)
            # The funnel. A wrong yaw counts as error too, and fingers that are not open keep the hand up.
            error = np.linalg.norm(aim - hand[:2]) + 0.05 * abs(turn) + (self.width < FINGERS_OPEN)
            target = np.append(aim, grasp[2] + (plan.straight + plan.hover) * np.clip((error - 0.010) / 0.045, 0, 1))
            contact = np.hypot(np.linalg.norm(grasp[:2] - hand[:2]), height * plan.hover)
            if np.linalg.norm(grasp - hand) < 0.014 and abs(turn) < 0.2 and self.width > FINGERS_OPEN:
                self.enter("grasp")
        if self.phase == "grasp":
            target, contact = grasp, 0.0
            # Until the fingers stand still, which the width shows to a policy: open, or as wide as the object.
            if self.steps > 3 and abs(self.width - previous_width) < 5e-4:
                self.enter("carry")
        if self.phase == "carry":
            # What is steered is the object: how it sits between the fingers makes no difference then.
            error = np.linalg.norm(plan.goal[:2] - thing[:2])
            turn = wrap(plan.turn_to - thing_yaw) if self.task == "square" else 0.0
            # First up, then across.
            gate = 1.0 if error < 0.05 else np.clip(1 - (plan.carry_z - thing[2]) / slack, 0, 1)
            # The nut has 7 mm of play around the peg on each side; a can may fall anywhere near.
            tolerance = 0.005 if self.task == "square" else 0.02
            height = np.clip((error + 0.05 * max(abs(turn) - 0.04, 0) - tolerance) / 0.03, 0, 1)
            target = hand + gate * (plan.goal - thing)
            target[2] = hand[2] - thing[2] + plan.goal[2] + height * (plan.carry_z - plan.goal[2])
            target_yaw = hand_yaw + gate * turn if self.task == "square" else target_yaw
            contact = error
            if error < tolerance + 0.005 and abs(thing[2] - plan.goal[2]) < 0.015:
                self.enter("release")
        if self.phase == "release":
            target, contact = hand, 0.0
            if self.width > FINGERS_OPEN + 0.01:
                self.enter("retreat")
        if self.phase == "retreat":
            target, contact = hand + [0, 0, 0.1], 0.0
            if self.steps > 25:                   # it should have been a success by now: try again
                self.enter("reach")
        return self.command(obs, target, target_yaw, contact)

    def command(self, obs, target, target_yaw, contact):
        """The clipped action to a target, with this operator's imperfections. contact: metres to where care is due."""
        operator, rng = self.operator, self.rng
        speed = operator.speed * PACE[self.task]
        offset = target - obs["robot0_eef_pos"]
        distance = np.linalg.norm(offset[:2])
        free = self.phase in ("reach", "carry")
        if self.detour is not None:               # one wrong waypoint, given up on when near it, or soon enough
            offset[:2] += self.detour
            if np.linalg.norm(offset[:2]) < 0.03 or distance < 0.04 or self.steps > 40:
                self.detour = None
        if free and distance > 0.04:              # bulging fades with the distance, so the path arrives from one side
            across = cap(1e3 * np.array([-offset[1], offset[0]]), 1)
            offset[:2] += self.plan.bend * min(distance / 0.15, 1) * across
        # Careful near contact, but never slower than SLOWEST: a servo that fades out where it arrives teaches a policy, whose
        # aim is a little off, to stop just short.
        length = np.linalg.norm(offset) / 0.05 * operator.gain
        length = min(max(length, SLOWEST) if free else length, speed * np.clip(contact / 0.06, 0.5, 1))
        move = cap(1e3 * offset, length)
        # The hand hangs upside down, at the target yaw. Rotation commands are in the world's frame, 0.5 rad each.
        upright = Rotation.from_euler("z", target_yaw) * Rotation.from_euler("x", np.pi)
        turn = (upright * Rotation.from_quat(obs["robot0_eef_quat"]).inv()).as_rotvec()
        # Slow, so that the wrist still turns when the hand is near: who has turned at the start shows nobody how to correct it.
        turn = cap(turn / 0.5 * operator.gain, 0.2 * speed)

        # A slip leaves the line where it matters most, and what the operator does next is what a policy has to know: a
        # policy is never as exact as its teacher, and stands helpless where no teacher ever was. Short and rough, so that
        # the rows that recover are many and those that slip are few.
        if free and contact < 0.06 and not self.slip_left and rng.random() < operator.slip:
            self.slip_left, side = int(rng.integers(2, 5)), rng.normal(size=3) * [1, 1, 0.5]
            self.slip = rng.uniform(0.6, 1.0) * side / np.linalg.norm(side), np.array([0, 0, rng.uniform(-0.6, 0.6)])
        if self.slip_left:
            self.slip_left -= 1
            move, turn = self.slip

        if free and self.pause_left == 0 and contact > 0.06 and rng.random() < operator.pause:
            self.pause_left = int(rng.integers(3, 9))
        stillness = 0.1 if self.pause_left else 1.0
        self.pause_left = max(self.pause_left - 1, 0)
        # AR(1) with the operator's standard deviation; an eighth of it is left in contact.
        shock = rng.normal(0, operator.noise, 6) * [1, 1, 1, 0.3, 0.3, 0.3]
        self.tremor = 0.8 * self.tremor + 0.6 * shock
        motion = stillness * np.append(move, turn) + np.clip(contact / 0.08, 0.12, 1) * self.tremor
        gripper = 1.0 if self.phase in ("grasp", "carry") else -1.0
        return np.clip(np.append(motion, gripper), -1, 1)


def begin(env, task, operator, scene: int, rng):
    """The first observation of an episode, and the hand that will play it. scene: the seed of where things lie."""
    np.random.seed(scene)                         # robosuite places objects with numpy's global generator
    env.reset()
    raw = env._get_observations(force_update=True)   # or else can and square begin with zeros
    return raw, Hand(task, operator, make_plan(env, task, operator, raw, rng), rng)


def demonstrate(env, task: str, seed: int) -> dict | None:
    """One episode by operator seed % 6, as robomimic stores it -> None if it failed. Same seed, same episode."""
    operator = OPERATORS[seed % len(OPERATORS)]
    raw, hand = begin(env, task, operator, seed, np.random.default_rng(seed))
    visited, states, actions, success = [envs.robosuite_obs(raw)], [], [], False
    while not success and len(actions) < envs.task(task).horizon:
        actions.append(hand.act(raw))
        states.append(env.sim.get_state().flatten())
        raw = env.step(actions[-1])[0]
        visited.append(envs.robosuite_obs(raw))
        success = bool(env._check_success())
    if not success:
        return None
    last = np.arange(len(actions)) == len(actions) - 1             # success ends an episode: no other step has it
    return dict(
        obs={key: np.array([o[key] for o in visited[:-1]]) for key in envs.OBS_KEYS},
        next_obs={key: np.array([o[key] for o in visited[1:]]) for key in envs.OBS_KEYS},
        actions=np.array(actions), rewards=last.astype(np.float64), dones=last.astype(np.int64),
        states=np.array(states), model_file=env.sim.model.get_xml(), operator=operator.name)


# ------------------------------------------------------------------------------- how different they are, from one start
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
