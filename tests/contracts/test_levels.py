"""The loss by noise level: means in ten equal bands, (0, 0.1] to (0.9, 1]."""

import torch

from diffusion_lm.evaluation.levels import LevelCurve


def test_means_of_the_bands():
    level = torch.tensor([[0.05, 0.10, 0.1001], [0.95, 1.0, 0.0]], dtype=torch.float64)
    value = torch.tensor([[1.0, 3.0, 10.0], [20.0, 40.0, 5.0]])
    curve = LevelCurve.of(level, value)
    assert curve.cross_entropy[[0, 1, 9]].tolist() == [3.0, 10.0, 30.0]
    assert curve.cross_entropy[2:9].isnan().all()
    assert curve.points() == [("0.05", 3.0), ("0.15", 10.0), ("0.95", 30.0)]


def test_levels_of_exact_counts_fall_in_their_own_bands():
    """l of 20 masked: two counts per band, whatever the rounding of l / 20."""
    level = (torch.arange(1, 21) / 20).unsqueeze(0)
    curve = LevelCurve.of(level, torch.arange(1.0, 21.0).unsqueeze(0))
    assert curve.cross_entropy.tolist() == [1.5 + 2 * band for band in range(10)]
