"""Continuous-time bounds of discrete diffusion against the Kullback-Leibler divergence of jump processes, enumerated.

The naive side knows nothing but the kernels K_t of a single token: rate matrices Q = K^-1 K', reverse rates from z to
y of Q(y, z) q_t(y) / q_t(z), and the divergence rate of two jump processes, sum_y (R ln(R / R') - R + R'). Vocabulary
3, all states of all sequences, the trapezoid rule over the log-odds of the noise level; length 3 every day, length 4
among the slow tests.
"""

import math

import pytest
import torch

import diffusion_lm.discrete.objective as drawing
from diffusion_lm.config import build, config_class
from diffusion_lm.discrete.objective import Drawn, draw_states
from diffusion_lm.noisy import Batch
from diffusion_lm.objectives.base import TrainingNoise
from diffusion_lm.prompts import PromptConfig
from diffusion_lm.random import Noise
from diffusion_lm.readouts import Scores
from diffusion_lm.schedules.cosine import Cosine, CosineConfig

V, L = 3, 3
LENGTHS = [3, pytest.param(4, marks=pytest.mark.slow)]
LONG_CASES = {  # half a minute and more each; see conftest.py
    "test_the_enumeration_itself_gives_the_entropy[4-uniform]",
    "test_the_enumeration_itself_gives_the_entropy[4-mask_uniform]",
    "test_exact_ratios_give_the_entropy[4-uniform]",
    "test_the_leave_one_out_posterior_reaches_the_entropy_and_others_stay_above[4-gidd-mask_uniform]",
    "test_the_leave_one_out_posterior_reaches_the_entropy_and_others_stay_above[4-gidd-uniform]",
    "test_the_bound_of_any_predictor_is_the_enumerated_one[4-gidd-mask_uniform]",
    "test_the_bound_of_any_predictor_is_the_enumerated_one[4-gidd-uniform]",
}
BOUNDS = [("uniform", "uniform"), ("gidd", "uniform"), ("gidd", "mask_uniform")]
SCORES = ["masked", "uniform"]
END = 1e-3  # alpha at which score entropy over uniform noise starts


@pytest.fixture(scope="module", params=LENGTHS)
def source(toy, request):
    return toy.Source(V, request.param)


def objective_of(name: str, process: str):
    """Over a schedule that the bound must not depend on."""
    process = build(config_class("processes", process)(), Cosine(CosineConfig()), V)
    return build(config_class("objectives", name)(), process, PromptConfig(fraction=0.0), TrainingNoise(0, 8))


