"""Embedding of the noise level: sinusoids, then a two-layer MLP."""

import math

import torch
from torch import nn

from diffusion_lm.precision import wide
from diffusion_lm.shapes import Float, Tensor

FREQUENCIES = 32


class NoiseLevelEmbedding(nn.Module):
    """A vector for every noise level in [0, 1]; periods run geometrically from 4 down to 1/64 of the range."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        frequency = torch.exp(torch.linspace(math.log(0.25), math.log(64.0), FREQUENCIES)) * 2 * math.pi
        self.register_buffer("frequency", frequency, persistent=False)
        self.hidden = nn.Linear(2 * FREQUENCIES, channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, level: Float[Tensor, "B N"]) -> Float[Tensor, "B N C"]:
        angle = level.to(wide(self.frequency).dtype).unsqueeze(-1) * self.frequency
        return self.out(nn.functional.silu(self.hidden(torch.cat((angle.cos(), angle.sin()), -1))))


def parameters(channels: int) -> int:
    """Parameters of an embedding with that many channels."""
    return 2 * FREQUENCIES * channels + channels + channels * channels + channels
