"""additive: a vector made from the noise level and the prompt is added to every branch's input.

y = branch(x + shift): the other of DIMBA's two choices (section 3.2.5).
"""

from dataclasses import dataclass
from typing import ClassVar

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
class AdditiveConfig(ConditioningConfig):
    parts: ClassVar[int] = 1
    channels: int = 128
    """Width of the noise level's embedding."""

    def __post_init__(self) -> None:
        self.check()


class AdditiveBranch(Branch):
    """Shift before the branch."""

    def __init__(self, channels: int, d_model: int) -> None:
        super().__init__()
        self.modulation = Modulation(channels, d_model, 1)

    def forward(self, branch: Inner, x: Hidden, signal: Signal | None) -> Hidden:
        assert signal is not None
        return branch(modulated(lambda x, shift: x + shift, x, self.modulation.values(signal, x.shape[1])))


class Additive(EmbeddedNoiseLevel):
    """Additive conditioning."""

    def branch(self) -> AdditiveBranch:
        return AdditiveBranch(self.config.channels, self.d_model)
