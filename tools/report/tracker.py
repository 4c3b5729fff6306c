"""--log: the numbers of a run's tables, sent to TensorBoard or to Weights & Biases too."""
from pathlib import Path

from config import UserError


def make_tracker(kind: str, folder: Path):
    """A function (values by name, step), or None for "csv"."""
    try:
        if kind == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter
            writer = SummaryWriter(str(folder))
            return lambda values, step: [writer.add_scalar(k, v, step) for k, v in values.items()]
        if kind == "wandb":
            import wandb
            return wandb.init(project="drifting-field-policy", name=str(folder), dir=str(folder)).log
    except ImportError:
        raise UserError(f"--log {kind} needs the package {kind}: pip install {kind}") from None
    return None
