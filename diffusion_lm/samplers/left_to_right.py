"""left_to_right: one token after the other, each from its exact conditional distribution.

As many network calls as tokens, each over the whole sequence.
"""

from dataclasses import dataclass
from typing import ClassVar

from diffusion_lm.samplers.ancestral import Ancestral
from diffusion_lm.samplers.base import SamplerState
from diffusion_lm.shapes import Times


@dataclass(kw_only=True, slots=True)
class LeftToRightConfig:
    """Nothing to set: the number of steps is the number of tokens, and every call sees the prompt."""

    guidance: ClassVar[float] = 0.0


class LeftToRight(Ancestral):
    """The reverse chain with one position per step."""

    processes = ("left_to_right",)

    def times(self, state: SamplerState) -> tuple[Times, Times]:
        index, length = state.index.double().unsqueeze(1), state.x.shape[1]
        return 1 - index / length, 1 - (index + 1) / length

    def done(self, state: SamplerState) -> bool:
        return bool((state.index >= state.x.shape[1]).all())
