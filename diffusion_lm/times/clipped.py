"""clipped: evenly spaced times in a part of the range that is searched for while training goes on.

Small blocks make the loss of a step vary much: most of it comes from times at which all or nothing of a block is noise.
At each validation the range [low, high] of a grid is taken whose training loss, with the bound's own weights, varies
least over validation blocks, and training goes on in it (BD3-LM, arXiv 2503.09573, section 5.2). `low` and `high` say
where it begins. The validation bound is over all noise levels. The search is in `training/clip_search.py`.
"""

from dataclasses import dataclass
from typing import Any

from diffusion_lm.random import stratified_times
from diffusion_lm.shapes import Float, Positions, Tensor
from diffusion_lm.times.base import RangeConfig, TimeSampler


@dataclass(kw_only=True, slots=True)
class ClippedConfig(RangeConfig):
    widths: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    """Of the ranges that are tried."""
    step: float = 0.05
    """Distance of their starts."""
    draws: int = 8
    """Times at which the loss of each validation block is taken in a search."""

    def __post_init__(self) -> None:
        RangeConfig.__post_init__(self)  # super() does not find its class under slots=True
        if not self.widths or not all(0 < width <= 1 for width in self.widths):
            raise ValueError(f"widths: got {list(self.widths)}, expected numbers above 0 and at most 1, like [0.5, 1]")
        if not 0.001 <= self.step <= 1:
            raise ValueError(f"step: got {self.step}, expected 0.001 to 1")
        if self.draws < 1:
            raise ValueError(f"draws: got {self.draws}, expected at least 1")

    def unused(self, experiment: Any) -> dict[str, str]:
        """All of it, where there is no validation before the end."""
        training = experiment.training
        if 0 < training.val_every < training.steps:
            return {}
        why = f"with training.val_every {training.val_every} and {training.steps} steps no validation finds a range"
        return {"times": f"{why} to train on"}


class Clipped(TimeSampler):
    """Evenly spaced times in a range that moves."""

    searches = True

    def ranges(self) -> list[tuple[float, float]]:
        """What is tried: the widest first, from the start on."""
        found = []
        for width in sorted(set(self.config.widths), reverse=True):
            count = 1 + int((1 - width) / self.config.step + 1e-9)
            starts = [round(number * self.config.step, 9) for number in range(count)]
            found += [(low, min(round(low + width, 9), 1.0)) for low in starts]
        return found

    def draw(self, position: Positions, global_batch: int, seed: int) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
        return self.evenly(stratified_times(position, global_batch, seed))
