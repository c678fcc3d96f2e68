"""mask_uniform for every gamma and share that its config takes: all noise levels are reached, and the bound is one.

Random tokens grow as the root (1 - a)^(gamma / 2): for gamma = 0.01 noise of 5 % stands at 1 - a = e^-599. The naive
side writes the masses in logarithms, with Python's own floats.
"""

import math

import pytest
import torch

from diffusion_lm.config import build, config_class
from diffusion_lm.discrete.whole_range import whole_range
from diffusion_lm.model import DenoisingModel
from diffusion_lm.noisy import Batch, Noisy
from diffusion_lm.objectives.base import TrainingNoise
from diffusion_lm.processes.mask_uniform import MaskUniformConfig
from diffusion_lm.prompts import PromptConfig
from diffusion_lm.random import Noise
from diffusion_lm.readouts import Prediction

V, L = 11, 6
SLOW = pytest.mark.slow
GRID = [(2.0, 0.5), (1.0, 0.1), (0.5, 0.999), (0.3, 0.9), (0.1, 0.5), (0.01, 0.1), (0.01, 0.999), (1e-3, 0.5)]
BETWEEN = [pytest.param(*pair, marks=SLOW) for pair in GRID[1:-1]]
LEVELS = [1e-6, 1e-3, 0.05, 0.1464, 0.5, 0.9, 0.999, 1 - 1e-6]


def process_of(name: str, **config):
    return build(config_class("processes", name)(**config), build(config_class("schedules", "cosine")()), V)


def masses(log_odds: float, gamma: float, share: float) -> tuple[float, float, float]:
    """alpha, the mask's mass and all tokens' mass where a / (1 - a) is e^log_odds."""
    log_a, log_rest = (-math.log1p(math.exp(-abs(x))) + min(x, 0.0) for x in (log_odds, -log_odds))
    c = 2**gamma * share / (1 - share) * math.exp(gamma / 2 * (log_a + log_rest))
    return math.exp(log_a) / (1 + c), math.exp(log_rest) / (1 + c), c / (1 + c)


def at_level(level: float, gamma: float, share: float) -> tuple[float, float, float]:
    """The masses where 1 - alpha is that, by bisection."""
    low, high = -60.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        noise = sum(masses(middle, gamma, share)[1:])
        low, high = (middle, high) if noise > level else (low, middle)
    return masses(high, gamma, share)


@pytest.mark.parametrize(
    ("name", "config"),
    [("masked", {}), ("uniform", {}), *(("mask_uniform", {"gamma": g, "uniform_share": p}) for g, p in GRID)],
)
def test_the_range_of_a_bound_has_every_noise_level(name, config):
    process, level = whole_range(process_of(name, **config)), torch.tensor(LEVELS, dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(process.noise_level(process.time_of(level)), level, rtol=1e-9, atol=1e-15)
    assert (process.alpha_prime(process.time_of(level)) < 0).all()


@pytest.mark.parametrize(("gamma", "share"), GRID)
def test_masses_at_every_noise_level(gamma, share):
    process = whole_range(process_of("mask_uniform", gamma=gamma, uniform_share=share))
    level = torch.tensor(LEVELS, dtype=torch.float64).unsqueeze(1)
    found = process.masses(process.time_of(level))
    wanted = torch.tensor([at_level(v, gamma, share) for v in LEVELS], dtype=torch.float64)
    torch.testing.assert_close(torch.cat((found.alpha, found.mask, V * found.token), 1), wanted, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("gamma", "share"), GRID)
def test_rates_are_what_the_masses_gain(gamma, share):
    """r = b' - alpha' / alpha b by central differences in time, of the range of the bound and of a schedule."""
    own = process_of("mask_uniform", gamma=gamma, uniform_share=share)
    whole, levels = whole_range(own), torch.tensor(LEVELS[1:-1], dtype=torch.float64).unsqueeze(1)
    times = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64).unsqueeze(1)
    for process, t in ((whole, whole.time_of(levels)), (own, times)):
        step = 1e-7 * torch.minimum(t, 1 - t)
        before, after, here = (process.masses(v) for v in (t - step, t + step, t))
        slope = (after.alpha - before.alpha) / (2 * step)
        torch.testing.assert_close(process.alpha_prime(t), slope, rtol=1e-3, atol=0)
        for rate, name in zip(process.rates(t), ("mask", "token"), strict=True):
            gain = (getattr(after, name) - getattr(before, name)) / (2 * step)
            wanted = gain - slope / here.alpha * getattr(here, name)
            torch.testing.assert_close(rate, wanted, rtol=1e-3, atol=1e-6 * float(wanted.abs().max()))


class Even(DenoisingModel):
    """Says that every token is as likely as any other."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def forward(self, noisy: Noisy) -> Prediction:
        logits = torch.zeros(*noisy.x.shape, V + 2, dtype=torch.float64)
        logits[..., V:] = -torch.inf
        return Prediction(logits)


@pytest.mark.parametrize(("gamma", "share"), [GRID[0], GRID[-1], *BETWEEN])
def test_the_bound_of_the_even_prediction_is_ln_vocabulary(gamma, share):
    """It is the leave-one-out posterior of even text: tight, whatever the process."""
    rows = 512
    process = process_of("mask_uniform", gamma=gamma, uniform_share=share)
    objective = build(config_class("objectives", "gidd")(), process, PromptConfig(fraction=0.0), TrainingNoise(0, rows))
    tokens = torch.randint(V, (rows, L), generator=torch.Generator().manual_seed(0))
    position = torch.arange(rows)
    nll = objective.bound(Even(), Batch(tokens, position), Noise(0, position), 32).nll / L
    error = float(nll.std()) / rows**0.5
    assert error < 0.015
    assert abs(float(nll.mean()) - math.log(V)) < 4 * error


@pytest.mark.parametrize("gamma", [0.0, 1e-4, 2.5, math.nan])
def test_a_gamma_that_is_not_resolved_is_refused(gamma):
    with pytest.raises(ValueError, match=f"gamma: got {gamma}, expected 0.001 to 2"):
        MaskUniformConfig(gamma=gamma)
