"""Learning-rate schedules: the share of the peak learning rate at every step.

All begin with the same linear warm-up, whose first step is not 0; a variant says what comes after it.
"""

from abc import ABC, abstractmethod
from typing import Any


class LrScheduleConfig:
    """What every schedule's config can say without building it."""

    __slots__ = ()

    def check(self, steps: int, warmup_steps: int) -> None:
        """Raise `ValueError` when the schedule has no room in a run of that many steps."""

    def falls(self) -> bool:
        """Whether it ends at the floor."""
        return True


class LrSchedule(ABC):
    """factor(step). `floor`: the share at the end, of schedules that fall."""

    def __init__(self, config: Any, steps: int, warmup_steps: int, floor: float) -> None:
        self.config = config
        self.steps, self.warmup_steps, self.floor = steps, warmup_steps, floor

    def factor(self, step: int) -> float:
        """Share of the peak learning rate at a step counted from 0."""
        return (step + 1) / self.warmup_steps if step < self.warmup_steps else self.after_warmup(step)

    @abstractmethod
    def after_warmup(self, step: int) -> float:
        """The share at a step that the warm-up does not reach."""
