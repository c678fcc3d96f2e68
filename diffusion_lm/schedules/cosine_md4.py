"""cosine_md4: alpha(t) = 1 - cos(pi (1 - t) / 2).

The masked share is the sine of pi t / 2, MaskGIT's schedule (arXiv 2202.04200) in the time of MD4 (arXiv 2406.04329),
with which the weight of the masked bound is pi / 2 tan(pi (1 - t) / 2). It reaches t = 1 with slope 0: much time is
spent where hardly any token is left, so that sampling starts with small steps.
"""

import math
from dataclasses import dataclass

import torch

from diffusion_lm.schedules.base import NoiseSchedule, Time

RATE = math.pi / 2


@dataclass(kw_only=True, slots=True)
class CosineMd4Config:
    """The formula has nothing to set."""


class CosineMd4(NoiseSchedule):
    """alpha falls from 1 to 0 as one minus a cosine."""

    alpha_0, alpha_1 = 1.0, 0.0

    def alpha(self, t: Time) -> Time:
        # exact at both ends: 1 - cos(x) = 2 sin^2(x / 2) keeps its digits where alpha is small
        return torch.where(t < 0.5, 1 - torch.sin(RATE * t), 2 * torch.sin(RATE / 2 * (1 - t)) ** 2)

    def alpha_prime(self, t: Time) -> Time:
        return -RATE * torch.sin(RATE * (1 - t))

    def inverse(self, alpha: Time) -> Time:
        return (1 - torch.asin(torch.sqrt(alpha / 2)) * (2 / RATE)).clamp(0.0, 1.0)
