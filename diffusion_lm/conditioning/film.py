"""film: scale and shift of every branch's input from the noise level and the prompt, without a gate.

y = branch(x * (1 + scale) + shift): Perez et al. (FiLM, arXiv 1709.07871); one of DIMBA's two choices (section 3.2.5).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from diffusion_lm.conditioning.base import (
    Branch,
    ConditioningConfig,
    EmbeddedNoiseLevel,
    Inner,
    Modulation,
    Signal,
    modulated,
)
from diffusion_lm.shapes import Hidden


@dataclass(kw_only=True, slots=True)
class FilmConfig(ConditioningConfig):
    parts: ClassVar[int] = 2
    channels: int = 128
    """Width of the noise level's embedding."""

    def __post_init__(self) -> None:
        self.check()


class FilmBranch(Branch):
    """Scale and shift before the branch."""

    def __init__(self, channels: int, d_model: int) -> None:
        super().__init__()
        self.modulation = Modulation(channels, d_model, 2)

    def forward(self, branch: Inner, x: Hidden, signal: Signal | None) -> Hidden:
        assert signal is not None
        values = self.modulation.values(signal, x.shape[1])
        return branch(modulated(lambda x, shift, scale: torch.addcmul(shift, x, 1 + scale), x, values))


class Film(EmbeddedNoiseLevel):
    """Feature-wise linear modulation."""

    def branch(self) -> FilmBranch:
        return FilmBranch(self.config.channels, self.d_model)
