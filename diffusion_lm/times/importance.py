"""importance: times of a density proportional to 1 / t^power, stratified in probability.

The weight is 1 / density. The weight of the masked bound under log_linear is 1 / t, so that with power 1 all rows weigh
the same (MDLM, arXiv 2406.07524, whose change of variables this is), and small times get many rows. That evens out
the weights, not what they multiply: the sum over the masked tokens grows with t about as the weight falls, and where it
does, the loss of a step varies least with uniform times. It pays where a row's loss does not shrink with t.

t is here the objective's own time t_min + (1 - t_min) v, v being the share of its times that `low` and `high` clip.
"""

import math
from dataclasses import dataclass

import torch

from diffusion_lm.random import stratified_times
from diffusion_lm.shapes import Float, Positions, Tensor
from diffusion_lm.times.base import RangeConfig, TimeSampler


@dataclass(kw_only=True, slots=True)
class ImportanceConfig(RangeConfig):
    power: float = 1.0
    """Of 1 / t in the density."""
    t_min: float = 1e-3
    """The objective's smallest time."""

    def __post_init__(self) -> None:
        RangeConfig.__post_init__(self)  # super() does not find its class under slots=True
        if not 0 < self.power <= 4:
            raise ValueError(f"power: got {self.power}, expected more than 0 and at most 4")
        if not 1e-12 <= self.t_min < 1:
            raise ValueError(f"t_min: got {self.t_min}, expected 1e-12 <= t_min < 1 (1 / t has no integral from 0)")


class Importance(TimeSampler):
    """Times by a power law."""

    def __init__(self, config: ImportanceConfig) -> None:
        super().__init__(config)
        self.start, self.end = (config.t_min + (1 - config.t_min) * v for v in (config.low, config.high))
        # with y = ln t the density is exp(-rate y): one formula for all powers, rate 0 (power 1) as its limit
        self.rate, self.span = config.power - 1, math.log(self.end / self.start)

    def draw(self, position: Positions, global_batch: int, seed: int) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
        t = self.start * torch.exp(self._log_ratio(stratified_times(position, global_batch, seed)))
        share = (t - self.start) / (self.end - self.start)
        return self.in_range(share), (t / self.start) ** self.config.power * self._mean_density()

    def _log_ratio(self, share: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
        """ln(t / start) of the time with that share of the probability below it."""
        if self.rate == 0:
            return self.span * share
        return -torch.log1p(share * math.expm1(-self.rate * self.span)) / self.rate

    def _mean_density(self) -> float:
        """Mean of (start / t)^power over the range."""
        integral = self.span if self.rate == 0 else -math.expm1(-self.rate * self.span) / self.rate
        return integral * self.start / (self.end - self.start)
