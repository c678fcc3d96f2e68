"""adaln_sigma: AdaLN-Zero that is told the total noise sigma = -ln alpha, as the published masked diffusion models are.

The embedding is cos and sin of sigma * 10000^(-i / 128), i = 0 .. 127, then a two-layer MLP (SEDD, arXiv 2310.16834;
MDLM, arXiv 2406.07524; BD3-LM, arXiv 2503.09573; Duo, arXiv 2506.10892: one transformer). MDLM and BD3-LM say sigma = 0
at every noise level (`time_conditioning` false): a masked state shows its level itself. alpha falls to 0 here and never
below `smallest_alpha` there, where sigma stays.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from diffusion_lm.conditioning.adaln import Adaln
from diffusion_lm.conditioning.base import ConditioningConfig
from diffusion_lm.precision import wide
from diffusion_lm.shapes import Float, Tensor

FREQUENCIES = 128


@dataclass(kw_only=True, slots=True)
class AdalnSigmaConfig(ConditioningConfig):
    parts: ClassVar[int] = 3
    channels: int = 128
    """Width of the noise level's embedding."""
    time_conditioning: bool = True
    """Tell the noise level; without it the blocks are told sigma = 0 always."""
    smallest_alpha: float = 1e-3
    """sigma is at most -ln of this."""

    def __post_init__(self) -> None:
        self.check()
        if not 0 < self.smallest_alpha < 1:
            raise ValueError(f"smallest_alpha: got {self.smallest_alpha}, expected more than 0 and less than 1")

    def parameters(self, d_model: int, branches: int) -> int:
        embedding = (2 * FREQUENCIES + 1) * self.channels + (self.channels + 1) * self.channels
        return embedding + branches * self.parts * d_model * (self.channels + 1)


class SigmaEmbedding(nn.Module):
    """A vector for the total noise that belongs to a noise level 1 - alpha."""

    def __init__(self, config: AdalnSigmaConfig) -> None:
        super().__init__()
        self.config = config
        frequency = torch.exp(torch.arange(FREQUENCIES) * (-math.log(10_000) / FREQUENCIES))
        self.register_buffer("frequency", frequency, persistent=False)
        self.hidden = nn.Linear(2 * FREQUENCIES, config.channels)
        self.out = nn.Linear(config.channels, config.channels)

    def forward(self, level: Float[Tensor, "B N"]) -> Float[Tensor, "B N C"]:
        sigma = -torch.log1p(-level.clamp(max=1 - self.config.smallest_alpha))
        sigma = sigma if self.config.time_conditioning else torch.zeros_like(sigma)
        angle = sigma.to(wide(self.frequency).dtype).unsqueeze(-1) * self.frequency
        return self.out(nn.functional.silu(self.hidden(torch.cat((angle.cos(), angle.sin()), -1))))


class AdalnSigma(Adaln):
    """AdaLN-Zero over an embedding of sigma."""

    def __init__(self, config: AdalnSigmaConfig, d_model: int) -> None:
        super().__init__(config, d_model)
        self.embedding = SigmaEmbedding(config)
