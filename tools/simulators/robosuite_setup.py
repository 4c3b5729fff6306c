"""robosuite, imported late and quietly, and made fast."""
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


def make(source: str, arguments: dict):
    """The environment of that name, stepped by fast_robosuite.py where that may be."""
    env = import_robosuite().make(source, **arguments)
    from tools.simulators.fast_robosuite import quicken      # late: it imports robosuite
    return quicken(env)
