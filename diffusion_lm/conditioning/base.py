"""Conditioning: how the noise level (and a prompt's vector) reaches the blocks of a denoiser.

A conditioning makes one `Signal` per call of the network, and gives every branch of every block a `Modulation` that the
signal drives. Modulations start at zero, so that an untrained one changes nothing it should not. A conditioning may
also put positions of its own into the sequence while it is in the trunk: `extend` before the blocks, `strip` after.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from diffusion_lm.layers.noise_level import NoiseLevelEmbedding
from diffusion_lm.layers.noise_level import parameters as embedding_parameters
from diffusion_lm.noisy import Noisy
from diffusion_lm.shapes import Float, Given, Hidden, Tensor

Inner = Callable[[Float[Tensor, "B E D"]], Float[Tensor, "B E D"]]
"""A mixer or an MLP."""
Extended = Float[Tensor, "B E D"]
"""Activations with the positions that a conditioning adds."""


@dataclass(frozen=True)
class Signal:
    """noisy: [B, N, C], for positions that are predicted; clean: for the given ones, if there are any, [B, 1, C] or one
    per position.

    beside_clean: before the rows of `noisy` come as many clean ones, which all have `clean`'s one signal [1, 1, C].
    """

    noisy: Float[Tensor, "R N C"]
    clean: Float[Tensor, "Q M C"]
    given: Given | None
    beside_clean: bool = False


class Modulation(nn.Module):
    """`parts` values per channel and position, linear in the signal, zero at the start."""

    def __init__(self, channels: int, d_model: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.linear = nn.Linear(channels, parts * d_model)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def values(self, signal: Signal, length: int) -> list[tuple[Tensor, ...]]:
        """The parts, each [R, L or 1, D]: those of all rows, or those of the first half of them and of the second.

        Halves are told apart where a row is one position: the clean ones' parts beside as many of the noisy ones' would
        be a tensor several times as large as what they change.
        """
        value = self.linear(signal.noisy)
        if value.shape[1] > 1:
            value = value.repeat_interleave(length // value.shape[1], 1)
        halves = [value]
        if signal.beside_clean:
            halves = [self.linear(signal.clean), value]
            if length > 1:
                halves = [torch.cat((halves[0].expand_as(value), value))]
        if signal.given is not None:
            clean, given = self.linear(signal.clean), signal.given.unsqueeze(-1).chunk(len(halves))
            halves = [torch.where(own, clean, value) for own, value in zip(given, halves, strict=True)]
        return [value.chunk(self.parts, -1) for value in halves]


def modulated(change: Callable[..., Tensor], x: Hidden, values: list[tuple[Tensor, ...]]) -> Hidden:
    """change(x, *parts) of all rows, or of each half with its own parts."""
    if len(values) == 1:
        return change(x, *values[0])
    return torch.cat([change(half, *parts) for half, parts in zip(x.chunk(len(values)), values, strict=True)])


class Branch(nn.Module, ABC):
    """What happens around one branch (mixer or MLP) of a block."""

    @abstractmethod
    def forward(self, branch: Inner, x: Hidden, signal: Signal | None) -> Hidden:
        """The branch's contribution to the residual stream, for its normalised input x."""


class PlainBranch(Branch):
    """The branch alone."""

    def forward(self, branch: Inner, x: Hidden, signal: Signal | None) -> Hidden:
        return branch(x)


class ConditioningConfig:
    """What every conditioning's config can say without building it."""

    __slots__ = ()
    parts: ClassVar[int]
    """Values per channel and branch that the signal drives."""
    positions: ClassVar[int] = 0
    """Positions that it adds to the sequence, per noise level of a row."""
    channels: int

    def parameters(self, d_model: int, branches: int) -> int:
        """Number of parameters, for that many branches in the whole trunk."""
        modulation = self.parts * d_model * (self.channels + 1)
        return embedding_parameters(self.channels) + branches * modulation

    def check(self) -> None:
        """Raise `ValueError` for an impossible number of channels."""
        if self.channels < 1:
            raise ValueError(f"channels: got {self.channels}, expected at least 1")


class Conditioning(nn.Module, ABC):
    """Makes signals, and the branches that use them."""

    def __init__(self, config: Any, d_model: int) -> None:
        super().__init__()
        self.config = config
        self.d_model = d_model

    @abstractmethod
    def signal(self, noisy: Noisy, prompt: Float[Tensor, "B *L C"] | None = None) -> Signal | None:
        """The signal of one call; `prompt`, one per row or per position, is added to the noise level's embedding."""

    @abstractmethod
    def branch(self) -> Branch:
        """A new branch wrapper, with parameters of its own."""

    def extend(self, hidden: Hidden, signal: Signal | None) -> Extended:
        """The sequence that the blocks work on."""
        return hidden

    def strip(self, hidden: Extended, signal: Signal | None) -> Hidden:
        """The sequence without what `extend` put in."""
        return hidden


class EmbeddedNoiseLevel(Conditioning):
    """A conditioning whose signal is silu(embedding of the noise level + prompt)."""

    def __init__(self, config: Any, d_model: int) -> None:
        super().__init__(config, d_model)
        self.embedding = NoiseLevelEmbedding(config.channels)

    def signal(self, noisy: Noisy, prompt: Float[Tensor, "B *L C"] | None = None) -> Signal:
        level, beside_clean = noisy.noise_level, noisy.blocks is not None
        if beside_clean:  # those rows are alike: what they are told is computed once, not once per row
            level = level.chunk(2)[1]
        vector = self.embedding(level)
        clean = self.embedding(torch.zeros_like(level[:1, :1] if beside_clean else level[:, :1]))
        if prompt is not None:
            prompt = prompt.unsqueeze(1) if prompt.dim() == 2 else prompt
            vector, clean = vector + prompt, clean + prompt
        return Signal(nn.functional.silu(vector), nn.functional.silu(clean), noisy.given, beside_clean)
