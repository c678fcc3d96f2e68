"""Noise schedules: alpha(t) and nothing else.

One time: t in [0, 1], t = 0 clean, t = 1 noise. One noise level: alpha falls from ``alpha_0 <= 1`` to ``alpha_1 >= 0``.
For discrete processes alpha is the probability that a token was not yet replaced; for the Gaussian process it is the
signal power, x_t = sqrt(alpha) x_0 + sqrt(1 - alpha) eps, so one schedule serves every process.

A schedule computes in the precision of the time that it is given (float32 or float64) and never waits for the device.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn

from diffusion_lm.shapes import Float, Tensor

Time = Float[Tensor, "*n"]


class NoiseSchedule(nn.Module, ABC):
    """alpha(t), its derivative and its inverse. The ends `alpha_0` and `alpha_1` are declared by the variant."""

    alpha_0: float
    alpha_1: float

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def alpha(self, t: Time) -> Time:
        """alpha at time t in [0, 1], monotonically falling."""

    @abstractmethod
    def alpha_prime(self, t: Time) -> Time:
        """d alpha / d t, never positive."""

    @abstractmethod
    def inverse(self, alpha: Time) -> Time:
        """The time at which alpha is reached, for alpha in [alpha_1, alpha_0]."""

    def log_snr(self, t: Time) -> Time:
        """ln(alpha / (1 - alpha)): infinite where alpha is 0 or 1."""
        return torch.logit(self.alpha(t))
