"""cosine: alpha(t) = f(t) / f(0), f(t) = cos^2( (t + s) / (1 + s) * pi / 2 ), s = 0.008.

Nichol and Dhariwal, "Improved denoising diffusion probabilistic models" (arXiv 2102.09672), equation 17, as DIMBA uses
it. The division by f(0) makes alpha(0) = 1; the authors' code leaves it out. s was tuned to 8-bit pixels and has no
meaning for embeddings.
"""

import math
from dataclasses import dataclass

import torch

from diffusion_lm.schedules.base import NoiseSchedule, Time


@dataclass(kw_only=True, slots=True)
class CosineConfig:
    s: float = 0.008
    """Offset that keeps the first steps from being too small."""

    def __post_init__(self) -> None:
        if not 0 <= self.s <= 1e6:
            raise ValueError(f"s: got {self.s}, expected 0 <= s <= 1e6 (by then alpha is (1 - t)^2)")


class Cosine(NoiseSchedule):
    """alpha falls from 1 to 0 along a squared cosine."""

    alpha_0, alpha_1 = 1.0, 0.0

    def __init__(self, config: CosineConfig) -> None:
        super().__init__(config)
        self.rate = math.pi / 2 / (1 + config.s)
        # sin of the distance to the end instead of cos, here too: exactly 0 at t = 1, and exact for any s
        self.first = math.sin(self.rate)

    def alpha(self, t: Time) -> Time:
        return ((torch.sin(self.rate * (1 - t)) / self.first) ** 2).clamp(max=1.0)

    def alpha_prime(self, t: Time) -> Time:
        angle = self.rate * (1 - t)
        return -2 * (self.rate / self.first) * (torch.sin(angle) / self.first) * torch.cos(angle)

    def inverse(self, alpha: Time) -> Time:
        return (1 - torch.asin((torch.sqrt(alpha) * self.first).clamp(max=1.0)) / self.rate).clamp(min=0.0)
