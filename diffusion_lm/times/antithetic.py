"""antithetic: pairs of times t and low + high - t, one of each in every one of N equal strata of the range.

With u and the permutation pi of the step, place k = pi(slot) of N has t = (k + u) / N in the lower half and
(k + 1 - u) / N in the upper one, so that the times of places k and N - 1 - k sum to 1 (antithetic variates: Hammersley
and Morton, 1956). A loss that is linear in t then has the same sum at every step, where `stratified` leaves the scatter
of the shared offset. Needs an even global batch.
"""

from dataclasses import dataclass

import torch

from diffusion_lm.random import shuffled_places
from diffusion_lm.shapes import Float, Positions, Tensor
from diffusion_lm.times.base import RangeConfig, TimeSampler


@dataclass(kw_only=True, slots=True)
class AntitheticConfig(RangeConfig):
    """Nothing but the range."""


class Antithetic(TimeSampler):
    """Times in mirrored pairs."""

    def check(self, global_batch: int) -> None:
        if global_batch % 2:
            raise ValueError(
                f"times 'antithetic': got a global batch of {global_batch}, expected an even number, for times in "
                "pairs; set another training.batch_size, or times=stratified"
            )

    def draw(self, position: Positions, global_batch: int, seed: int) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
        offset, place = shuffled_places(position, global_batch, seed)
        offset = torch.where(place < global_batch // 2, offset, 1 - offset)
        return self.evenly((place + offset) / global_batch)
