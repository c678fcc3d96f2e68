"""The plain trunk: a conditioning and a stack of blocks. Transformer, Mamba and hybrid are this with other mixers."""

from typing import Any

from diffusion_lm.config import build
from diffusion_lm.denoisers.base import Denoiser
from diffusion_lm.layers.stack import Stack
from diffusion_lm.noisy import Noisy
from diffusion_lm.shapes import Hidden


class Trunk(Denoiser):
    """Blocks whose mixers the config lists."""

    def __init__(self, config: Any, d_model: int) -> None:
        super().__init__(config, d_model)
        self.conditioning = build(config.conditioning, d_model)
        self.stack = Stack(list(config.mixers()), d_model, config.mlp_expansion, self.conditioning)

    def forward(self, hidden: Hidden, noisy: Noisy) -> Hidden:
        signal = self.conditioning.signal(noisy)
        return self.conditioning.strip(self.stack(self.conditioning.extend(hidden, signal), signal), signal)
