"""sigma_linear: alpha(t) = exp(-sigma(t)), sigma(t) = sigma_min + (sigma_max - sigma_min) t.

The total noise sigma = -ln alpha grows linearly, that is, tokens jump at a constant rate: the schedule called linear
in MDLM's code and ablation (arXiv 2406.07524), sigma from 0 to 10. Half of the time is spent where less than
exp(-sigma_max / 2) of the tokens is left. With sigma_min > 0 the text of t = 0 is noisy already.
"""

import math
from dataclasses import dataclass

import torch

from diffusion_lm.schedules.base import NoiseSchedule, Time


@dataclass(kw_only=True, slots=True)
class SigmaLinearConfig:
    sigma_min: float = 0.0
    """-ln alpha at t = 0."""
    sigma_max: float = 10.0
    """-ln alpha at t = 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.sigma_min < self.sigma_max <= 80:
            raise ValueError(
                f"sigma range: got {self.sigma_min} to {self.sigma_max}, expected 0 <= sigma_min < sigma_max <= 80 "
                "(exp(-80) is about the smallest float32)"
            )


class SigmaLinear(NoiseSchedule):
    """alpha falls exponentially."""

    def __init__(self, config: SigmaLinearConfig) -> None:
        super().__init__(config)
        self.rate = config.sigma_max - config.sigma_min
        self.alpha_0, self.alpha_1 = math.exp(-config.sigma_min), math.exp(-config.sigma_max)

    def alpha(self, t: Time) -> Time:
        return torch.exp(-self._sigma(t))

    def alpha_prime(self, t: Time) -> Time:
        return -self.rate * self.alpha(t)

    def inverse(self, alpha: Time) -> Time:
        return ((-torch.log(alpha) - self.config.sigma_min) / self.rate).clamp(0.0, 1.0)

    def log_snr(self, t: Time) -> Time:
        return -torch.log(torch.expm1(self._sigma(t)))

    def _sigma(self, t: Time) -> Time:
        return self.config.sigma_min + self.rate * t
