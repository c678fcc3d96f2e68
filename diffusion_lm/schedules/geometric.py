"""geometric: alpha(t) = exp(-sigma(t)), sigma(t) = sigma_min^(1 - t) sigma_max^t.

The total noise sigma = -ln alpha grows by the same factor in equal times (SEDD, arXiv 2310.16834, whose code has these
defaults; variance-exploding diffusion has the same schedule). sigma is never 0: at t = 0 a share 1 - exp(-sigma_min)
of the tokens is replaced already, and a bound in steps has a reconstruction term.
"""

import math
from dataclasses import dataclass

import torch

from diffusion_lm.schedules.base import NoiseSchedule, Time


@dataclass(kw_only=True, slots=True)
class GeometricConfig:
    sigma_min: float = 1e-4
    """-ln alpha at t = 0."""
    sigma_max: float = 20.0
    """-ln alpha at t = 1."""

    def __post_init__(self) -> None:
        if not 1e-6 <= self.sigma_min < self.sigma_max <= 80:
            raise ValueError(
                f"sigma range: got {self.sigma_min} to {self.sigma_max}, expected 1e-6 <= sigma_min < sigma_max <= 80 "
                "(of less noise a float32 alpha shows nothing, and exp(-80) is about the smallest float32)"
            )


class Geometric(NoiseSchedule):
    """-ln alpha grows exponentially."""

    def __init__(self, config: GeometricConfig) -> None:
        super().__init__(config)
        self.growth = math.log(config.sigma_max / config.sigma_min)
        self.alpha_0, self.alpha_1 = math.exp(-config.sigma_min), math.exp(-config.sigma_max)

    def alpha(self, t: Time) -> Time:
        return torch.exp(-self._sigma(t))

    def alpha_prime(self, t: Time) -> Time:
        sigma = self._sigma(t)
        return -self.growth * sigma * torch.exp(-sigma)

    def inverse(self, alpha: Time) -> Time:
        return (torch.log(-torch.log(alpha) / self.config.sigma_min) / self.growth).clamp(0.0, 1.0)

    def log_snr(self, t: Time) -> Time:
        return -torch.log(torch.expm1(self._sigma(t)))

    def _sigma(self, t: Time) -> Time:
        return self.config.sigma_min * torch.exp(self.growth * t)
