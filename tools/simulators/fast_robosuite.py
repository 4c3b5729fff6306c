"""robosuite's env.step in about a third of its time, with every float the same.

Four fifths of a step of lift, can or square are Python that looks up, in each of 25 substeps, what never changes:
names, indices, limits, the pose of a base that stands still, the clocks of sensors that sample once. Here this happens
once an episode. What is left is robosuite's arithmetic in robosuite's order, its compiled functions included. Goals of
actions, observations and rewards are left to robosuite. Once an episode its controller computes beside this one:
should a bit of the torques differ, robosuite's step is used for good.

Not kept up: robots[0].recent_*, which of robosuite's tasks only Wipe reads, and what the gripper's controller remembers
of its joints, which nothing reads.
"""
import mujoco
import numba
import numpy as np
import robosuite
from robosuite import macros
from robosuite.environments.base import MujocoEnv
from robosuite.utils.control_utils import nullspace_torques, opspace_matrices, orientation_error

VERSION = "1.5.1"
# The controller that torques() is written for, as robosuite_setup.arguments has it.
CONTROLLER = dict(name="OSC_POSE", impedance_mode="fixed", input_type="delta", input_ref_frame="world",
                  uncoupling=True, interpolator_pos=None, interpolator_ori=None, lite_physics=True)


def quicken(env):
    """The same environment; unless there is an objection, its step is fast."""
    if reason := objection(env):
        print(f"robosuite's own, slower step is used: {reason}")
    else:
        env.step = Step(env)
    return env


def objection(env) -> str | None:
    """Why this environment keeps robosuite's own step, if it does."""
    if robosuite.__version__ != VERSION:
        return f"robosuite is {robosuite.__version__}, not {VERSION}"
    if not macros.ENABLE_NUMBA:
        return "robosuite is told to do without numba"
    if type(env).step is not MujocoEnv.step:
        return f"{type(env).__name__} has a step of its own"
    if env.has_renderer or env.use_camera_obs:
        return "it renders as it steps"
    if [robot.name for robot in env.robots] != ["Panda"]:
        return f"its robots are {', '.join(robot.name for robot in env.robots)}, not one Panda"
    robot = env.robots[0]
    if list(robot.part_controllers) != ["right", "right_gripper"]:
        return f"it controls {', '.join(robot.part_controllers)}, not arm and gripper"
    arm = robot.part_controllers["right"]
    for key, expected in CONTROLLER.items():
        if getattr(arm, key, None) != expected:
            return f"the controller's {key} is {getattr(arm, key, None)}, not {expected}"
    if not list(arm.qpos_index) == list(arm.qvel_index) == robot._ref_actuators_indexes_dict["right"] == [*range(7)]:
        return "the arm's joints and motors are not the first, as with a base that moves"
    return None


def compiled(function):
    """Kept on disk, as robosuite's own functions are, where there is a folder to write to."""
    try:
        return numba.njit(cache=True)(function)
    except RuntimeError:                         # "no locator available"
        return numba.njit(function)


@compiled
def torques(ctrl, torque, joint_pos, joint_vel, mass, ref_pos_vel, ref_ori_vel, J_pos, J_ori, J_full, low, high,
            pos, ori, jac_pos, jac_ori, all_mass, qpos, qvel, bias, goal_pos, goal_ori, kp, kd, initial_joint):
    """Writes its first ten arguments: what Controller.update() and OperationalSpaceController.run_controller() leave
    behind, and in ctrl what Robot.control() makes of it. Loops, as numba takes thrice as long to compile slices."""
    np.dot(jac_pos, qvel, ref_pos_vel)
    np.dot(jac_ori, qvel, ref_ori_vel)
    for i in range(7):
        joint_pos[i], joint_vel[i] = qpos[i], qvel[i]
        for j in range(3):
            J_pos[j, i] = J_full[j, i] = jac_pos[j, i]
            J_ori[j, i] = J_full[3 + j, i] = jac_ori[j, i]
        for j in range(7):
            mass[i, j] = all_mass[i, j]

    ori_error = orientation_error(goal_ori, ori)
    force, moment = np.empty(3), np.empty(3)
    for i in range(3):                           # robosuite subtracts the base's velocity, which is zero
        force[i] = (goal_pos[i] - pos[i]) * kp[i] - ref_pos_vel[i] * kd[i]
        moment[i] = ori_error[i] * kp[3 + i] - ref_ori_vel[i] * kd[3 + i]
    _, lambda_pos, lambda_ori, nullspace = opspace_matrices(mass, J_full, J_pos, J_ori)
    task = np.dot(J_full.T, np.concatenate((np.dot(lambda_pos, force), np.dot(lambda_ori, moment))))
    null = nullspace_torques(mass, nullspace, initial_joint, joint_pos, joint_vel)
    for i in range(7):
        torque[i] = task[i] + bias[i] + null[i]
        ctrl[i] = np.minimum(np.maximum(torque[i], low[i]), high[i])


