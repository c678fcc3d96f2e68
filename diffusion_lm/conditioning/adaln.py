"""adaln: shift, scale and gate of every branch from the noise level, zero at the start (AdaLN-Zero).

y = gate * branch(x * (1 + scale) + shift): Peebles and Xie (DiT, arXiv 2212.09748, section 3.2). With the gates at zero
an untrained trunk is the identity.
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
class AdalnConfig(ConditioningConfig):
    parts: ClassVar[int] = 3
    channels: int = 128
    """Width of the noise level's embedding."""

    def __post_init__(self) -> None:
        self.check()


class AdalnBranch(Branch):
    """Shift and scale before the branch, gate after it."""

    def __init__(self, channels: int, d_model: int) -> None:
        super().__init__()
        self.modulation = Modulation(channels, d_model, 3)

    def forward(self, branch: Inner, x: Hidden, signal: Signal | None) -> Hidden:
        assert signal is not None
        values = self.modulation.values(signal, x.shape[1])
        y = branch(modulated(lambda x, shift, scale, _: torch.addcmul(shift, x, 1 + scale), x, values))
        return modulated(lambda y, shift, scale, gate: gate * y, y, values)


class Adaln(EmbeddedNoiseLevel):
    """AdaLN-Zero."""

    def branch(self) -> AdalnBranch:
        return AdalnBranch(self.config.channels, self.d_model)
