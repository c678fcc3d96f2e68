"""Averaged weights: Lightning's WeightAveraging with an exponential moving average that warms up.

A fixed decay of 0.999 would still hold a third of the initial weights after a thousand steps. The decay used here is
min(decay, (1 + n) / (10 + n)) after n updates, as in TensorFlow's and MDLM's averages.

A learned noise schedule is not averaged: validations and checkpoints have it as it is trained.
"""

from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging

from diffusion_lm.training.optimizer import learned_schedules


class Average(WeightAveraging):
    """Validates and saves the moving average; training goes on with the live weights."""

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=_Lerp(decay))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *rest)
        with torch.no_grad():
            for average, live in zip(learned_schedules(self._average_model), learned_schedules(pl_module), strict=True):
                for theirs, ours in zip(average.parameters(), live.parameters(), strict=True):
                    theirs.copy_(ours)


class _Lerp:
    def __init__(self, decay: float) -> None:
        self.decay = decay

    @torch.no_grad()
    def __call__(self, averaged, current, updates) -> None:
        n = float(updates)
        torch._foreach_lerp_(averaged, current, 1 - min(self.decay, (1 + n) / (10 + n)))
