"""half_cosine: alpha(t) = eps + (1 - eps) cos(pi t / 2).

A quarter of a cosine's period, not squared: the schedule called cosine in MDLM's code (arXiv 2406.07524), eps = 1e-3.
It leaves t = 0 with slope 0: text stays almost clean for a long time.
"""

import math
from dataclasses import dataclass

import torch

from diffusion_lm.schedules.base import NoiseSchedule, Time

RATE = math.pi / 2


@dataclass(kw_only=True, slots=True)
class HalfCosineConfig:
    eps: float = 1e-3
    """alpha at t = 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.eps < 1:
            raise ValueError(f"eps: got {self.eps}, expected 0 <= eps < 1")


class HalfCosine(NoiseSchedule):
    """alpha falls from 1 to eps along a cosine."""

    def __init__(self, config: HalfCosineConfig) -> None:
        super().__init__(config)
        self.alpha_0, self.alpha_1 = 1.0, config.eps

    def alpha(self, t: Time) -> Time:
        # the sine of the distance to the end: cos(pi / 2) is not 0 in floating point, and below it in float32
        return self.config.eps + (1 - self.config.eps) * torch.sin(RATE * (1 - t))

    def alpha_prime(self, t: Time) -> Time:
        return -RATE * (1 - self.config.eps) * torch.sin(RATE * t)

    def inverse(self, alpha: Time) -> Time:
        cosine = ((alpha - self.config.eps) / (1 - self.config.eps)).clamp(0.0, 1.0)
        missing = (1 - alpha) / (1 - self.config.eps)  # 1 - cosine, without its rounding
        return torch.atan2(torch.sqrt((missing * (1 + cosine)).clamp(min=0.0)), cosine) / RATE
