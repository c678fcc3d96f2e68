"""cosine: floor + (1 - floor) (1 + cos(pi p)) / 2, p the share of the steps after the warm-up that are done.

Loshchilov and Hutter (arXiv 1608.03983), equation 5, without restarts.
"""

import math
from dataclasses import dataclass

from diffusion_lm.lr_schedules.base import LrSchedule, LrScheduleConfig


@dataclass(kw_only=True, slots=True)
class CosineConfig(LrScheduleConfig):
    pass


class Cosine(LrSchedule):
    """Half a period, from the peak to the floor."""

    def after_warmup(self, step: int) -> float:
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
