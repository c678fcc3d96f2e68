"""Forward and reverse kernels of the discrete processes as matrices: everything about one token is enumerated."""

import pytest
import torch

from diffusion_lm.config import build, config_class
from diffusion_lm.noisy import Noisy
from diffusion_lm.random import Noise
from diffusion_lm.readouts import Prediction

V = 3
PROCESSES = {  # name, settings, and the same in the toy's words
    "masked": ("masked", {}, {}),
    "uniform": ("uniform", {}, {}),
    "mask_uniform": ("mask_uniform", {}, {}),
    "mask_and_much_uniform": ("mask_uniform", {"uniform_share": 0.4, "gamma": 1.6}, {"share": 0.4, "gamma": 1.6}),
}
SCHEDULES = {
    "cosine": {},
    "log_linear": {"eps": 0.0},
    "geometric": {"sigma_min": 0.05, "sigma_max": 4.0},
    "sqrt": {"s": 0.04},
}
TIMES = [(0.0, 0.3), (0.2, 0.7), (0.9, 1.0), (0.0, 1.0)]


@pytest.fixture(params=list(SCHEDULES))
def schedule(request):
    return build(config_class("schedules", request.param)(**SCHEDULES[request.param]))


@pytest.fixture(params=list(PROCESSES))
def pair(request, toy, schedule):
    """(process, the same as matrices)"""
    name, settings, words = PROCESSES[request.param]
    return build(config_class("processes", name)(**settings), schedule, V), toy.World(name, V, **words)


def column(value: float, rows: int = 1) -> torch.Tensor:
    return torch.full((rows, 1), value, dtype=torch.float64)


def kernel(process, world, t: float) -> torch.Tensor:
    """K_t among the symbols of the process."""
    return world.kernel(process.schedule.alpha(column(t)).flatten())[0, : process.symbols, : process.symbols]


def every_symbol(process) -> torch.Tensor:
    return torch.arange(process.symbols).unsqueeze(1)


def said(toy, process, p: torch.Tensor) -> Prediction:
    """The same prediction for every symbol."""
    return Prediction(toy.padded(p.log()).expand(process.symbols, 1, V + 2))


def reversed_step(toy, process, p: torch.Tensor, t: float, s: float) -> torch.Tensor:
    """[x_t, x_s]"""
    rows = process.symbols
    step = process.reverse(
        every_symbol(process), said(toy, process, p), column(t, rows), column(s, rows), torch.zeros(rows, 1)
    )
    return step.probabilities(rows)[:, 0]


@pytest.fixture
def p(toy) -> torch.Tensor:
    return toy.Source(V, 1, seed=5, sharpness=1.0).probabilities


@pytest.mark.parametrize("t", [0.0, 0.4, 1.0])
def test_the_marginal_is_the_kernel(pair, t):
    process, world = pair
    law = process.marginal(every_symbol(process)[:V], column(t, V)).probabilities(process.symbols)[:, 0]
    torch.testing.assert_close(law, kernel(process, world, t)[:V])
    level = 1 - world.masses(process.schedule.alpha(column(t)))[0]
    torch.testing.assert_close(process.noise_level(column(t)), level)


@pytest.mark.parametrize(("s", "t"), TIMES)
def test_the_two_steps_make_one(pair, s, t):
    process, world = pair
    masses = process.between(column(t), column(s))
    noise = torch.cat((masses.token.expand(1, V), masses.mask), 1)[0, : process.symbols]
    between = masses.alpha * torch.eye(process.symbols) + noise
    assert between.min() > -1e-12
    torch.testing.assert_close(between.sum(1), torch.ones(process.symbols, dtype=torch.float64))
    torch.testing.assert_close(kernel(process, world, s) @ between, kernel(process, world, t))


@pytest.mark.parametrize("t", [0.05, 0.5, 0.93])
def test_rates_are_those_of_the_kernel(pair, t):
    process, world = pair
    a = process.schedule.alpha(column(t)).flatten()
    rates = world.rates(a)[0] * -process.schedule.alpha_prime(column(t))
    to_mask, to_token = process.rates(column(t))
    assert float(to_token) == pytest.approx(float(rates[0, 1]), rel=1e-8, abs=1e-12)
    assert float(to_mask) == pytest.approx(float(rates[0, V]), rel=1e-8, abs=1e-12)
    slope = torch.autograd.functional.jvp(process.alpha, (column(t),), (column(1.0),))[1]
    torch.testing.assert_close(process.alpha_prime(column(t)), slope)


