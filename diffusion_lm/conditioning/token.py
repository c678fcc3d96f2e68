"""token: the noise level is a position of its own before the sequence, taken off after the trunk.

In-context conditioning (Peebles and Xie, arXiv 2212.09748, section 3.2): the blocks are not modulated. The token is a
learned vector plus a linear map, zero at the start, of the noise level's embedding (and the prompt's vector where a
denoiser has one). It carries the row's level; given positions, whose level is 0, are told apart by their marker alone.
A row with several levels has a token before each of its blocks. Attention sees the token from everywhere, and so does a
forward scan, which reads it first. A reverse scan reads it last: in the first layer it does not know the level, in the
later ones it does, through what the forward scan wrote.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from diffusion_lm.conditioning.base import ConditioningConfig, EmbeddedNoiseLevel, Extended, PlainBranch, Signal
from diffusion_lm.layers.noise_level import parameters as embedding_parameters
from diffusion_lm.shapes import Hidden


@dataclass(kw_only=True, slots=True)
class TokenConfig(ConditioningConfig):
    parts: ClassVar[int] = 0
    positions: ClassVar[int] = 1
    channels: int = 128
    """Width of the noise level's embedding."""

    def __post_init__(self) -> None:
        self.check()

    def parameters(self, d_model: int, branches: int) -> int:
        return embedding_parameters(self.channels) + (self.channels + 1) * d_model


class Token(EmbeddedNoiseLevel):
    """One position per noise level of a row."""

    def __init__(self, config: TokenConfig, d_model: int) -> None:
        super().__init__(config, d_model)
        self.project = nn.Linear(config.channels, d_model)
        nn.init.zeros_(self.project.weight)
        nn.init.normal_(self.project.bias, std=0.02)

    def branch(self) -> PlainBranch:
        return PlainBranch()

    def extend(self, hidden: Hidden, signal: Signal | None) -> Extended:
        assert signal is not None
        token = self.project(signal.noisy).to(hidden.dtype)
        blocks = hidden.unflatten(1, (token.shape[1], -1))
        return torch.cat((token.unsqueeze(2), blocks), 2).flatten(1, 2)

    def strip(self, hidden: Extended, signal: Signal | None) -> Hidden:
        assert signal is not None
        return hidden.unflatten(1, (signal.noisy.shape[1], -1))[:, :, 1:].flatten(1, 2)
