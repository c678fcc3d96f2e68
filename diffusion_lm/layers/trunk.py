"""The trunk of every denoiser: a conditioning and a stack of blocks. What differs is the mixers, and DIMBA's prompt.

The residual stream is float32 or better whatever the precision of the products.
"""

from typing import Any

from diffusion_lm.config import build, name_of
from diffusion_lm.denoisers.base import Denoiser
from diffusion_lm.layers.stack import Stack
from diffusion_lm.noisy import Noisy, context_of
from diffusion_lm.precision import wide
from diffusion_lm.shapes import Float, Hidden, Tensor


class Trunk(Denoiser):
    """Blocks whose mixers the config lists."""

    def __init__(self, config: Any, d_model: int) -> None:
        super().__init__(config, d_model)
        self.conditioning = build(config.conditioning, d_model)
        self.stack = Stack(config, d_model, self.conditioning)

    def forward(self, hidden: Hidden, noisy: Noisy) -> Hidden:
        if noisy.segment is not None and self.config.conditioning.positions:
            raise TypeError(f"conditioning {name_of(self.config.conditioning)}: its positions belong to no document")
        signal = self.conditioning.signal(noisy, self.prompt(hidden, noisy))
        extended = self.conditioning.extend(wide(hidden), signal)
        return self.conditioning.strip(self.stack(extended, signal, context_of(noisy)), signal)

    def prompt(self, hidden: Hidden, noisy: Noisy) -> Float[Tensor, "B *L C"] | None:
        """What the conditioning is told of the prompt, one vector per row or per position; None without an encoder."""
        return None
