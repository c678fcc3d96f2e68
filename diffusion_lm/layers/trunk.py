"""The trunk of every denoiser: a conditioning and a stack of blocks. What differs is the mixers, and DIMBA's prompt.

The residual stream is float32 or better whatever the precision of the products.
"""

from typing import Any

import torch
from torch.nn import functional as F

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
        if noisy.blocks is not None and not all(mixer.exact_cache for mixer in self.config.mixers()):
            return self._over_texts(hidden, noisy)
        signal = self.conditioning.signal(noisy, self.prompt(hidden, noisy))
        extended = self.conditioning.extend(wide(hidden), signal)
        return self.conditioning.strip(self.stack(extended, signal, context_of(noisy)), signal)

    def _over_texts(self, hidden: Hidden, noisy: Noisy) -> Hidden:
        """Clean rows and noisy ones where a mixer looks at the clean blocks otherwise than through a cache: every noisy
        block in a pass of its own, as the end of a whole text whose other positions are at noise level 0. What comes
        out of the clean rows means nothing."""
        count, size = noisy.blocks.count, hidden.shape[1]
        clean, rows = (half.unflatten(0, (-1, count)) for half in hidden.chunk(2))
        level, outputs = noisy.noise_level.chunk(2)[1].view(-1, count), []
        given = None if noisy.given is None else noisy.given.chunk(2)[1].unflatten(0, (-1, count))
        for k in range(count):
            text = torch.cat((clean[:, :k], rows[:, k : k + 1]), 1).flatten(1, 2)
            marked = None if given is None else F.pad(given[:, k], (k * size, 0))
            levels = F.pad(level[:, k : k + 1], (k, 0))
            outputs.append(self(text, Noisy(text, levels, marked))[:, -size:])
        return torch.cat((hidden.chunk(2)[0], torch.stack(outputs, 1).flatten(0, 1)))

    def prompt(self, hidden: Hidden, noisy: Noisy) -> Float[Tensor, "B *L C"] | None:
        """What the conditioning is told of the prompt, one vector per row or per position; None without an encoder."""
        return None
