"""The fast step of robosuite's environments leaves the same bits behind as robosuite's own."""
import numpy as np
import pytest

import envs
from config import ROBOMIMIC
from tools.simulators import robosuite_setup
from tools.standins import operators

robosuite_setup.import_robosuite()                                        # quietly, before the next line imports it
from tools.simulators import fast_robosuite  # noqa: E402

ARM = ("torques goal_pos goal_ori ref_pos ref_ori_mat ref_pos_vel ref_ori_vel J_pos J_ori J_full joint_pos joint_vel "
       "mass_matrix origin_pos origin_ori initial_joint new_update").split()


def pair(task, **more):
    """The same environment twice: with the fast step, and without."""
    fast, plain = (np.random.seed(0) or robosuite_setup.make(envs.find_task(task).source, **more) for _ in range(2))    # lift draws a cube
    assert isinstance(fast.step, fast_robosuite.Step)
    del plain.step
    return fast, plain


def bits(env, obs, reward=0.0):
    data, (arm, gripper) = env.sim.data, env.robots[0].part_controllers.values()
    numbers = [*obs.values(), reward, data.time, data.qpos, data.qvel, data.ctrl, data.qacc_warmstart, env.cur_time,
               env.timestep, np.random.get_state()[1], gripper.goal_qvel, *(getattr(arm, key) for key in ARM)]
    for each in env._observables.values():
        numbers += [each._time_since_last_sample, each._sampled, each._current_delay, each._current_observed_value]
    return [np.asarray(number).tobytes() for number in numbers]


def play(env, steps, resets, prepare=lambda env: None):
    """What each step leaves behind. Late, the controller must look at one state and then act in another."""
    np.random.seed(3)
    rng, seen = np.random.default_rng(3), []
    for step in range(steps):
        if step % (steps // resets) == 0:
            env.reset()
            prepare(env)
            seen.append(bits(env, env._get_observations(force_update=True)))
        if step == steps - 5:
            env.robots[0].part_controllers["right"].update_initial_joints(env.sim.data.qpos[:7])
            env.sim.set_state_from_flattened(start)
            env.sim.forward()
        if step % 8 == 0:
            action, start = rng.uniform(-1.2, 1.2, 7), env.sim.get_state().flatten()
        seen.append(bits(env, *env.step(action)[:2]))
    return seen


@pytest.mark.parametrize("task", ROBOMIMIC)
def test_the_same_bits(task):
    fast, plain = pair(task)
    assert play(fast, 40, 2) == play(plain, 40, 2)
    assert fast.step.trusted and fast.step.arm is not None     # it did work


def test_sensors_with_clocks_of_their_own():
    def prepare(env):
        env.modify_observable("robot0_eef_pos", "corrupter", lambda seen: seen + np.random.normal(size=3))
        env.modify_observable("robot0_joint_pos", "sampling_rate", 33)
        env.modify_observable("robot0_joint_vel", "delayer", lambda: np.random.uniform(0, 0.02))
    fast, plain = pair("can")
    assert play(fast, 20, 1, prepare) == play(plain, 20, 1, prepare)


@pytest.mark.slow
@pytest.mark.parametrize("hard_reset", [False, True])
@pytest.mark.parametrize("task", ROBOMIMIC)
def test_the_same_bits_for_long(task, hard_reset):
    fast, plain = pair(task, hard_reset=hard_reset)
    assert play(fast, 900, 6) == play(plain, 900, 6) and fast.step.trusted
    for seed in range(2, 6):                                   # demonstrations: contact, grasps
        mine, theirs = (operators.demonstrate(env, task, seed) or {} for env in (fast, plain))
        assert mine.keys() == theirs.keys() and all(np.array_equal(mine[key], theirs[key]) for key in mine)


def test_one_wrong_bit_ends_it(monkeypatch, capsys):
    def wrong(ctrl, torque, *others):
        right(ctrl, torque, *others)
        torque[4] = np.nextafter(torque[4], 9)
    right, (fast, plain) = fast_robosuite.torques, pair("square")
    monkeypatch.setattr(fast_robosuite, "torques", wrong)
    assert play(fast, 20, 2) == play(plain, 20, 2)
    assert capsys.readouterr().out.count("other torques") == 1 and not fast.step.trusted


def test_objections(monkeypatch, capsys):
    env = robosuite_setup.make("Lift")
    robot, arm = env.robots[0], env.robots[0].part_controllers["right"]
    for thing, key, value, reason in (
            (fast_robosuite.robosuite, "__version__", "1.5.2", "is 1.5.2, not 1.5.1"),
            (fast_robosuite.macros, "ENABLE_NUMBA", False, "numba"), (type(env), "step", print, "a step of its own"),
            (env, "has_renderer", True, "renders"), (env, "use_camera_obs", True, "renders"),
            (env, "robots", [robot, robot], "Panda, Panda"), (robot, "name", "Sawyer", "Sawyer, not one Panda"),
            (robot.composite_controller, "part_controllers", {"right": arm}, "controls right, not"),
            (arm, "qpos_index", [*range(1, 8)], "not the first"), (arm, "name_suffix", "POSITION", "OSC_POSITION"),
            *((arm, key, "other", f"{key} is other") for key in fast_robosuite.CONTROLLER if key != "name")):
        assert fast_robosuite.objection(env) is None
        with monkeypatch.context() as patch:
            patch.setattr(thing, key, value)
            assert reason in fast_robosuite.objection(env)
    assert "step" not in vars(robosuite_setup.make("Lift", lite_physics=False))     # in earnest
    assert "own, slower step is used: the controller's lite_physics is False, not True" in capsys.readouterr().out
