"""Noise schedules: alpha(t) and nothing else.

One time: t in [0, 1], t = 0 clean, t = 1 noise. One noise level: alpha falls from ``alpha_0 <= 1`` to ``alpha_1 >= 0``.
For discrete processes alpha is the probability that a token was not yet replaced; for the Gaussian process it is the
signal power, x_t = sqrt(alpha) x_0 + sqrt(1 - alpha) eps, so one schedule serves every process.

A schedule computes in the precision of the time that it is given (float32 or float64) and never waits for the device.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn

from diffusion_lm.shapes import Float, Tensor

Time = Float[Tensor, "*n"]


class NoiseSchedule(nn.Module, ABC):
    """alpha(t), its derivative and its inverse. The ends `alpha_0` and `alpha_1` are declared by the variant."""

    alpha_0: float
    alpha_1: float
    learned: ClassVar[bool] = False
    """Whether it has parameters, which then have an optimiser group of their own and are never averaged."""

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

    def log_snr_prime(self, t: Time) -> Time:
        """d log_snr / d t, negative."""
        alpha = self.alpha(t)
        return self.alpha_prime(t) / (alpha * (1 - alpha))

    def within(self, log_snr_max: float, log_snr_min: float) -> "Ranged":
        """What of this schedule lies in a log-SNR range, run through as t goes from 0 to 1.

        Raises `ValueError` when nothing does.
        """
        return Cut(self, log_snr_max, log_snr_min)


class Ranged(NoiseSchedule):
    """A schedule over a finite log-SNR range. `log_snr_max` and `log_snr_min`: what it can never leave."""

    log_snr_max: float
    log_snr_min: float

    @abstractmethod
    def ends(self, like: Tensor) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """log_snr at t = 0 and at t = 1, float64, on the device of `like`."""

    def drawn(self, t: Time, row_scale: Callable[[], Time]) -> tuple[Time, Time]:
        """log_snr and log_snr_prime at the times of training rows, each row's own loss following from them.

        What a learned schedule passes on to the shape between its ends is the gradient that arrives at a row times
        `row_scale()` of this row, which is asked for in the backward pass; its ends get the gradient as it is.
        """
        return self.log_snr(t), self.log_snr_prime(t)


class Cut(Ranged):
    """The part of a fixed schedule that lies in a log-SNR range."""

    def __init__(self, schedule: NoiseSchedule, log_snr_max: float, log_snr_min: float) -> None:
        super().__init__(schedule.config)
        self.whole = schedule
        limits = torch.tensor([log_snr_max, log_snr_min], dtype=torch.float64, device="cpu")
        both = torch.sigmoid(limits).clamp(schedule.alpha_1, schedule.alpha_0)
        self.alpha_0, self.alpha_1 = (float(a) for a in both)
        if not self.alpha_0 > self.alpha_1:
            raise ValueError(
                f"the schedule's alpha lies in [{schedule.alpha_1:g}, {schedule.alpha_0:g}], outside the log-SNR range"
            )
        self.t_start, self.t_end = (float(v) for v in schedule.inverse(both))
        self.log_snr_max, self.log_snr_min = (math.log(a / (1 - a)) for a in (self.alpha_0, self.alpha_1))

    def alpha(self, t: Time) -> Time:
        return self.whole.alpha(self.t_start + (self.t_end - self.t_start) * t)

    def alpha_prime(self, t: Time) -> Time:
        scale = self.t_end - self.t_start
        return scale * self.whole.alpha_prime(self.t_start + scale * t)

    def inverse(self, alpha: Time) -> Time:
        return ((self.whole.inverse(alpha) - self.t_start) / (self.t_end - self.t_start)).clamp(0.0, 1.0)

    def ends(self, like: Tensor) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        # made on the device: a copy from the host would wait for it
        start, end = (
            torch.full((), v, dtype=torch.float64, device=like.device) for v in (self.log_snr_max, self.log_snr_min)
        )
        return start, end
