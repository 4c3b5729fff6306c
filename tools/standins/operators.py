"""Six scripted operators for lift, can and square: a stand-in for robomimic's multi-human demonstrations.

They are uneven in skill, with habits that are mirrored now and then: one observation has several right actions. Each
phase (reach, grasp, carry, release, retreat) is a servo on what a policy can see: hand, fingers, object. The height
aimed for is a function of the horizontal error, a funnel, so straying from the line raises the hand again. A memoryless
policy can imitate all but a pause, a detour's first half, the tremor's momentum, and a grasp about to be fumbled.
"""
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

import envs

BODY = {"lift": "cube", "can": "Can", "square": "SquareNut"}      # the object's name in robosuite's observations
PACE = {"lift": 0.78, "can": 1.32, "square": 0.88}    # of all speeds: successes as long as the multi-human ones
FINGERS_OPEN, FINGERS_SHUT = 0.06, 0.02   # metres between the fingers: at most 0.08; cube, can, handle .04, .05, .03


@dataclass(frozen=True)
class Operator:
    name: str
    speed: float      # cap on the command's length; a full command, 1, moves the hand by 12 mm a step
    gain: float       # command per 5 cm of error
    noise: float      # standard deviation of the tremor, far from contact
    jitter: float     # metres by which waypoints in free space vary
    detour: float     # probability of first heading for a wrong place; on the way to the object, and to the goal
    pause: float      # probability per step, away from contact, of nearly stopping for 3 to 8 steps
    fumble: float     # probability that the first grasp closes above the object
    slip: float       # probability per step, near the object or the goal, of sliding aside for 2 to 4 steps
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
    """In [-period/2, period/2)."""
    return (angle + period / 2) % period - period / 2


def yaw_of(quat):
    """Yaw of a quaternion (x, y, z, w); the body may stand upright or, like the hand, upside down."""
    x_axis = Rotation.from_quat(quat).as_matrix()[:, 0]
    return np.arctan2(x_axis[1], x_axis[0])


def cap(vector, length):
    return vector * min(1, length / max(np.linalg.norm(vector), 1e-9))


