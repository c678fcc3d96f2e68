"""The hyper-parameters that TensorBoard's table shows: what tells runs apart. It shows five unless asked for more."""

from diffusion_lm.config import name_of
from diffusion_lm.experiment import ExperimentConfig


def flat_hparams(config: ExperimentConfig) -> dict[str, str | int | float]:
    """A flat row of plain values."""
    return {
        "denoiser": name_of(config.denoiser),
        "objective": name_of(config.objective),
        "schedule": name_of(config.schedule),
        "conditioning": name_of(config.denoiser.conditioning),
        "optimizer": name_of(config.training.optimizer),
        "lr": config.training.lr,
        "seed": config.seed,
    }
