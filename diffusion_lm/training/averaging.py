"""Averaged weights: Lightning's WeightAveraging with an exponential moving average that warms up.

A fixed decay of 0.999 would still hold a third of the initial weights after a thousand steps. The decay used here is
min(decay, (1 + n) / (10 + n)) after n updates, as in TensorFlow's and MDLM's averages.
"""

import torch
from lightning.pytorch.callbacks import WeightAveraging


class Average(WeightAveraging):
    """Validates and saves the moving average; training goes on with the live weights."""

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=_Lerp(decay))


class _Lerp:
    def __init__(self, decay: float) -> None:
        self.decay = decay

    @torch.no_grad()
    def __call__(self, averaged, current, updates) -> None:
        n = float(updates)
        torch._foreach_lerp_(averaged, current, 1 - min(self.decay, (1 + n) / (10 + n)))
