"""wsd: warm-up, stable, decay. The peak until the last `decay_share` of the run, then down to the floor.

Hu et al. (MiniCPM, arXiv 2404.06395, section 4.2). With d in [0, 1) the share of the decay that is done, the fall is
1 - d, (1 + cos(pi d)) / 2 or 1 - sqrt(d); the last was best in Haegele et al. (arXiv 2405.18392, section 3).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from diffusion_lm.config import choice
from diffusion_lm.lr_schedules.base import LrSchedule, LrScheduleConfig

SHAPES: dict[str, Callable[[float], float]] = {
    "sqrt": lambda d: 1 - math.sqrt(d),
    "linear": lambda d: 1 - d,
    "cosine": lambda d: 0.5 * (1 + math.cos(math.pi * d)),
}


@dataclass(kw_only=True, slots=True)
class WsdConfig(LrScheduleConfig):
    decay_share: float = 0.2
    """Share of all steps in which the rate falls, at the end."""
    shape: str = choice(*SHAPES)
    """Of the fall."""

    def __post_init__(self) -> None:
        if not 0 <= self.decay_share <= 1:
            raise ValueError(f"decay_share: got {self.decay_share}, expected 0 to 1")

    def decay_steps(self, steps: int) -> int:
        """Steps in which the rate falls."""
        return round(self.decay_share * steps)

    def falls(self) -> bool:
        return self.decay_share > 0

    def check(self, steps: int, warmup_steps: int) -> None:
        falling = self.decay_steps(steps)
        if warmup_steps + falling > steps:
            raise ValueError(
                f"lr_schedule wsd: got {warmup_steps} steps of warm-up and {falling} of decay in {steps} steps; "
                "expected room for both, with a lower warmup_steps or decay_share"
            )


class Wsd(LrSchedule):
    """Flat, then one fall."""

    def after_warmup(self, step: int) -> float:
        falling = self.config.decay_steps(self.steps)
        done = step - (self.steps - falling)
        if done <= 0:
            return 1.0
        fall = SHAPES[self.config.shape](min(1.0, done / falling)) if falling else 0.0
        return self.floor + (1 - self.floor) * fall
