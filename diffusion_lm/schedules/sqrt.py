"""sqrt: alpha(t) = 1 - sqrt(s + (1 - s) t), s = 1e-4.

Diffusion-LM (arXiv 2205.14217, appendix A) for embedded text: noise grows fast at first, because a little of it does
not yet change the nearest token, and the start is noisy already, alpha(0) = 1 - sqrt(s). The paper's 1 - sqrt(t + s)
is below 0 at t = 1; here time is stretched by 1 - s, so that alpha ends at 0.
"""

from dataclasses import dataclass

import torch

from diffusion_lm.schedules.base import NoiseSchedule, Time


@dataclass(kw_only=True, slots=True)
class SqrtConfig:
    s: float = 1e-4
    """Square of the share of noise at t = 0."""

    def __post_init__(self) -> None:
        if not 1e-8 <= self.s < 1:
            raise ValueError(f"s: got {self.s}, expected 1e-8 <= s < 1 (at 0 alpha falls infinitely fast at t = 0)")


class Sqrt(NoiseSchedule):
    """1 - alpha grows as the square root of time."""

    alpha_1 = 0.0

    def __init__(self, config: SqrtConfig) -> None:
        super().__init__(config)
        self.alpha_0 = 1 - config.s**0.5

    def alpha(self, t: Time) -> Time:
        # 1 - r = (1 - r^2) / (1 + r): exactly 0 at t = 1
        return (1 - self.config.s) * (1 - t) / (1 + self._noise(t))

    def alpha_prime(self, t: Time) -> Time:
        return (self.config.s - 1) / (2 * self._noise(t))

    def inverse(self, alpha: Time) -> Time:
        return (((1 - alpha) ** 2 - self.config.s) / (1 - self.config.s)).clamp(0.0, 1.0)

    def _noise(self, t: Time) -> Time:
        """1 - alpha."""
        return torch.sqrt(self.config.s + (1 - self.config.s) * t)
