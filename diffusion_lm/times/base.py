"""Time samplers: how the times of training are drawn. The reported bound never sees them.

A time sampler gives every row of a global batch one time and 1 / its density, the density being relative to uniform on
the range [low, high]. So the mean of weight x loss is the mean of the loss over that range, whatever the sampler. With
the whole range, [0, 1], it estimates the bound. A clipped range (BD3-LM, arXiv 2503.09573) is another
training loss, whose gradient may vary less; the validation bound stays that of all noise levels. `clipped` searches it.

Times depend on (seed, position in the training order, global batch) only. Every optimiser step covers the range evenly:
cut into as many equal strata of probability as the global batch has rows, each stratum gets exactly one. Which row gets
which is shuffled at every step: ranks that always had the same strata would train on one band of noise each.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from diffusion_lm.shapes import Float, Positions, Tensor


@dataclass(kw_only=True, slots=True)
class RangeConfig:
    """What all time samplers have."""

    low: float = 0.0
    """Start of the range that is trained on, as a share of the objective's own times."""
    high: float = 1.0
    """Its end."""

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"range: got low {self.low} and high {self.high}, expected 0 <= low < high <= 1")


class TimeSampler(ABC):
    """One time per row. low, high: the range now."""

    searches: ClassVar[bool] = False
    """Whether the range moves while training goes on."""

    def __init__(self, config: RangeConfig) -> None:
        self.config = config
        self.low, self.high = config.low, config.high

    def check(self, global_batch: int) -> None:  # noqa: B027 - most take any
        """Raises `ValueError` for a global batch that it cannot serve."""

    @abstractmethod
    def draw(self, position: Positions, global_batch: int, seed: int) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
        """Times in [low, high] and 1 / their density, float64."""

    def in_range(self, share: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
        """The time that has this share of the range below it."""
        return (self.low + (self.high - self.low) * share).clamp(self.low, self.high)

    def evenly(self, share: Float[Tensor, "B"]) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
        """What `draw` returns where the density is constant."""
        return self.in_range(share), torch.ones_like(share)
