"""--log: the numbers of a run's tables, sent to TensorBoard or to Weights & Biases too."""
import contextlib
from pathlib import Path

from config import UserError
from tools.training.files import in_one_line


@contextlib.contextmanager
def tracker(kind: str, folder: Path):
    """A function (values by name, step), or None for "csv". UserError where the package or its login is missing."""
    log = end = None
    try:
        if kind == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter
            writer = SummaryWriter(str(folder))
            log, end = lambda values, step: [writer.add_scalar(k, v, step) for k, v in values.items()], writer.close
        if kind == "wandb":
            import wandb
            run = wandb.init(project="drifting-field-policy", name=str(folder), dir=str(folder), reinit="create_new")
            log, end = run.log, run.finish
    except ImportError:
        raise UserError(f"--log {kind} needs the package {kind}: pip install {kind}") from None
    except Exception as error:                             # no login, no network: each has its own
        raise UserError(f"--log {kind} does not work here: {in_one_line(error)}") from None
    try:
        yield log
    finally:
        if end:
            end()