def predicted(world, p: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """q_t with p in place of x_0. [N, L, V + 1]"""
    return p @ world.kernel(a)[:, : world.vocabulary]


def reverse_rates(world, after: torch.Tensor, x_t: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """R(z, y) for the present state z and every y but z, where 0 stands. [N, L, V + 1]"""
    into = world.rates(a).transpose(1, 2)[torch.arange(len(a))[:, None], x_t]  # Q(y, z)
    rates = into * after / after.gather(-1, x_t.unsqueeze(-1))
    return rates.scatter(-1, x_t.unsqueeze(-1), 0.0)


def of_truth(world, x_0: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """q_t( . | x_0). [N, L, V + 1]"""
    return world.kernel(a)[torch.arange(len(a))[:, None], x_0]


def divergence_rate(world, p, x_0, x_t, a) -> torch.Tensor:
    """Of the two reverse jump processes, per unit of 1 - a, summed over positions. [N]"""
    true = reverse_rates(world, of_truth(world, x_0, a), x_t, a)
    model = reverse_rates(world, predicted(world, p, a), x_t, a)
    terms = torch.xlogy(true, true / model.where(true > 0, 1.0)) - true + model
    return terms.sum((1, 2))


def score_rate(world, s, x_0, x_t, a) -> torch.Tensor:
    """SEDD's integrand with ratios s [N, L, V], per unit of 1 - a. [N]"""
    into = world.rates(a).transpose(1, 2)[torch.arange(len(a))[:, None], x_t][..., :V]
    truth = of_truth(world, x_0, a)
    rho = (truth / truth.gather(-1, x_t.unsqueeze(-1)))[..., :V]
    terms = into * (s - torch.xlogy(rho, s) + torch.xlogy(rho, rho) - rho)
    return terms.masked_fill(torch.arange(V) == x_t.unsqueeze(-1), 0.0).sum((1, 2))


class Enumerated:
    """Rows of every node of a x every sequence x every state that it can be in."""

    def __init__(self, world, source, span: tuple[float, float] = (0.0, 1.0)) -> None:
        a, weight = world.nodes()
        low, high = (float(world.a_of(torch.tensor([v], dtype=torch.float64))) for v in reversed(span))
        a, weight = low + (high - low) * a, (high - low) * weight
        states = world.states(source.length)
        shape = (len(a), len(source.sequences), len(states))
        node, row, state = (v.flatten() for v in torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij"))
        chance = world.chance(source.sequences[row], states[state], a[node])
        possible = chance > 0
        self.node, self.row, state = node[possible], row[possible], state[possible]
        self.x_0, self.x_t, self.a = source.sequences[self.row], states[state], a[self.node]
        self.chance, self.weight, self.source, self.world = chance[possible], weight[self.node], source, world
        slope = torch.autograd.functional.jvp(lambda v: world.masses(v)[0], (a,), (torch.ones_like(a),))[1]
        self.alpha_per_a, self.level = slope[self.node], 1 - world.masses(self.a)[0]

    def integral(self, rate: torch.Tensor) -> torch.Tensor:
        """Of a rate per unit of a and row, for every sequence. [S]"""
        found = torch.zeros(len(self.source.sequences), dtype=torch.float64)
        return found.index_add(0, self.row, self.chance * self.weight * rate)

    def bound(self, monkeypatch, objective, model, end: float = 1.0) -> torch.Tensor:
        """`objective.bound` through these states at these levels, for every sequence. [S]"""
        monkeypatch.setattr(drawing, "stratified_levels", lambda noise, draws: self.level.unsqueeze(1) / end)
        monkeypatch.setattr(
            drawing, "draw_states", lambda process, x_0, t, noise: Drawn(self.x_t, t, torch.ones_like(self.a))
        )
        position = torch.arange(len(self.a))
        with torch.no_grad():
            found = objective.bound(model, Batch(self.x_0, position), Noise(0, position), 1)
        constant = found.terms["prior"] if "prior" in found.terms else torch.zeros_like(found.nll)
        return self.integral((found.nll - constant) / end * self.alpha_per_a) + constant[0]


def expected(source, values: torch.Tensor) -> float:
    return float((source.probabilities * values).sum())


@pytest.mark.parametrize("name", ["uniform", "mask_uniform", "masked"])
def test_the_enumeration_itself_gives_the_entropy(toy, source, name):
    """With p(x_0^i | x_t without i), in the naive form alone: nothing of the code under test is in this."""
    world = toy.World(name)
    every = Enumerated(world, source)
    rate = divergence_rate(
        world, toy.Informed(source, world).predict(every.x_t, every.a), every.x_0, every.x_t, every.a
    )
    assert expected(source, every.integral(rate)) == pytest.approx(source.entropy, abs=1e-6)
    total = every.integral(torch.ones_like(every.a))
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("name", "process"), BOUNDS)
def test_the_bound_of_any_predictor_is_the_enumerated_one(toy, monkeypatch, source, name, process):
    world = toy.World(process)
    every, model = Enumerated(world, source), toy.Lookup(world, source.length)
    with torch.no_grad():
        p = model.values(every.x_t, every.level.unsqueeze(1)).softmax(-1)
    naive = every.integral(divergence_rate(world, p, every.x_0, every.x_t, every.a))
    found = every.bound(monkeypatch, objective_of(name, process), model)
    torch.testing.assert_close(found, naive, rtol=1e-6, atol=1e-6)
    assert expected(source, found) > source.entropy + 0.1


@pytest.mark.parametrize(("name", "process"), BOUNDS)
def test_the_leave_one_out_posterior_reaches_the_entropy_and_others_stay_above(toy, monkeypatch, source, name, process):
    """So a network must disregard what it is shown at position i when it predicts there."""
    world = toy.World(process)
    every, objective = Enumerated(world, source), objective_of(name, process)

    def value(**changes) -> float:
        return expected(source, every.bound(monkeypatch, objective, toy.Informed(source, world, **changes)))

    assert value() == pytest.approx(source.entropy, abs=1e-6)
    if source.length > 3:  # minutes each
        return
    assert value(own=True) > source.entropy + 0.02
    assert value(blur=0.02) > source.entropy + 1e-4


@pytest.mark.parametrize("process", SCORES)
def test_score_entropy_of_any_scores_is_the_enumerated_one(toy, monkeypatch, source, process):
    world = toy.World(process)
    end = 1.0 if process == "masked" else 1 - END
    every, model = Enumerated(world, source, (0.0, end)), toy.Lookup(world, source.length, Scores)
    alpha, mask, _ = world.masses(every.a)
    factor = torch.where(every.x_t == V, (alpha / (mask * V))[:, None], 1.0)
    with torch.no_grad():
        s = model.values(every.x_t, every.level.unsqueeze(1)).exp() * factor.unsqueeze(-1)
    prior = source.length * prior_kl() if end < 1 else 0
    naive = every.integral(score_rate(world, s, every.x_0, every.x_t, every.a)) + prior
    found = every.bound(monkeypatch, objective_of("score_entropy", process), model, end)
    torch.testing.assert_close(found, naive, rtol=1e-6, atol=1e-6)
    assert expected(source, found) > source.entropy + 0.1


def prior_kl() -> float:
    """KL(q_1(. | x_0) || uniform) of one token at alpha = END."""
    q = [(1 - END) / V + END] + [(1 - END) / V] * (V - 1)
    return sum(p * math.log(p * V) for p in q)


@pytest.mark.parametrize("process", SCORES)
def test_exact_ratios_give_the_entropy(toy, monkeypatch, source, process):
    """Over uniform noise there is KL(q_1 || uniform) on top, since the chain starts a little before pure noise."""
    world = toy.World(process)
    end = 1.0 if process == "masked" else 1 - END
    every, objective = Enumerated(world, source, (0.0, end)), objective_of("score_entropy", process)
    found = expected(source, every.bound(monkeypatch, objective, toy.Informed(source, world, scores=True), end))
    rest = 0.0
    if end < 1:
        states, a = world.states(source.length), torch.full((V**source.length,), END, dtype=torch.float64)
        chances = torch.stack([world.chance(x.expand(len(a), -1), states, a) for x in source.sequences])
        last = source.probabilities @ chances
        rest = float((last * (last * V**source.length).log()).sum())
    assert found == pytest.approx(source.entropy + rest, abs=1e-6)
    off = toy.Informed(source, world, blur=0.02, scores=True)
    assert expected(source, every.bound(monkeypatch, objective, off, end)) > source.entropy + 1e-4


def test_normalised_scores_of_masked_noise_are_the_masked_bound(toy, monkeypatch, source):
    """s = alpha / mask p: then score entropy is -alpha' / (1 - alpha) times the cross-entropy of masked tokens."""
    world = toy.World("masked")
    every, logits = Enumerated(world, source), toy.Lookup(world, source.length)

    class Normalised(toy.Known):
        def forward(self, noisy) -> Scores:
            values = logits.values(noisy.x, noisy.noise_level).log_softmax(-1)
            return Scores(toy.padded(values + math.log(V)))

    with torch.no_grad():
        log_p = logits.values(every.x_t, every.level.unsqueeze(1)).log_softmax(-1)
    entropy = -(log_p.gather(-1, every.x_0.unsqueeze(-1)).squeeze(-1) * (every.x_t == V)).sum(1)
    found = every.bound(monkeypatch, objective_of("score_entropy", "masked"), Normalised())
    torch.testing.assert_close(found, every.integral(entropy / (1 - every.a)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["masked", "uniform", "mask_uniform"])
@pytest.mark.parametrize("level", [1e-3, 0.3, 0.95])
def test_forced_draws_with_their_weights_have_the_marginal_law(toy, name, level):
    world, rows = toy.World(name), 40_000
    process = objective_of("discrete_time", name).process
    x_0 = torch.tensor([[0, 2, 1]])
    t = process.time_of(torch.full((rows, 1), level, dtype=torch.float64))
    drawn = draw_states(process, x_0.expand(rows, L), t, Noise(3, torch.arange(rows)))
    place = (drawn.x_t * (V + 1) ** torch.arange(L - 1, -1, -1)).sum(1)
    a = world.a_of(torch.tensor([level], dtype=torch.float64))
    for state in world.states(L):
        seen = drawn.weight * (place == int((state * (V + 1) ** torch.arange(L - 1, -1, -1)).sum()))
        chance = float(world.chance(x_0, state[None], a))
        assert abs(float(seen.mean()) - chance) <= 4.5 * (2 * chance / rows) ** 0.5 + 2 / rows  # no weight is above 2
    _, mask, token = (float(v) for v in world.masses(a))
    masked = (drawn.x_t == V).sum(1)
    most = 2 * L / 0.05 if name == "mask_uniform" else 2 * L  # of two kinds, either is the forced one in 5 % or more
    for count, mass in ((masked, mask), ((drawn.x_t != x_0).sum(1) - masked, V * token)):
        assert mass > 0 or (count == 0).all()
        assert (drawn.weight * count / (mass or 1.0)).max() <= most + 1e-9


@pytest.mark.parametrize(("name", "process"), [*BOUNDS, ("score_entropy", "masked"), ("score_entropy", "uniform")])
def test_the_bounds_own_draws_agree_with_the_entropy(toy, name, process):
    """Length 4, exact predictions: the mean over draws of sequences, states and levels."""
    source, world, rows = toy.Source(V, 4), toy.World(process), 6000
    model = toy.Informed(source, world, scores=name == "score_entropy")
    position = torch.arange(rows)
    found = objective_of(name, process).bound(model, Batch(source.draw(rows), position), Noise(5, position), 4).nll
    error = float(found.std()) / rows**0.5
    assert error < 0.02 * source.entropy
    assert abs(float(found.mean()) - source.entropy) < 4 * error
