"""The loss by noise level: mean cross-entropy per predicted token in equal bands of the noise level."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from diffusion_lm.files import atomic_path
from diffusion_lm.shapes import Float, Tensor

BANDS = 10
COLUMNS = ("run", "level_low", "level_high", "draws", "nats_per_predicted_token", "standard_error")


@dataclass(frozen=True)
class LevelCurve:
    """cross_entropy: mean per band, NaN where no level fell. draws: levels in the band.

    standard_error: over sequences, of the mean as a ratio of two sums; NaN where one sequence alone has a level.
    """

    cross_entropy: Float[Tensor, "bands"]
    draws: Float[Tensor, "bands"]
    standard_error: Float[Tensor, "bands"]

    @classmethod
    def of(cls, level: Float[Tensor, "B K"], cross_entropy: Float[Tensor, "B K"]) -> "LevelCurve":
        """The curve of some draws at levels in [0, 1]."""
        edge = 1e-6  # an edge is the end of the band below it, also when float32 rounded it up
        band = (level.double() * BANDS - edge).ceil().long().clamp(1, BANDS) - 1
        total = torch.zeros(len(level), BANDS, dtype=torch.float64, device=level.device)
        count = total.clone()
        total.scatter_add_(1, band, cross_entropy.double())
        count.scatter_add_(1, band, torch.ones_like(level, dtype=torch.float64))
        draws = count.sum(0)
        mean = total.sum(0) / draws
        sequences = (count > 0).sum(0).double()
        spread = (total - mean * count).square().sum(0) * sequences / (sequences - 1).clamp(min=0)
        return cls(mean, draws, spread.sqrt() / draws)

    def points(self) -> list[tuple[str, float]]:
        """(middle of the band, mean) of every band that has a draw."""
        return [(f"{(low + high) / 2:.2f}", mean) for low, high, _, mean, _ in self.bands()]

    def bands(self) -> list[tuple[float, float, int, float, float | None]]:
        """(low, high, draws, mean, standard error or None) of every band that has a draw."""
        rows = zip(self.draws.tolist(), self.cross_entropy.tolist(), self.standard_error.tolist(), strict=True)
        return [
            (i / BANDS, (i + 1) / BANDS, int(draws), mean, error if error == error else None)
            for i, (draws, mean, error) in enumerate(rows)
            if draws
        ]


def curves_csv(curves: Mapping[str, LevelCurve]) -> str:
    """The curves of some runs as comma-separated values."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(COLUMNS)
    for name, curve in curves.items():
        for low, high, draws, mean, error in curve.bands():
            table.writerow((name, low, high, draws, mean, "" if error is None else error))
    return out.getvalue()


def draw_curves(curves: Mapping[str, LevelCurve], path: Path) -> None:
    """The curves as a picture; the bars are two standard errors over sequences."""
    from matplotlib.figure import Figure  # the library takes a second to import, and training needs none of it

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        low, high, _, mean, error = zip(*curve.bands(), strict=True)
        middle = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
        axes.errorbar(middle, mean, yerr=[2 * (e or 0) for e in error], marker="o", capsize=3, label=name)
    axes.set(xlim=(0, 1), xlabel="noise level (0 clean, 1 noise)", ylabel="nats per predicted token")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
