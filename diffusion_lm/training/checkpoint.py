"""Reading a run's checkpoint."""

from typing import Any

import torch

from diffusion_lm.config import from_tree
from diffusion_lm.data.datamodule import TokenDataModule, check_batches
from diffusion_lm.errors import UserError
from diffusion_lm.experiment import ExperimentConfig
from diffusion_lm.training.run import Run, changes


def read_checkpoint(run: Run, config: ExperimentConfig) -> dict[str, Any]:
    """The run's checkpoint, memory-mapped. Refuses a file that is no checkpoint, or one of another config."""
    try:
        checkpoint = torch.load(run.checkpoint, map_location="cpu", weights_only=True, mmap=True)
        experiment = checkpoint["experiment"]
    except Exception as error:
        raise UserError(
            f"{run.checkpoint}: not a checkpoint of this project ({type(error).__name__}); move it away to start "
            "from step 0, or put the right file back"
        ) from None
    # through the config classes: keys that came after the checkpoint was written have their defaults
    changed = changes(from_tree(ExperimentConfig, experiment), config, resumed=True)
    if changed:
        raise UserError(
            f"{run.checkpoint}: belongs to another config than {run.config_file} ({'; '.join(changed)}); put the "
            "right file back, or give run=NEW"
        )
    check_batches(data_state(checkpoint), config.training.batch_size)
    return checkpoint


def data_state(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What the data module put into it."""
    return checkpoint[TokenDataModule.__qualname__]
