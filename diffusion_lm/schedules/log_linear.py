"""log_linear: alpha(t) = 1 - (1 - eps) t.

The total noise -ln alpha of a masked process grows as -ln(1 - (1 - eps) t), hence the name (SEDD, arXiv 2310.16834,
appendix C; MDLM, arXiv 2406.07524, section 5). With it the weight of the masked bound is exactly 1 / t.
"""

from dataclasses import dataclass

from diffusion_lm.schedules.base import NoiseSchedule, Time


@dataclass(kw_only=True, slots=True)
class LogLinearConfig:
    eps: float = 1e-3
    """alpha at t = 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.eps < 1:
            raise ValueError(f"eps: got {self.eps}, expected 0 <= eps < 1")


class LogLinear(NoiseSchedule):
    """alpha falls linearly in t from 1 to eps."""

    def __init__(self, config: LogLinearConfig) -> None:
        super().__init__(config)
        self.alpha_0, self.alpha_1 = 1.0, config.eps

    def alpha(self, t: Time) -> Time:
        return 1 - (1 - self.config.eps) * t

    def alpha_prime(self, t: Time) -> Time:
        return (t * 0) - (1 - self.config.eps)

    def inverse(self, alpha: Time) -> Time:
        return (1 - alpha) / (1 - self.config.eps)
