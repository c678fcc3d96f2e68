"""none: the network is not told the noise level.

A masked state shows its own noise level, so masked diffusion loses little (MDLM trains its language models this way).
"""

from dataclasses import dataclass
from typing import ClassVar

from diffusion_lm.conditioning.base import Conditioning, ConditioningConfig, PlainBranch
from diffusion_lm.noisy import Noisy
from diffusion_lm.shapes import Float, Tensor


@dataclass(kw_only=True, slots=True)
class UnconditionedConfig(ConditioningConfig):
    parts: ClassVar[int] = 0
    channels: ClassVar[int] = 0

    def parameters(self, d_model: int, branches: int) -> int:
        return 0


class Unconditioned(Conditioning):
    """No conditioning."""

    def signal(self, noisy: Noisy, prompt: Float[Tensor, "B C"] | None = None) -> None:
        return None

    def branch(self) -> PlainBranch:
        return PlainBranch()
