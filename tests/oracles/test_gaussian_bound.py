"""The Gaussian objective on toy sources of token vectors in the plane, against numerical integration.

With the exact posterior, reconstruction + diffusion + prior = H(x) + KL(q(z_1) || N(0, I)): the diffusion integral of
the least squared error is I(x; z_0) - I(x; z_1) (Guo, Shamai and Verdu 2005), reconstruction is H(x | z_0).
"""

import math
from dataclasses import dataclass

import numpy
import pytest
import torch

import diffusion_lm.objectives.gaussian as objective_module
from diffusion_lm.noisy import Batch
from diffusion_lm.objectives.base import TrainingNoise
from diffusion_lm.objectives.gaussian import GaussianBound, GaussianBoundConfig
from diffusion_lm.processes.gaussian import Gaussian, GaussianConfig
from diffusion_lm.prompts import PromptConfig
from diffusion_lm.random import Noise
from diffusion_lm.schedules.cosine import Cosine, CosineConfig
from diffusion_lm.schedules.learned import Learned, LearnedConfig
from diffusion_lm.schedules.log_linear import LogLinear, LogLinearConfig

V, D = 3, 2
SLOW = pytest.mark.slow
ENDS = (1.0, -4.0)  # so narrow that every term counts: tokens are uncertain at t = 0, and known a little at t = 1


def learned() -> Learned:
    """A learned schedule that has moved: its pace is uneven, and its ends are half - 0.1 and half - 0.2 away from the
    middle of the range, in halves of it."""
    schedule = Learned(LearnedConfig(units=5))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in schedule.parameters():
            parameter += torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        schedule.start.fill_(math.log(0.1 / 0.9))
        schedule.end.fill_(math.log(0.2 / 0.8))
    return schedule.requires_grad_(False)


SCHEDULES = {
    "cosine": lambda: Cosine(CosineConfig()),
    "log_linear": lambda: LogLinear(LogLinearConfig()),
    "learned": learned,
}
OWN_ENDS = {"learned": (ENDS[0] - 0.1 * 2.5, ENDS[1] + 0.2 * 2.5)}


def process_of(ends: tuple[float, float] = ENDS, schedule: str = "cosine") -> Gaussian:
    return Gaussian(GaussianConfig(log_snr_max=ends[0], log_snr_min=ends[1]), SCHEDULES[schedule](), V)


def objective(process: Gaussian, global_batch: int = 8, **weights: float) -> GaussianBound:
    return GaussianBound(
        GaussianBoundConfig(**weights), process, PromptConfig(fraction=0.0), TrainingNoise(0, global_batch)
    )


@pytest.fixture(scope="module")
def source(toy):
    return toy.Source(V, 1, seed=4, sharpness=0.7)


@pytest.fixture(scope="module", params=[1.0, 0.4], ids=["exact", "wrong"])
def model(request, toy, source):
    return toy.GaussianPosterior(source, toy.polygon(V, D), ENDS, request.param)