class Step:
    """env.step, as long as the environment lives."""

    def __init__(self, env):
        self.env, self.slow, self.arm, self.trusted = env, env.step, None, True

    def __call__(self, action):
        env, arm = self.env, self.env.robots[0].part_controllers["right"]
        # new_update is False where the controller will not look at the state but use what it saw before, as in the
        # first substep after a reset. Such a step is robosuite's, and so is one that it refuses.
        if not (self.trusted and arm.new_update) or env.done or len(action) != env.action_dim:
            return self.slow(action)
        if arm is not self.arm:                  # resets make new controllers, and some a new simulator
            self.prepare(arm)
            theirs = arm.run_controller().copy()
            self.control(np.empty(7))
            self.trusted = np.array_equal(theirs, self.torque)
            if not self.trusted:
                print("robosuite computes other torques than tools/simulators/fast_robosuite.py: its own, slower step "
                      "is used from here on")
                return self.slow(action)
        env.timestep += 1
        self.substeps(action)
        env.cur_time += env.control_timestep
        reward, done, info = env._post_action(action)
        return env._get_observations(), reward, done, info

    def prepare(self, arm) -> None:
        """Looks up what stays until the next reset. MuJoCo's arrays are views of memory that does not move."""
        sim, robot = self.env.sim, self.env.robots[0]
        model, data, nv = sim.model._model, sim.data._data, sim.model.nv
        self.arm, self.gripper, self.robot = *robot.part_controllers.values(), robot
        self.model, self.data, self.site = model, data, sim.model.site_name2id(arm.ref_name)
        self.pose = data.site_xpos[self.site], data.site_xmat[self.site].reshape(3, 3)
        self.arm_ctrl, self.gripper_ctrl = data.ctrl[:7], data.ctrl[7:]
        low, high = model.actuator_ctrlrange.T.copy()
        self.gripper_range = low[7:], high[7:]
        self.jacobians, self.all_mass, self.qM = tuple(np.zeros((2, 3, nv))), np.zeros((nv, nv)), data.qM
        # In Fortran's order, as robosuite's is: it decides how LAPACK rounds.
        self.torque, self.joints, self.mass = np.zeros(7), np.zeros((2, 7)), np.zeros((7, 7), order="F")
        self.arrays = (self.torque, *self.joints, self.mass, arm.ref_pos_vel, arm.ref_ori_vel, arm.J_pos, arm.J_ori,
                       arm.J_full, low[:7], high[:7], *self.pose, *self.jacobians, self.all_mass, data.qpos, data.qvel,
                       data.qfrc_bias[:7])

    def substeps(self, action) -> None:
        env, arm, timestep = self.env, self.arm, self.env.model_timestep
        sensors = [each for each in env._observables.values() if each._enabled]
        clock = shared_clock(sensors)
        for substep in range(int(env.control_timestep / timestep)):
            mujoco.mj_step1(self.model, self.data)
            if substep == 0:
                self.take_up(action)
            self.control(self.arm_ctrl)          # the gripper's command stays for all substeps
            mujoco.mj_step2(self.model, self.data)
            if clock is None:
                env._update_observables()
                clock = shared_clock(sensors)
            else:
                time, period = clock
                time += timestep
                clock = (time, period) if time < period else None
                if clock is None:                # a new period, in which nothing is sampled yet
                    set_clocks(sensors, time % period, False)
        if clock is not None:
            set_clocks(sensors, clock[0], True)
        # What the controller saw last, and the torques that followed.
        arm.ref_pos[:], arm.ref_ori_mat[:] = self.pose
        (arm.joint_pos, arm.joint_vel), arm.mass_matrix, arm.torques = self.joints, self.mass, self.torque

    def take_up(self, action) -> None:
        """robosuite's code makes the action the controllers' goal, and the gripper's command."""
        arm, gripper = self.arm, self.gripper
        arm.ref_pos[:], arm.ref_ori_mat[:] = self.pose
        arm.new_update = gripper.new_update = False          # of what they would look at, this is all that counts here
        self.robot.composite_controller.set_goal(action)
        np.clip(gripper.run_controller(), *self.gripper_range, out=self.gripper_ctrl)
        arm.new_update = True

    def control(self, ctrl) -> None:
        """Writes the arm's torques, within its limits, to ctrl."""
        arm = self.arm
        mujoco.mj_jacSite(self.model, self.data, *self.jacobians, self.site)
        mujoco.mj_fullM(self.model, self.all_mass, self.qM)
        torques(ctrl, *self.arrays, arm.goal_pos, arm.goal_ori, arm.kp, arm.kd, arm.initial_joint)


# Sensors sample at one substep of a step, which they find by adding up floats. All do so alike, unless somebody gave
# one a rate or a delay of its own: then robosuite updates them at every substep.
def shared_clock(sensors) -> tuple[float, float] | None:
    """Time since the last sample and the sensors' period; None if they differ, or have not all sampled in this one."""
    clocks = {(each._time_since_last_sample, each._sampling_timestep) if each._sampled else None for each in sensors}
    return clocks.pop() if len(clocks) == 1 else None


def set_clocks(sensors, time: float, sampled: bool) -> None:
    for each in sensors:
        each._time_since_last_sample, each._sampled = time, sampled
