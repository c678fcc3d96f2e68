"""A trained run, ready to be evaluated or sampled: averaged weights, in float32 or float64, on the best device here."""

from dataclasses import dataclass
from pathlib import Path

import torch

from diffusion_lm.data.info import DatasetInfo, data_facts
from diffusion_lm.errors import UserError, unknown
from diffusion_lm.experiment import ExperimentConfig, with_kernels
from diffusion_lm.lightning_module import DiffusionModule
from diffusion_lm.model import DenoisingModel
from diffusion_lm.objectives.base import Objective
from diffusion_lm.training.averaging import averaged
from diffusion_lm.training.checkpoint import read_checkpoint
from diffusion_lm.training.run import FINISHED, Run
from diffusion_lm.weights.folder import Exported, filled, is_export, read_folder

PRECISIONS = ("float32", "float64")


@dataclass(frozen=True)
class LoadedRun:
    """The model of a run and everything that belongs to it."""

    folder: str
    config: ExperimentConfig
    info: DatasetInfo
    model: DenoisingModel
    objective: Objective
    step: int
    device: torch.device
    precision: str
    ema: float
    """Decay of the average that the weights are; 0: they are the live ones."""


def load_run(folder: str | Path, precision: str = "float32", ema: float | None = None) -> LoadedRun:
    """The run in `folder`, with the weights averaged by decay `ema` (0: the live ones; None: the run's `ema_decay`).

    A folder that `convert` made is taken like a run; it holds one set of weights.
    Raises `UserError` when there is none, when it has no checkpoint yet, or another run's, or no such average.
    """
    if precision not in PRECISIONS:
        raise unknown("precision: no choice", precision, PRECISIONS)
    if is_export(folder):
        found = read_folder(folder)
        config, info, step = found.config, found.info(), found.facts["step"] or 0
    else:
        run = Run(folder)
        config = _config_of(run)
        checkpoint = read_checkpoint(run, config)
        info, step = data_facts(config.data), checkpoint["global_step"]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # fused scans compute in float32 at most; the one in PyTorch follows its input
    config.denoiser = with_kernels(config.denoiser, "cpu" if precision == "float64" else device.type, anew=True)
    module = DiffusionModule(config, info)
    ema = config.training.ema_decay if ema is None else ema
    if is_export(folder):
        _check_average(found, ema)
        filled(folder, module.model, found.state)
    else:
        module.load_state_dict(averaged(checkpoint, config.training, ema))
    module.eval().to(device, getattr(torch, precision))
    return LoadedRun(str(folder), config, info, module.model, module.objective, step, device, precision, ema)


def _check_average(found: Exported, ema: float) -> None:
    own = found.config.training.ema_decay
    if ema != own:
        raise UserError(f"{found.folder}: holds one set of weights, of decay {own:g}, got --ema {ema:g}; leave it out")


def _config_of(run: Run) -> ExperimentConfig:
    """The config of a run that has a checkpoint."""
    if run.folder.is_file():
        parents = [place for place in run.folder.parents if (place / run.config_file.name).is_file()]
        hint = f"; did you mean {parents[0]}?" if parents else ", like runs/NAME"
        raise UserError(f"{run.folder}: is a file; expected the folder of a run{hint}")
    config = run.saved_config()
    if config is None:
        raise UserError(f"{run.folder}: no run here (no config.yaml); expected the folder of a run, like runs/NAME")
    if run.checkpoint.is_file():
        return config
    train = f"python -m diffusion_lm train {run.config_file}"
    if (run.result() or {}).get("status") == FINISHED:
        raise UserError(
            f"{run.folder}: the run is finished, but {run.checkpoint} is gone; put it back, or train it once more "
            f"in another folder: {train} run=NEW"
        )
    raise UserError(f"{run.folder}: the run has no checkpoint yet; train it: {train}")
