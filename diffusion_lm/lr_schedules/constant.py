"""constant: the peak, to the end. MDLM's (arXiv 2406.07524, appendix)."""

from dataclasses import dataclass

from diffusion_lm.lr_schedules.base import LrSchedule, LrScheduleConfig


@dataclass(kw_only=True, slots=True)
class ConstantConfig(LrScheduleConfig):
    def falls(self) -> bool:
        return False


class Constant(LrSchedule):
    """Never falls; `min_lr` away from its default is refused."""

    def after_warmup(self, step: int) -> float:
        return 1.0