class Hand:
    """One operator in one episode: from observations to actions."""

    def __init__(self, env, task, operator, obs, rng):
        self.task, self.operator, self.rng = task, operator, rng
        # What is decided once an episode: the operator's habits, a little different each time, fitted to the task.
        sign = -1 if rng.random() < operator.mirror else 1
        wrist = sign * operator.wrist + rng.normal(0, 0.15)
        self.lean = sign * np.array(operator.lean) + rng.normal(0, operator.jitter, 2)
        self.bend = sign * operator.bend * rng.uniform(0.6, 1.4)
        self.hover = rng.uniform(0.08, 0.12)      # metres above `straight` at which the descent begins
        self.fumble = rng.random() < operator.fumble
        self.detours = {phase: rng.random() < operator.detour for phase in ("reach", "carry")}
        self.fit_to_task(env, obs, wrist)
        self.tremor, self.pause_left, self.slip_left, self.width = np.zeros(6), 0, 0, 0.0
        self.enter("reach")

    def fit_to_task(self, env, obs, wrist):
        """Sets grasp_yaw, the hand's; turn_to, the object's yaw at the goal; grasp_offset, from the object's centre to
        the hand, in its frame; straight, metres above the grasp where the hand must be right over it; goal, where the
        object's centre ends; carry_z, its height on the way."""
        operator, rng = self.operator, self.rng
        thing, thing_yaw = obs[BODY[self.task] + "_pos"], yaw_of(obs[BODY[self.task] + "_quat"])
        if self.task == "lift":
            self.grasp_offset, self.straight = np.zeros(3), 0.03
            self.grasp_yaw = wrist + wrap(thing_yaw - wrist, np.pi / 2)  # any quarter turn holds a cube
            self.goal = thing + [0, 0, 0.15]
            self.carry_z = self.goal[2]
        elif self.task == "can":
            self.grasp_offset, self.straight = np.array([0, 0, rng.uniform(0, 0.025)]), 0.06
            self.grasp_yaw = wrist                                       # a can is round
            # Short of the compartment's centre (.20, .40): the arm stalls beyond 0.82 m. Dropped from 4 cm, because
            # success asks for a hand 4 cm away.
            self.goal = np.array([0.15, 0.34, 0.90]) + rng.uniform(-0.015, 0.015, 3)
            self.carry_z = 1.0 + operator.carry + rng.normal(0, operator.jitter / 2)
        elif self.task == "square":
            self.grasp_offset, self.straight = np.array([rng.uniform(0.063, 0.070), 0, 0]), 0.02  # handle: .044 to .079
            self.lean[0] = abs(self.lean[0])      # not from the base: the arm can hardly fold further
            self.goal = np.array(env.sim.data.body_xpos[env.peg1_body_id])
            self.carry_z = self.goal[2] + 0.13 + operator.carry          # the peg's top is at +0.10
            # Two hand yaws hold the handle, and the nut fits the peg at four; three, because a handle that ends
            # pointing along +x is out of reach. Of what the wrist's joint allows, take the least turning, with regard
            # for the habit.
            options = [(hand, turn) for hand in wrap(thing_yaw + np.array([0, np.pi]))
                       for turn in wrap(np.array([1, 2, 3]) * np.pi / 2 - thing_yaw)
                       if -1.7 < hand < 2.2 and -1.7 < hand + turn < 2.2]
            costs = [abs(turn) + 0.5 * abs(hand - wrist) + rng.normal(0, 0.4) for hand, turn in options]
            self.grasp_yaw, turn = options[int(np.argmin(costs))]
            self.turn_to = thing_yaw + turn

    def enter(self, phase):
        self.phase, self.steps, self.detour = phase, 0, None
        if self.detours.pop(phase, False):        # once an episode, also where the phase is entered again
            angle = self.rng.uniform(0, 2 * np.pi)
            self.detour = self.rng.uniform(0.05, 0.10) * np.array([np.cos(angle), np.sin(angle)])

    def act(self, obs):
        """robosuite's observation -> an action [7] in [-1, 1]: move, turn, gripper."""
        self.look(obs)
        self.steps, self.target_yaw = self.steps + 1, self.grasp_yaw
        for phase in (self.reach, self.grasp, self.carry, self.release, self.retreat):
            if self.phase == phase.__name__:      # a phase that ends hands over to the next at once
                target, contact = phase()
        self.free = self.phase in ("reach", "carry")
        motion = self.imperfect(*self.servo(target, contact), contact)
        gripper = 1.0 if self.phase in ("grasp", "carry") else -1.0
        return np.clip(np.append(motion, gripper), -1, 1)

    def look(self, obs):
        """Sets what the step goes by: poses of hand and object, the fingers' width, and the place to grasp at."""
        self.hand, self.hand_quat = obs["robot0_eef_pos"], obs["robot0_eef_quat"]
        self.thing, self.thing_yaw = obs[BODY[self.task] + "_pos"], yaw_of(obs[BODY[self.task] + "_quat"])
        self.hand_yaw = yaw_of(self.hand_quat)
        self.previous_width, self.width = self.width, obs["robot0_gripper_qpos"] @ [1, -1]
        self.handle = self.thing + Rotation.from_euler("z", self.thing_yaw).apply(self.grasp_offset)
        # Missed or lost: the fingers have met nothing, or the object stayed behind. Both can be seen. The hand opens
        # again at once: fingers this close always mean "open", so a policy that has closed on air learns the way out.
        if (self.phase in ("grasp", "carry") and self.width < FINGERS_SHUT
                or self.phase == "carry" and np.linalg.norm(self.hand - self.handle) > 0.035):
            self.fumble = False
            self.enter("reach")
        if self.fumble:
            self.handle[2] += self.straight + 0.025

    # The phases: each -> the hand's target [3], and contact, the metres to where care is due.
    def reach(self):
        hand, handle = self.hand, self.handle
        # From hovering height down, the path is a parabola: it comes from the side of the lean and ends vertical.
        height = np.clip((hand[2] - handle[2] - self.straight) / self.hover, 0, 1)
        aim = handle[:2] + self.lean * height**2
        turn = wrap(self.target_yaw - self.hand_yaw)
        # The funnel. A wrong yaw counts as error too, and fingers that are not open keep the hand up.
        error = np.linalg.norm(aim - hand[:2]) + 0.05 * abs(turn) + (self.width < FINGERS_OPEN)
        target = np.append(aim, handle[2] + (self.straight + self.hover) * np.clip((error - 0.010) / 0.045, 0, 1))
        if np.linalg.norm(handle - hand) < 0.014 and abs(turn) < 0.2 and self.width > FINGERS_OPEN:
            self.enter("grasp")
        return target, np.hypot(np.linalg.norm(handle[:2] - hand[:2]), height * self.hover)

    def grasp(self):
        # Until the fingers stand still, which the width shows to a policy: open, or as wide as the object.
        if self.steps > 3 and abs(self.width - self.previous_width) < 5e-4:
            self.enter("carry")
        return self.handle, 0.0

    def carry(self):
        # What is steered is the object: how it sits between the fingers makes no difference then.
        hand, thing, goal, square = self.hand, self.thing, self.goal, self.task == "square"
        error = np.linalg.norm(goal[:2] - thing[:2])
        turn = wrap(self.turn_to - self.thing_yaw) if square else 0.0
        gate = 1.0 if error < 0.05 else np.clip(1 - (self.carry_z - thing[2]) / self.operator.slack, 0, 1)
        # The nut has 7 mm of play around the peg on each side; a can may fall anywhere near.
        tolerance = 0.005 if square else 0.02
        height = np.clip((error + 0.05 * max(abs(turn) - 0.04, 0) - tolerance) / 0.03, 0, 1)
        target = hand + gate * (goal - thing)
        target[2] = hand[2] - thing[2] + goal[2] + height * (self.carry_z - goal[2])
        if square:
            self.target_yaw = self.hand_yaw + gate * turn
        if error < tolerance + 0.005 and abs(thing[2] - goal[2]) < 0.015:
            self.enter("release")
        return target, error

    def release(self):
        if self.width > FINGERS_OPEN + 0.01:
            self.enter("retreat")
        return self.hand, 0.0

    def retreat(self):
        if self.steps > 25:                       # it should have been a success by now: try again
            self.enter("reach")
        return self.hand + [0, 0, 0.1], 0.0

    def servo(self, target, contact):
        """The move [3] and turn [3] towards a target, in this operator's manner."""
        operator, speed = self.operator, self.operator.speed * PACE[self.task]
        offset = target - self.hand
        distance = np.linalg.norm(offset[:2])
        if self.detour is not None:               # one wrong waypoint, given up on when near it, or soon enough
            offset[:2] += self.detour
            if np.linalg.norm(offset[:2]) < 0.03 or distance < 0.04 or self.steps > 40:
                self.detour = None
        if self.free and distance > 0.04:         # bulging fades with the distance, so the path arrives from one side
            across = cap(1e3 * np.array([-offset[1], offset[0]]), 1)
            offset[:2] += self.bend * min(distance / 0.15, 1) * across
        # Careful near contact, but never slower than 0.12: a servo that fades out where it arrives teaches a policy,
        # whose aim is a little off, to stop just short.
        length = np.linalg.norm(offset) / 0.05 * operator.gain
        length = min(max(length, 0.12) if self.free else length, speed * np.clip(contact / 0.06, 0.5, 1))
        # The hand hangs upside down, at the target yaw. Rotation commands are in the world's frame, 0.5 rad each.
        upright = Rotation.from_euler("z", self.target_yaw) * Rotation.from_euler("x", np.pi)
        turn = (upright * Rotation.from_quat(self.hand_quat).inv()).as_rotvec()
        # Slow, so that the wrist still turns when the hand is near: who turns at once shows nobody how to correct it.
        return cap(1e3 * offset, length), cap(turn / 0.5 * operator.gain, 0.2 * speed)

    def imperfect(self, move, turn, contact):
        """The motion [6] with slips, pauses and tremor."""
        rng, operator = self.rng, self.operator
        # A slip leaves the line where it matters most: a policy, never as exact as its teacher, has to know what comes
        # next. Short and rough: the rows that recover are many, those that slip are few.
        if self.free and contact < 0.06 and not self.slip_left and rng.random() < operator.slip:
            self.slip_left, side = int(rng.integers(2, 5)), rng.normal(size=3) * [1, 1, 0.5]
            self.slip = rng.uniform(0.6, 1.0) * side / np.linalg.norm(side), np.array([0, 0, rng.uniform(-0.6, 0.6)])
        if self.slip_left:
            self.slip_left -= 1
            move, turn = self.slip
        if self.free and self.pause_left == 0 and contact > 0.06 and rng.random() < operator.pause:
            self.pause_left = int(rng.integers(3, 9))
        stillness = 0.1 if self.pause_left else 1.0
        self.pause_left = max(self.pause_left - 1, 0)
        # AR(1) with the operator's standard deviation; an eighth of it is left in contact.
        self.tremor = 0.8 * self.tremor + 0.6 * (rng.normal(0, operator.noise, 6) * [1, 1, 1, 0.3, 0.3, 0.3])
        return stillness * np.append(move, turn) + np.clip(contact / 0.08, 0.12, 1) * self.tremor