@pytest.mark.parametrize(("s", "t"), TIMES)
def test_reverse_is_bayes_rule_with_the_prediction_as_the_source(toy, pair, p, s, t):
    process, world = pair
    earlier, later = kernel(process, world, s), kernel(process, world, t)
    onwards = torch.linalg.solve(earlier, later)
    before = p @ earlier[:V]
    by_bayes = (before[:, None] * onwards).T  # [x_t, x_s]
    possible = by_bayes.sum(1) > 1e-12
    by_bayes = by_bayes[possible] / by_bayes[possible].sum(1, keepdim=True)
    step = reversed_step(toy, process, p, t, s)
    torch.testing.assert_close(step[possible], by_bayes, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(step.sum(1), torch.ones(process.symbols, dtype=torch.float64))


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_chain_from_the_last_marginal_ends_in_the_first(toy, pair, p, steps):
    """Whatever the number of steps, with what the source says of one token, which is all that is left out."""
    process, world = pair
    law = p @ kernel(process, world, 1.0)[:V]
    for step in range(steps):
        law = law @ reversed_step(toy, process, p, 1 - step / steps, 1 - (step + 1) / steps)
        at = p @ kernel(process, world, 1 - (step + 1) / steps)[:V]
        torch.testing.assert_close(law, at, rtol=1e-9, atol=1e-12)


def test_the_prior_is_the_last_marginal_where_nothing_is_left(toy, pair, p):
    process, world = pair
    rows = 20_000
    drawn = process.prior(torch.zeros(rows, 1, dtype=torch.long), torch.zeros(1, 1), Noise(0, torch.arange(rows)))
    left = float(process.alpha(column(1.0)))
    law = (kernel(process, world, 1.0)[0] - left * torch.eye(process.symbols)[0]) / (1 - left)
    counts = torch.bincount(drawn[:, 0], minlength=process.symbols).double()
    assert counts[law < 1e-12].sum() == 0
    if (law > 1e-12).sum() > 1:
        assert toy.chi_square(counts[law > 1e-12], law[law > 1e-12]) > 1e-4


def test_decoding_what_the_start_leaves_open_gives_the_source(toy, pair, p):
    """x_0 given the state at t = 0: its law is Bayes' rule, and the source's over all states."""
    process, world = pair
    rows = 30_000
    text = torch.multinomial(p, rows, replacement=True, generator=torch.Generator().manual_seed(0)).unsqueeze(1)
    noise = Noise(1, torch.arange(rows))
    start = process.corrupt(text, column(0.0, rows), noise)
    logits = toy.padded(p.log()).expand(rows, 1, V + 2)
    tokens = process.decode(start, Prediction(logits), noise.at(1))
    assert tokens.max() < V
    assert toy.chi_square(torch.bincount(tokens[:, 0], minlength=V).double(), p) > 1e-4
    joint = p[:, None] * kernel(process, world, 0.0)[:V]  # [x_0, z]
    seen = torch.bincount((start * V + tokens)[:, 0], minlength=process.symbols * V).double()
    wanted = joint.T.flatten()
    assert seen[wanted < 1e-12].sum() == 0
    assert toy.chi_square(seen[wanted > 1e-12], wanted[wanted > 1e-12]) > 1e-4
    if process.holds_tokens(start, column(0.0, rows)).all():
        assert torch.equal(start, tokens)


@pytest.mark.parametrize("name", ["masked", "uniform"])
def test_a_chain_of_ratios_ends_in_the_source_too(toy, name):
    """The readout `score`: what the reverse step needs is read from ratios of p_t."""
    one, world, steps = toy.Source(V, 1, seed=5, sharpness=1.0), toy.World(name), 4
    process = build(config_class("processes", name)(), build(config_class("schedules", "log_linear")(eps=0.02)), V)
    model, rows = toy.Informed(one, world, scores=True), process.symbols
    law = one.probabilities @ kernel(process, world, 1.0)[:V]
    for step in range(steps):
        t, s = (column(1 - k / steps, rows) for k in (step, step + 1))
        said = model(Noisy(every_symbol(process), process.noise_level(t)))
        back = process.reverse(every_symbol(process), said, t, s, torch.zeros(rows, 1))
        law = law @ back.probabilities(rows)[:, 0]
    torch.testing.assert_close(law[:V], one.probabilities, rtol=1e-8, atol=1e-10)
    assert (law[V:] < 1e-12).all()
