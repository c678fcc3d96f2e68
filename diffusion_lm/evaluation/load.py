"""A trained run, ready to be evaluated or sampled: averaged weights, in float32, on the best device here."""

from dataclasses import dataclass
from pathlib import Path

import torch

from diffusion_lm.data.info import DatasetInfo, data_facts
from diffusion_lm.errors import UserError
from diffusion_lm.experiment import ExperimentConfig, with_kernels
from diffusion_lm.lightning_module import DiffusionModule
from diffusion_lm.model import DenoisingModel
from diffusion_lm.objectives.base import Objective
from diffusion_lm.training.run import Run
from diffusion_lm.training.train import read_checkpoint


@dataclass(frozen=True)
class LoadedRun:
    """The model of a run and everything that belongs to it."""

    config: ExperimentConfig
    info: DatasetInfo
    model: DenoisingModel
    objective: Objective
    step: int
    device: torch.device


def load_run(folder: str | Path) -> LoadedRun:
    """The run in `folder`. Raises `UserError` when there is none, when it has no checkpoint yet, or another run's."""
    run = Run(folder)
    config = run.saved_config()
    if config is None:
        raise UserError(f"{folder}: no run here (no config.yaml); expected the folder of a run, like runs/NAME")
    if not run.checkpoint.is_file():
        raise UserError(
            f"{folder}: the run has no checkpoint yet; train it: python -m diffusion_lm train {run.config_file}"
        )
    checkpoint = read_checkpoint(run, config)
    info = data_facts(config.data)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config.denoiser = with_kernels(config.denoiser, device.type, anew=True)
    module = DiffusionModule(config, info)
    module.load_state_dict(checkpoint["state_dict"])
    module.eval().to(device)
    return LoadedRun(config, info, module.model, module.objective, checkpoint["global_step"], device)
