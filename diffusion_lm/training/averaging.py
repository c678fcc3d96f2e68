"""Averaged weights: Lightning's WeightAveraging with exponential moving averages that warm up.

A fixed decay of 0.999 would still hold a third of the initial weights after a thousand steps. The decay used here is
min(decay, (1 + n) / (10 + n)) after n updates, as in TensorFlow's and MDLM's averages.

The first decay's average is validated and saved as the weights; those of the others are kept beside it in the
checkpoint, as state dicts under ``averages``. Each is one more copy of the weights on their device.

A learned noise schedule is not averaged: validations and checkpoints have it as it is trained. So is what holds no
floating-point numbers.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from diffusion_lm.errors import UserError
from diffusion_lm.training.config import TrainingConfig
from diffusion_lm.training.optimizer import learned_schedules

AVERAGES = "averages"
LIVE = "current_model_state"
"""Lightning's key."""
Weights = dict[str, Tensor]


class Average(WeightAveraging):
    """Validates and saves the moving average; training goes on with the live weights.

    PyTorch's AveragedModel asks the device for the number of updates at every step, and Lightning leaves it on the host
    while the model trains on a GPU. Here the number is known, and the averages go where the weights are.
    """

    def __init__(self, decay: float, others: Sequence[float] = ()) -> None:
        super().__init__()
        self.decay, self.others = decay, tuple(others)
        self._averages: dict[float, Weights] = {}
        self._updates = 0
        self._lerped: list[tuple[float, list[Tensor], list[Tensor]]] = []
        self._copied: list[tuple[Tensor, Tensor]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._updates = 0
            weights = pl_module.state_dict()
            self._averages = {decay: {name: w.clone() for name, w in weights.items()} for decay in self.others}

    @torch.no_grad()
    def place(self, share: Callable[[str, Tensor], Tensor]) -> None:
        """Keep of every average what `share(name, numbers)` gives: this device's share."""
        if self._average_model is None:
            return
        made: dict[int, nn.Parameter] = {}
        for path, module in list(self._average_model.module.named_modules()):
            for name, parameter in list(module.named_parameters(path, recurse=False)):
                if id(parameter) not in made:  # a tied weight stays tied
                    made[id(parameter)] = nn.Parameter(share(name, parameter), requires_grad=parameter.requires_grad)
                setattr(module, name.rpartition(".")[2], made[id(parameter)])
        for average in self._averages.values():
            average.update({name: share(name, tensor) for name, tensor in average.items()})

    @torch.no_grad()
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        device = pl_module.device
        if any(weight.device != device for weight in self._average_model.parameters()):
            self._average_model.to(device)
        for average in self._averages.values():
            average.update({name: tensor.to(device) for name, tensor in average.items()})
        live = pl_module.state_dict(keep_vars=True)
        first = self._average_model.module.state_dict(keep_vars=True)
        apart = {id(parameter) for schedule in learned_schedules(pl_module) for parameter in schedule.parameters()}
        self._lerped, self._copied = [], []
        for decay, average in {self.decay: first, **self._averages}.items():
            lerped: dict[bool, dict[int, tuple[Tensor, Tensor]]] = {True: {}, False: {}}
            for name, ours in live.items():
                if id(ours) in apart or not ours.is_floating_point():
                    self._copied.append((average[name].detach(), ours.detach()))
                else:  # by identity: a tied weight has two names and is averaged once
                    pair = average[name].detach(), ours.detach()
                    # a list has shares alone or whole tensors alone: PyTorch does not mix them
                    lerped[isinstance(ours, DTensor)][id(average[name])] = pair
            lists = [[list(side) for side in zip(*pairs.values())] for pairs in lerped.values() if pairs]
            self._lerped += [(decay, averages, live) for averages, live in lists]

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        if trainer.global_step <= self._latest_update_step:
            return
        self._latest_update_step = trainer.global_step
        n = self._updates
        for decay, averages, live in self._lerped:
            if n:
                torch._foreach_lerp_(averages, live, 1 - min(decay, (1 + n) / (10 + n)))
            else:
                _copy(zip(averages, live))
        _copy(self._copied)
        self._updates += 1
        self._average_model.n_averaged += 1

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._averages:
            checkpoint[AVERAGES] = {str(decay): dict(average) for decay, average in self._averages.items()}

    @torch.no_grad()
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        if self._average_model is None:
            return
        self._updates = int(self._average_model.n_averaged)
        for decay, average in self._averages.items():
            for name, tensor in checkpoint[AVERAGES][str(decay)].items():
                average[name].copy_(tensor)


def _copy(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    for theirs, ours in pairs:
        theirs.copy_(ours)


def averaged(checkpoint: Mapping[str, Any], config: TrainingConfig, decay: float) -> Weights:
    """The weights that a run's checkpoint keeps for a decay; the live ones for 0."""
    if decay == config.ema_decay:
        return checkpoint["state_dict"]
    if decay in config.ema_decays:
        return checkpoint[AVERAGES][str(decay)]
    if decay == 0:
        return checkpoint[LIVE]
    kept = ", ".join(f"{kept:g}" for kept in (config.ema_decay, *config.ema_decays) if kept)
    expected = f"{kept}, or 0 for the live weights" if kept else "0, the live weights"
    raise UserError(f"ema: got {decay:g}, expected {expected}: the run kept no other")
