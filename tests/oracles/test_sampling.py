"""Ancestral sampling with the exact posterior: its law, computed exactly where that is possible, and its draws."""

import pytest
import torch

from diffusion_lm.noisy import Noisy
from diffusion_lm.processes.gaussian import Gaussian, GaussianConfig
from diffusion_lm.processes.masked import Masked, MaskedConfig
from diffusion_lm.random import Noise
from diffusion_lm.readouts import Prediction
from diffusion_lm.samplers.ancestral import Ancestral, AncestralConfig
from diffusion_lm.samplers.base import Guess, SamplerState, generate
from diffusion_lm.samplers.ddim import Ddim, DdimConfig
from diffusion_lm.schedules.cosine import Cosine, CosineConfig
from diffusion_lm.schedules.log_linear import LogLinear, LogLinearConfig

V, L = 3, 2
SCHEDULES = {"log_linear": LogLinear(LogLinearConfig(eps=0.0)), "cosine": Cosine(CosineConfig(s=0.0))}


@pytest.fixture(scope="module")
def source(toy):
    return toy.Source(V, L, seed=6, sharpness=1.2)


def apart(source) -> torch.Tensor:
    """The product of the source's marginals: what two tokens that were drawn at once follow. [S]"""
    marginal = torch.stack(
        [torch.stack([source.probabilities[source.sequences[:, i] == v].sum() for v in range(V)]) for i in range(L)]
    )
    return marginal[torch.arange(L), source.sequences].prod(1)


def together(schedule: str, steps: int) -> float:
    """Chance that two positions unmask in the same step: the sum of the squared shares of alpha that the steps gain."""
    grid = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    alpha = 1 - grid if schedule == "log_linear" else torch.cos(grid * torch.pi / 2) ** 2
    return float(alpha.diff().square().sum())


def exact_law(source, model, process, steps: int) -> torch.Tensor:
    """Law of the chain over all 16 states, by its transition matrices, and of its end over sequences. [S]"""
    states = torch.cartesian_prod(torch.arange(V + 1), torch.arange(V + 1))
    law = torch.zeros(len(states), dtype=torch.float64)
    law[-1] = 1
    for step in range(steps):
        t, s = (torch.full((len(states), 1), 1 - k / steps, dtype=torch.float64) for k in (step, step + 1))
        each = process.reverse(states, model(Noisy(states, process.noise_level(t))), t, s, model.table())
        each = each.probabilities(V + 1)
        law = law @ (each[:, 0, states[:, 0]] * each[:, 1, states[:, 1]])
    assert float(law.sum()) == pytest.approx(1)
    ends = (states < V).all(1)
    assert float(law[~ends].sum()) == pytest.approx(0, abs=1e-12)
    assert torch.equal(states[ends], source.sequences)
    return law[ends]


@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_the_law_of_masked_sampling_errs_only_where_tokens_are_drawn_at_once(toy, source, schedule):
    """(1 - c) joint + c product of marginals, c the chance of the same step: exact for every number of steps."""
    model, process = toy.MaskedTable(source.posterior_table()), Masked(MaskedConfig(), SCHEDULES[schedule], V)
    distances = []
    for steps in (1, 2, 3, 8, 32, 128):
        c = together(schedule, steps)
        law = exact_law(source, model, process, steps)
        torch.testing.assert_close(law, (1 - c) * source.probabilities + c * apart(source), rtol=1e-9, atol=1e-12)
        distances.append(0.5 * float((law - source.probabilities).abs().sum()))
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 0.05
    assert distances[-1] < distances[0] / 90


@pytest.mark.parametrize("schedule", list(SCHEDULES))
@pytest.mark.parametrize("steps", [1, 3, 64])
def test_masked_samples_follow_that_law(toy, source, schedule, steps):
    process = Masked(MaskedConfig(), SCHEDULES[schedule], V)
    sampler = Ancestral(AncestralConfig(num_steps=steps), process)
    tokens = generate(sampler, toy.MaskedTable(source.posterior_table()), Noise(steps, torch.arange(20_000)), L).tokens
    c = together(schedule, steps)
    counts = torch.bincount(source.index(tokens), minlength=V**L).double()
    assert toy.chi_square(counts, (1 - c) * source.probabilities + c * apart(source)) > 1e-4
    if steps == 1:  # the test can tell: the joint itself is not what one step draws
        assert toy.chi_square(counts, source.probabilities) < 1e-9


