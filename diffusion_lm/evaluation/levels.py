"""The loss by noise level: mean cross-entropy per predicted token in equal bands of the noise level."""

from dataclasses import dataclass

import torch

from diffusion_lm.shapes import Float, Tensor

BANDS = 10


@dataclass(frozen=True)
class LevelCurve:
    """cross_entropy: mean per band, NaN where no level fell."""

    cross_entropy: Float[Tensor, "bands"]

    @classmethod
    def of(cls, level: Float[Tensor, "B K"], cross_entropy: Float[Tensor, "B K"]) -> "LevelCurve":
        """The curve of some draws at levels in [0, 1]."""
        edge = 1e-6  # an edge is the end of the band below it, also when float32 rounded it up
        band = (level.double() * BANDS - edge).ceil().long().clamp(1, BANDS).flatten() - 1
        total = torch.zeros(BANDS, dtype=torch.float64, device=level.device)
        count = total.clone()
        total.index_add_(0, band, cross_entropy.double().flatten())
        count.index_add_(0, band, torch.ones_like(band, dtype=torch.float64))
        return cls(total / count)

    def points(self) -> list[tuple[str, float]]:
        """(middle of the band, mean) of every band that has a draw."""
        values = self.cross_entropy.tolist()
        return [(f"{(i + 0.5) / BANDS:.2f}", value) for i, value in enumerate(values) if value == value]