def plane(step: float, reach: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of a grid and the area of a cell. [G^2, 2]"""
    axis = torch.arange(-reach, reach + step / 2, step, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), torch.tensor(step**2, dtype=torch.float64)


def integrated(model, source, ends: tuple[float, float] = ENDS) -> dict[str, float]:
    """The three terms between the ends by the trapezoid rule over the plane and Gauss and Legendre's over lambda."""
    eps, cell = plane(0.1, 6.6)
    weight = torch.exp(-eps.square().sum(1) / 2) / (2 * math.pi) * cell

    def said(log_snr: float, token: int) -> tuple[torch.Tensor, torch.Tensor]:
        alpha = 1 / (1 + math.exp(-log_snr))
        z = math.sqrt(alpha) * model.vectors[token] + math.sqrt(1 - alpha) * eps
        level = torch.tensor([[log_snr]], dtype=torch.float64)
        return z, model.log_posterior(z.unsqueeze(1), level.expand(len(z), 1)).squeeze(1)

    node, share = (torch.as_tensor(v) for v in numpy.polynomial.legendre.leggauss(40))
    middle, half = (ends[0] + ends[1]) / 2, (ends[0] - ends[1]) / 2
    terms = dict.fromkeys(("reconstruction", "diffusion", "prior"), 0.0)
    alpha_1 = 1 / (1 + math.exp(-ends[1]))
    for token, p in enumerate(source.probabilities.tolist()):
        own = model.vectors[token]
        terms["reconstruction"] -= p * float((weight * said(ends[0], token)[1][:, token]).sum())
        for x, w in zip(node.tolist(), share.tolist(), strict=True):
            log_snr = middle + half * x
            estimate = said(log_snr, token)[1].exp() @ model.vectors
            error = float((weight * (own - estimate).square().sum(1)).sum())
            terms["diffusion"] += p * w * half * 0.5 * math.exp(log_snr) * error
        squared = float(own.square().sum())
        terms["prior"] += p * 0.5 * (alpha_1 * squared + D * (1 - alpha_1) - D - D * math.log(1 - alpha_1))
    return terms


@pytest.fixture(scope="module")
def wanted(model, source) -> dict[str, dict[str, float]]:
    """By schedule."""
    fixed = integrated(model, source)
    return {name: integrated(model, source, OWN_ENDS[name]) if name in OWN_ENDS else fixed for name in SCHEDULES}


def end_divergence(model, source, end: float = ENDS[1]) -> float:
    """KL(q(z_1) || N(0, I)) by integration over the plane."""
    z, cell = plane(0.05, 8.0)
    alpha = 1 / (1 + math.exp(-end))
    apart = (z.unsqueeze(1) - math.sqrt(alpha) * model.vectors).square().sum(-1)
    q = (source.probabilities * torch.exp(-apart / (2 * (1 - alpha)))).sum(1) / (2 * math.pi * (1 - alpha))
    standard = torch.exp(-z.square().sum(1) / 2) / (2 * math.pi)
    return float((q * (q / standard).log()).sum() * cell)


def test_the_integrals_themselves_give_entropy_and_divergence(toy, source):
    """Nothing of the code under test is in this."""
    exact = toy.GaussianPosterior(source, toy.polygon(V, D), ENDS)
    terms = integrated(exact, source)
    assert min(terms.values()) > 0.01
    total = sum(terms.values())
    assert total == pytest.approx(source.entropy + end_divergence(exact, source), abs=1e-6)


@pytest.fixture
def hermite(monkeypatch):
    """Let normal noise be the nodes of Gauss and Hermite's rule. Returns (rows per token, their weights)."""
    node, weight = (torch.as_tensor(v) for v in numpy.polynomial.hermite_e.hermegauss(36))
    eps = torch.cartesian_prod(node, node).unsqueeze(1)
    weights = torch.cartesian_prod(weight, weight).prod(1) / (2 * math.pi)
    monkeypatch.setattr(Noise, "normal", lambda self, stream, *shape: eps[self.position % len(eps)])
    return len(eps), weights


def rows_of(source, many: int) -> tuple[Batch, torch.Tensor]:
    """Every token `many` times, and the probability of each row's token."""
    tokens = source.sequences.repeat_interleave(many, 0)
    return Batch(tokens, torch.arange(len(tokens))), source.probabilities.repeat_interleave(many)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_bound_of_the_exact_posterior_is_entropy_and_divergence(monkeypatch, hermite, toy, source, schedule):
    """Through `bound` itself, with quadrature for noise and levels: to 1e-4 nats."""
    many, weight = hermite
    middles = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    monkeypatch.setattr(
        objective_module, "stratified_levels", lambda noise, draws: middles.expand(len(noise.position), -1)
    )
    exact = toy.GaussianPosterior(source, toy.polygon(V, D), ENDS)
    batch, p = rows_of(source, many)
    with torch.no_grad():
        bound = objective(process_of(schedule=schedule)).bound(exact, batch, Noise(0, batch.position), 200)
    total = float((p * weight.repeat(V) * bound.nll).sum())
    divergence = end_divergence(exact, source, OWN_ENDS.get(schedule, ENDS)[1])
    assert total == pytest.approx(source.entropy + divergence, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_bound_is_the_integral_of_every_term(monkeypatch, hermite, model, source, wanted, schedule):
    """Through `bound` itself, with quadrature for noise and levels: to 1e-3 nats."""
    many, weight = hermite
    wanted = wanted[schedule]
    middles = (torch.arange(96, dtype=torch.float64) + 0.5) / 96
    monkeypatch.setattr(
        objective_module, "stratified_levels", lambda noise, draws: middles.expand(len(noise.position), -1)
    )
    batch, p = rows_of(source, many)
    bound = objective(process_of(schedule=schedule)).bound(model, batch, Noise(0, batch.position), 96)
    share = p * weight.repeat(V)
    assert set(bound.terms) == set(wanted)
    for name, value in wanted.items():
        assert float((share * bound.terms[name].double()).sum()) == pytest.approx(value, abs=1e-3), name
    total = float((share * bound.nll).sum())
    floor = source.entropy + end_divergence(model, source, OWN_ENDS.get(schedule, ENDS)[1])
    assert total == pytest.approx(floor, abs=2e-3) if model.sharpness == 1 else total > floor + 0.02


@torch.no_grad()
def test_the_prior_of_vectors_of_any_norm_is_their_divergence(toy, source):
    """KL(N(sqrt(alpha) e, 1 - alpha) || N(0, 1)), by the library's formula for two normal distributions."""
    model = toy.GaussianPosterior(source, toy.polygon(V, D) * torch.tensor([[0.1], [0.7], [2.0]]).double(), ENDS)
    batch = Batch(torch.tensor([[0], [1], [2]]), torch.arange(3))
    found = objective(process_of()).bound(model, batch, Noise(0, batch.position), 1).terms["prior"]
    alpha = torch.sigmoid(torch.tensor(ENDS[1], dtype=torch.float64))
    end = torch.distributions.Normal(alpha.sqrt() * model.vectors, (1 - alpha).sqrt())
    standard = torch.distributions.Normal(torch.zeros_like(model.vectors), torch.ones_like(model.vectors))
    torch.testing.assert_close(found, torch.distributions.kl_divergence(end, standard).sum(1), rtol=1e-9, atol=0)


@dataclass(frozen=True)
class Fixed:
    """Training noise whose times a test chose."""

    t: torch.Tensor

    def times(self, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.t, torch.ones_like(self.t)

    def noise(self, position: torch.Tensor) -> Noise:
        return Noise(0, position)

    def mean_of_step(self, position, value):
        """As if the rows were a global batch."""
        return value(position).mean().expand(len(position))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("share", [pytest.param(0.0, marks=SLOW), 0.125, pytest.param(0.4, marks=SLOW)])
def test_the_training_nll_is_the_integral_over_time(monkeypatch, hermite, model, source, wanted, schedule, share):
    """Through `forward`: uniform t and the schedule's slope give the integral over lambda, rows that are sent to t = 0
    give the reconstruction. Without the bound in the loss there are no such rows, and no such term."""
    many, weight = hermite
    wanted = wanted[schedule]
    node, width = (torch.as_tensor(v) / 2 for v in numpy.polynomial.legendre.leggauss(48))
    weights = {"cross_entropy": 1.0, "bound": float(share > 0), "reconstruction_share": share or 0.5}
    loss = objective(process_of(schedule=schedule), **weights)
    batch, p = rows_of(source, many)
    total = 0.0
    for chosen, probability in ((0.0, share), (1.0, 1 - share)):  # uniform noise below the share sends a row to t = 0
        monkeypatch.setattr(Noise, "uniform", lambda self, *_, value=chosen: torch.full((len(self.position), 1), value))
        for t, w in zip((node + 0.5).tolist(), width.tolist(), strict=True):
            loss.training_noise = Fixed(torch.full((len(p), 1), t, dtype=torch.float64))
            nll = loss(model, batch).nll.double()
            total += probability * w * float((p * weight.repeat(V) * nll).sum())
    assert total == pytest.approx(sum(wanted.values()) - (0 if share else wanted["reconstruction"]), abs=2e-3)


def test_the_training_loss_is_the_weighted_sum(model, source):
    batch = Batch(source.draw(64), torch.arange(64))
    parts = [
        objective(process_of(), cross_entropy=c, bound=b)(model, batch) for c, b in ((1.0, 0.0), (0.0, 1.0), (0.5, 3.0))
    ]
    torch.testing.assert_close(parts[0].loss, parts[0].terms["cross_entropy"], check_dtype=False)
    torch.testing.assert_close(parts[1].loss, parts[1].nll.sum() / 64)
    wanted = 0.5 * parts[2].terms["cross_entropy"] + 3 * parts[1].loss
    torch.testing.assert_close(parts[2].loss, wanted, check_dtype=False)


@torch.no_grad()
def test_the_logged_variance_is_that_of_the_rows(model, source):
    loss = objective(process_of())(model, Batch(source.draw(64), torch.arange(64)))
    rows = loss.nll.double().tolist()  # of one token each
    mean = sum(rows) / 64
    wanted = sum((row - mean) ** 2 for row in rows) / 63
    assert float(loss.terms["nll_variance"]) == pytest.approx(wanted, rel=1e-5)
    alone = objective(process_of())(model, Batch(source.draw(1), torch.arange(1)))
    assert float(alone.terms["nll_variance"]) == 0


@pytest.mark.parametrize("ends", [(6.0, -9.0), (3.0, -7.0)])
def test_the_bound_of_two_dependent_tokens_is_their_entropy(toy, ends):
    """With the code's own noise. At the upper end tokens are certain or nearly so; what is left of the end is tiny."""
    source = toy.Source(V, 2, seed=2)
    rows = 12_000
    model = toy.GaussianPosterior(source, toy.polygon(V, 2) * 2**0.5, ends)  # norm 2: D = 4 would have it
    model.vectors = torch.cat((model.vectors, torch.zeros(V, 2, dtype=torch.float64)), 1)
    nll = (
        objective(process_of(ends))
        .bound(model, Batch(source.draw(rows), torch.arange(rows)), Noise(11, torch.arange(rows)), 8)
        .nll
    )
    error = float(nll.std()) / rows**0.5
    assert error < 0.03
    assert abs(float(nll.mean()) - source.entropy) < 4 * error + 0.005


def test_a_wrong_posterior_costs_more_in_the_bounds_own_draws(toy, source):
    rows = 12_000
    batch, noise = Batch(source.draw(rows), torch.arange(rows)), Noise(11, torch.arange(rows))
    right, wrong = (toy.GaussianPosterior(source, toy.polygon(V, D), ENDS, sharpness) for sharpness in (1.0, 0.4))
    difference = (objective(process_of()).bound(m, batch, noise, 6).nll for m in (wrong, right))
    difference = next(difference) - next(difference)
    assert float(difference.mean()) > 4 * float(difference.std()) / rows**0.5


def test_the_bound_is_above_the_models_own_log_likelihood(toy, source):
    """-ln p(x), brute force: the law of the reverse chain of many steps, computed on a grid of the plane, for a wrong
    predictor. Many, because the integral over all times is the bound of the chain whose steps are small."""
    model = toy.GaussianPosterior(source, toy.polygon(V, D), ENDS, 0.4)
    bound = sum(integrated(model, source).values())
    p = chain_law(model, steps=16)
    cross = -float((source.probabilities * p.log()).sum())
    assert p.sum() == pytest.approx(1, abs=1e-3)
    assert source.entropy - 1e-3 <= cross <= bound + 1e-2


def chain_law(model, steps: int) -> torch.Tensor:
    """p(x) of the ancestral chain over a grid of the plane, the reverse step written here a second time. [V]"""
    z, _ = plane(0.2, 4.4)
    alphas = torch.sigmoid(torch.linspace(ENDS[1], ENDS[0], steps + 1, dtype=torch.float64))
    law = torch.exp(-z.square().sum(1) / 2)
    law /= law.sum()
    for a_t, a_s in zip(alphas[:-1].tolist(), alphas[1:].tolist(), strict=True):
        level = torch.full((len(z), 1), math.log(a_t / (1 - a_t)), dtype=torch.float64)
        estimate = model.log_posterior(z.unsqueeze(1), level).squeeze(1).exp() @ model.vectors
        ratio = a_t / a_s
        mean = math.sqrt(ratio) * (1 - a_s) / (1 - a_t) * z + math.sqrt(a_s) * (1 - ratio) / (1 - a_t) * estimate
        variance = (1 - a_s) * (1 - ratio) / (1 - a_t)
        moved = torch.exp(-torch.cdist(mean, z).square() / (2 * variance))
        law = law @ (moved / moved.sum(1, keepdim=True))
    level = torch.full((len(z), 1), ENDS[0], dtype=torch.float64)
    return law @ model.log_posterior(z.unsqueeze(1), level).squeeze(1).exp()
