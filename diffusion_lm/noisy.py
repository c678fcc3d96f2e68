"""What a denoiser sees: one frozen dataclass. A new need is a new field, not a new signature."""

from dataclasses import dataclass

import torch

from diffusion_lm.shapes import Float, Given, Int, State, Tensor, Tokens


@dataclass(frozen=True)
class Noisy:
    """A corrupted batch.

    x: ids [B, L] or embedded tokens [B, L, D]. noise_level: [B, N], one number in [0, 1] per row (N = 1) or per block
    of L / N positions. given: clean positions that are not to be predicted [B, L], whose noise level is 0; None when
    nothing is given.
    """

    x: State
    noise_level: Float[Tensor, "B N"]
    given: Given | None = None

    @property
    def length(self) -> int:
        """Number of positions L."""
        return self.x.shape[1]


@dataclass(frozen=True)
class Batch:
    """A batch of text. tokens: [B, L]; position: [B], the rows' places in the training order, keys of their noise."""

    tokens: Tokens
    position: Int[Tensor, "B"]

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on another device."""
        return Batch(self.tokens.to(device), self.position.to(device))
