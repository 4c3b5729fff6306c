"""robosuite, imported late and quietly, set up as for robomimic, and made fast."""
import logging
import os

from tools.checks import UserError


def _errors_only(record) -> bool:
    return record.levelno >= logging.ERROR       # its warnings are about optional robots and macros, at every start


def import_mujoco() -> None:
    """UserError where the renderer that MUJOCO_GL asks for is not there."""
    try:
        import mujoco  # noqa: F401
    except Exception as error:           # each renderer has its own
        raise UserError(f"MUJOCO_GL={os.environ.get('MUJOCO_GL')} does not work here ({type(error).__name__} {error}); "
                        "unset it, or install that renderer") from None


def import_robosuite():
    """The module, imported late (OGBench users need not wait for it) and quietly."""
    import_mujoco()
    logging.getLogger("robosuite_logs").addFilter(_errors_only)      # a filter: robosuite itself resets the level
    import robosuite
    return robosuite


def arguments(source: str) -> dict:
    """What the official v1.5 files record as env_args, but for lite_physics. So generated and official data come from
    one environment."""
    osc = dict(type="OSC_POSE", input_max=1, input_min=-1, output_max=[0.05] * 3 + [0.5] * 3,
               output_min=[-0.05] * 3 + [-0.5] * 3, kp=150, damping=1, impedance_mode="fixed", kp_limits=[0, 300],
               damping_limits=[0, 10], position_limits=None, orientation_limits=None, uncouple_pos_ori=True,
               control_delta=True, interpolation=None, ramp_ratio=0.2, input_ref_frame="world",
               gripper=dict(type="GRIP"))
    return dict(robots=["Panda"], controller_configs=dict(type="BASIC", body_parts=dict(right=osc)), control_freq=20,
                lite_physics=True,              # faster; replayed demonstrations are the same without it, bit for bit
                reward_shaping=False, ignore_done=True, use_object_obs=True, use_camera_obs=False,
                has_renderer=False, has_offscreen_renderer=False,
                # Rebuilding the model at each reset takes 0.15-0.5 s. Only lift needs it: the cube's size is random
                # there.
                hard_reset=source == "Lift")


def make(source: str, **overrides):
    """The raw environment of this class, in which tools/standins/operators.py demonstrates too. Its step() is replaced
    by a faster one with equal results where that may be."""
    env = import_robosuite().make(source, **arguments(source) | overrides)
    from tools.simulators.fast_robosuite import quicken      # late: it imports robosuite
    return quicken(env)
