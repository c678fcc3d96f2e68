"""stratified: one time in each of N equal strata of the range, N rows in the global batch, all at the same place of it.

t = (u + pi(slot) / N) mod 1, with one u and one permutation pi per optimiser step, the same on all devices (the shared
offset is VDM's, arXiv 2107.00630; the permutation keeps devices from bands of their own).
"""

from dataclasses import dataclass

from diffusion_lm.random import stratified_times
from diffusion_lm.shapes import Float, Positions, Tensor
from diffusion_lm.times.base import RangeConfig, TimeSampler


@dataclass(kw_only=True, slots=True)
class StratifiedConfig(RangeConfig):
    """Nothing but the range."""


class Stratified(TimeSampler):
    """Evenly spaced times."""

    def draw(self, position: Positions, global_batch: int, seed: int) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
        return self.evenly(stratified_times(position, global_batch, seed))