def begin(env, task, operator, scene: int, rng):
    """The first observation of an episode, and the hand that will play it. scene: the seed of where things lie."""
    np.random.seed(scene)                         # robosuite places objects with numpy's global generator
    env.reset()
    raw = env._get_observations(force_update=True)   # or else can and square begin with zeros
    return raw, Hand(env, task, operator, raw, rng)


def demonstrate(env, task: str, seed: int) -> dict | None:
    """One episode by operator seed % 6, under robomimic's names -> None if it failed. Same seed, same episode."""
    operator = OPERATORS[seed % len(OPERATORS)]
    raw, hand = begin(env, task, operator, seed, np.random.default_rng(seed))
    first_state, seen, actions, success = env.sim.get_state().flatten(), [], [], False
    while not success and len(actions) < envs.find_task(task).horizon:
        seen.append(envs.robosuite_obs(raw))
        actions.append(hand.act(raw))
        raw = env.step(actions[-1])[0]
        success = bool(env._check_success())
    if not success:
        return None
    last = (np.arange(len(actions)) == len(actions) - 1).astype(np.int8)       # success ends an episode
    obs = {f"obs/{key}": np.array([each[key] for each in seen], np.float32) for key in envs.OBS_KEYS}
    return dict(actions=np.array(actions, np.float32), rewards=last, dones=last, states=first_state[None],
                model_file=env.sim.model.get_xml(), operator=operator.name) | obs