def test_masked_samples_of_four_tokens(toy):
    source = toy.Source(V, 4)
    process = Masked(MaskedConfig(), SCHEDULES["log_linear"], V)
    sampler = Ancestral(AncestralConfig(num_steps=400), process)
    tokens = generate(sampler, toy.MaskedTable(source.posterior_table()), Noise(1, torch.arange(4000)), 4).tokens
    counts = torch.bincount(source.index(tokens), minlength=81).double()
    common = source.probabilities > 2e-3
    counts = torch.cat((counts[common], counts[~common].sum()[None]))
    law = torch.cat((source.probabilities[common], source.probabilities[~common].sum()[None]))
    assert toy.chi_square(counts, law) > 1e-4


def gaussian_samples(toy, source, steps: int, rows: int) -> torch.Tensor:
    process = Gaussian(GaussianConfig(log_snr_max=5.0, log_snr_min=-8.0), Cosine(CosineConfig()), V)
    model = toy.GaussianPosterior(source, toy.polygon(V), (5.0, -8.0))
    sampler = Ancestral(AncestralConfig(num_steps=steps), process)
    tokens = generate(sampler, model, Noise(steps, torch.arange(rows)), L).tokens
    return torch.bincount(source.index(tokens), minlength=V**L).double()


def test_gaussian_samples_follow_the_joint(toy, source):
    assert toy.chi_square(gaussian_samples(toy, source, 160, 5000), source.probabilities) > 1e-4


def test_tokens_that_the_last_state_leaves_open_are_drawn(toy):
    """With so much noise left at t = 0, decoding the likeliest token would not give the source's law."""
    source, ends = toy.Source(V, 1, seed=6, sharpness=1.2), (-1.0, -8.0)
    process = Gaussian(GaussianConfig(log_snr_max=ends[0], log_snr_min=ends[1]), Cosine(CosineConfig()), V)
    model = toy.GaussianPosterior(source, toy.polygon(V), ends)
    sampler = Ancestral(AncestralConfig(num_steps=48), process)
    tokens = generate(sampler, model, Noise(0, torch.arange(8000)), 1).tokens
    assert toy.chi_square(torch.bincount(tokens[:, 0], minlength=V).double(), source.probabilities) > 1e-4


def test_gaussian_sampling_gets_better_with_more_steps(toy, source):
    distances = []
    for steps in (1, 4, 64):
        law = gaussian_samples(toy, source, steps, 8000) / 8000
        distances.append(0.5 * float((law - source.probabilities).abs().sum()))
    assert distances[0] > distances[1] + 0.02 > distances[2] + 0.02
    assert distances[2] < 0.03


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_ddim_step_has_the_mean_and_the_variance_of_its_formula(eta):
    """Song et al., equations 12 and 16, in their letters: their alpha is ours."""
    rows, steps, index = 20_000, 4, 1
    process = Gaussian(GaussianConfig(log_snr_max=5.0, log_snr_min=-8.0), Cosine(CosineConfig()), V)
    a_t, a_s = (float(process.alpha(torch.tensor([[1 - k / steps]], dtype=torch.float64))) for k in (index, index + 1))
    table = torch.tensor([[1.0, -1.0], [0.5, 2.0], [-1.5, 0.0]], dtype=torch.float64)
    x_t, p = torch.tensor([0.7, -0.4], dtype=torch.float64), torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    state = SamplerState(x_t.expand(rows, 1, 2), torch.full((rows,), index), Noise(0, torch.arange(rows)), table)
    said = Prediction(p.log().expand(rows, 1, V))
    after = Ddim(DdimConfig(num_steps=steps, eta=eta), process).step(state, lambda state, t: Guess(said))
    x_0 = p @ table
    sigma = eta * ((1 - a_s) / (1 - a_t)) ** 0.5 * (1 - a_t / a_s) ** 0.5
    direction = (1 - a_s - sigma**2) ** 0.5 * (x_t - a_t**0.5 * x_0) / (1 - a_t) ** 0.5
    drawn = after.x[:, 0]
    assert (after.index == index + 1).all()
    assert ((drawn.mean(0) - a_s**0.5 * x_0 - direction).abs() <= 4 * sigma / rows**0.5 + 1e-9).all()
    assert ((drawn.var(0) - sigma**2).abs() <= 4 * sigma**2 * (2 / rows) ** 0.5 + 1e-12).all()
