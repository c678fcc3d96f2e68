"""constant: the peak, to the end. MDLM's (arXiv 2406.07524, appendix)."""

from dataclasses import dataclass

from diffusion_lm.lr_schedules.base import LrSchedule, LrScheduleConfig


@dataclass(kw_only=True, slots=True)
class ConstantConfig(LrScheduleConfig):
    pass


class Constant(LrSchedule):
    """Never falls; the run's `min_lr` is not used."""

    def after_warmup(self, step: int) -> float:
        return 1.0
