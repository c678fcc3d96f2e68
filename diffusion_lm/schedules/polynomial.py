"""polynomial: alpha(t) = 1 - t^exponent.

MD4's polynomial schedule (arXiv 2406.04329), with which the weight of the masked bound is exponent / t. With exponent
1 it is log_linear to alpha = 0; with more the text stays almost clean for longer.
"""

from dataclasses import dataclass

from diffusion_lm.schedules.base import NoiseSchedule, Time


@dataclass(kw_only=True, slots=True)
class PolynomialConfig:
    exponent: float = 2.0
    """Power of t."""

    def __post_init__(self) -> None:
        if not 1 <= self.exponent <= 10:
            raise ValueError(
                f"exponent: got {self.exponent}, expected 1 to 10 (below 1 alpha falls infinitely fast at t = 0)"
            )


class Polynomial(NoiseSchedule):
    """alpha falls from 1 to 0 as a power of t grows."""

    alpha_0, alpha_1 = 1.0, 0.0

    def alpha(self, t: Time) -> Time:
        return 1 - t**self.config.exponent

    def alpha_prime(self, t: Time) -> Time:
        return -self.config.exponent * t ** (self.config.exponent - 1)

    def inverse(self, alpha: Time) -> Time:
        return (1 - alpha) ** (1 / self.config.exponent)
