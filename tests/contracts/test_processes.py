"""Every process over every schedule that it can run with: marginals, chains of corruptions, the reverse, the prior."""

import pytest
import torch

from diffusion_lm.config import build, config_class, variants
from diffusion_lm.random import Noise
from diffusion_lm.readouts import Prediction

VOCABULARY, DIMENSIONS, LENGTH, MANY = 5, 3, 4, 6000
SENTENCE = torch.tensor([[0, 4, 2, 2]])


def runnable() -> list[tuple[str, str]]:
    """(process, schedule) of every pair that is not refused."""
    pairs = []
    for process in variants("processes"):
        for schedule in variants("schedules"):
            try:
                build(config_class("processes", process)(), build(config_class("schedules", schedule)()), VOCABULARY)
            except ValueError:
                continue
            pairs.append((process, schedule))
    return pairs


@pytest.fixture(params=runnable(), ids="-".join)
def process(request, tools):
    return tools.process_of(*request.param, vocabulary=VOCABULARY)


@pytest.fixture
def world(process, tools):
    """The process, a token table, and one sentence many times over as its clean state."""
    table = tools.circle(process.symbols, DIMENSIONS)
    return process, table, process.encode(SENTENCE.expand(MANY, LENGTH), table), tools.rows_noise(MANY)


def test_every_process_runs_with_a_schedule():
    assert {process for process, _ in runnable()} == set(variants("processes"))


def column(t: float, rows: int = MANY) -> torch.Tensor:
    return torch.full((rows, 1), t, dtype=torch.float64)


def check_law(process, tools, samples, law, places=slice(None)) -> None:
    """Samples [N, ...] of one sentence against a distribution that is the same for every row."""
    if process.discrete:
        probabilities = law.probabilities(process.symbols)[0]
        torch.testing.assert_close(probabilities.sum(-1), torch.ones_like(probabilities[:, 0]))
        for place in range(LENGTH)[places]:
            counts = torch.bincount(samples[:, place], minlength=process.symbols)
            assert tools.chi_square(counts, probabilities[place]) > 1e-4
        return
    mean, std = law.mean[0, places], law.std.expand_as(law.mean)[0, places]
    samples = samples[:, places]
    assert tools.near(samples, mean)
    assert tools.near((samples - mean) ** 2, std**2)


@pytest.mark.parametrize("t", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_marginal_is_the_law_of_corrupt(world, tools, t):
    process, _, x_0, noise = world
    check_law(process, tools, process.corrupt(x_0, column(t), noise), process.marginal(x_0, column(t)))
    check_law(process, tools, process.marginal(x_0, column(t)).sample(noise.at(3)), process.marginal(x_0, column(t)))


def test_positions_may_have_times_of_their_own(world, tools):
    process, _, x_0, noise = world
    t = torch.tensor([[0.1, 0.9, 0.1, 0.5]], dtype=torch.float64).expand(MANY, LENGTH)
    samples = process.corrupt(x_0, t, noise)
    check_law(process, tools, samples, process.marginal(x_0, t))
    for place, own in enumerate((0.1, 0.9, 0.1, 0.5)):
        check_law(process, tools, samples, process.marginal(x_0, column(own)), slice(place, place + 1))


@pytest.mark.parametrize(("s", "t"), [(0.0, 0.4), (0.2, 0.6), (0.5, 1.0)])
def test_corrupting_in_two_steps_has_the_law_of_one(world, tools, s, t):
    process, _, x_0, noise = world
    x_s = process.corrupt(x_0, column(s), noise)
    x_t = process.corrupt(x_s, column(t), noise.at(1), column(s))
    check_law(process, tools, x_t, process.marginal(x_0, column(t)))


@pytest.mark.parametrize(("s", "t"), [(0.0, 0.3), (0.3, 0.7), (0.7, 1.0), (0.1, 0.9)])
def test_reverse_undoes_a_step_when_the_prediction_is_right(world, tools, s, t):
    """(x_s, x_t) has one law, whether x_t is drawn after x_s or x_s by `reverse` from x_t and x_0."""
    process, table, x_0, noise = world
    x_s = process.corrupt(x_0, column(s), noise)
    x_t = process.corrupt(x_s, column(t), noise.at(1), column(s))
    step = process.reverse(x_t, point_mass(process, SENTENCE.expand(MANY, LENGTH)), column(t), column(s), table)
    back = step.sample(noise.at(2))
    check_law(process, tools, back, process.marginal(x_0, column(s)))
    if process.discrete:
        pair, again = (v * process.symbols + x_t for v in (x_s, back))
        for place in range(LENGTH):
            assert tools.two_sample(pair[:, place], again[:, place], process.symbols**2) > 1e-4
    else:
        assert tools.near((back - x_s) * x_t, 0.0)


@pytest.mark.parametrize(("s", "t"), [(0.0, 0.3), (0.2, 0.9)])
def test_reverse_samples_have_its_law_for_any_prediction(world, tools, s, t):
    """A prediction that contradicts what is seen, too."""
    process, table, x_0, noise = world
    x_t = process.corrupt(x_0[:1], column(t, 1), noise_of(5)).expand_as(x_0)
    if process.discrete:
        x_t = torch.where(torch.tensor([True, False, True, False]), x_0, x_t)
    logits = torch.randn(1, LENGTH, process.symbols + 2, generator=torch.Generator().manual_seed(1)).double()
    logits[..., VOCABULARY:] = -torch.inf
    step = process.reverse(x_t, Prediction(logits.expand(MANY, -1, -1)), column(t), column(s), table)
    check_law(process, tools, step.sample(noise.at(1)), step)


def noise_of(position: int) -> Noise:
    return Noise(0, torch.tensor([position]))


def point_mass(process, tokens: torch.Tensor) -> Prediction:
    width = process.symbols + 2
    return Prediction(torch.nn.functional.one_hot(tokens, width).double().log())


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_an_oracle_reversed_to_the_start_and_decoded_gives_the_text(process, tools, steps):
    tokens = torch.randint(VOCABULARY, (50, LENGTH), generator=torch.Generator().manual_seed(steps))
    table, noise = tools.circle(process.symbols, DIMENSIONS), tools.rows_noise(50)
    x, prediction = process.prior(tokens, table, noise), point_mass(process, tokens)
    for step in range(steps):
        t, s = column(1 - step / steps, 50), column(1 - (step + 1) / steps, 50)
        x = process.reverse(x, prediction, t, s, table).sample(noise.at(step))
    assert torch.equal(process.decode(x, prediction, noise.at(steps)), tokens)
    if process.holds_tokens(x, column(0.0, 50)).all():
        assert torch.equal(x, tokens)


def test_noise_level_rises_with_time_from_clean_to_noise(process):
    level = process.noise_level(torch.linspace(0, 1, 201, dtype=torch.float64).unsqueeze(1)).squeeze(1)
    if process.shifted:  # what is known is clean
        assert (level == 0).all()
        return
    assert level.min() >= -1e-9
    assert level.max() <= 1 + 1e-9
    assert (level.diff() > 0).all()
    inside = 0.03 if process.schedule.learned else 0.0  # a learned schedule starts near the ends of the range
    replaced = 1 - process.schedule.alpha_0 if process.discrete else 0.0  # before the first moment; mask_uniform: more
    assert replaced - inside - 1e-9 < float(level[0]) < inside + replaced + replaced**0.5 / 4 + 1e-9
    alpha_1 = float(process.alpha(column(1.0, 1)))
    assert abs(float(level[-1]) - 1) <= inside + alpha_1 + 1e-9


def test_alpha_falls_within_the_schedules_ends(process):
    """Noise of two kinds, or an order, may take a discrete process below what its schedule leaves."""
    alpha = process.alpha(torch.linspace(0, 1, 201, dtype=torch.float64).unsqueeze(1)).squeeze(1)
    assert (alpha.diff() < 0).all()
    assert (0.0 if process.discrete else process.schedule.alpha_1) - 1e-12 <= alpha[-1]
    assert process.shifted or alpha[0] <= process.schedule.alpha_0 + 1e-12


def test_prior_is_the_marginal_at_the_end_up_to_the_declared_end(world, tools):
    process, table, x_0, noise = world
    samples = process.prior(SENTENCE.expand(MANY, LENGTH), table, noise)
    left = float(process.alpha(column(1.0, 1)))
    law = process.marginal(x_0[:1], column(1.0, 1))
    assert samples.shape == x_0.shape
    if process.discrete:
        for place in range(LENGTH):
            share = torch.bincount(samples[:, place], minlength=process.symbols) / MANY
            distance = 0.5 * (share - law.probabilities(process.symbols)[0, place]).abs().sum()
            assert distance <= left + 4 * (process.symbols / MANY) ** 0.5
    else:
        assert tools.near(samples, 0.0)
        assert tools.near(samples**2, 1.0)
        assert (law.mean.square().sum(-1) <= left * DIMENSIONS * (1 + 1e-6)).all()
        assert ((1 - law.std**2) <= left + 1e-9).all()


def test_reverse_keeps_the_state_when_no_time_passes(process, tools):
    tokens = SENTENCE.expand(20, LENGTH)
    table, noise = tools.circle(process.symbols, DIMENSIONS), tools.rows_noise(20)
    x_t = process.corrupt(process.encode(tokens, table), column(0.6, 20), noise)
    same = process.reverse(x_t, point_mass(process, tokens), column(0.6, 20), column(0.6, 20), table).sample(
        noise.at(1)
    )
    torch.testing.assert_close(same, x_t)


def test_a_row_alone_is_the_row_in_the_batch(process, tools):
    tokens = torch.randint(VOCABULARY, (6, LENGTH), generator=torch.Generator().manual_seed(1))
    table, noise = tools.circle(process.symbols, DIMENSIONS), tools.rows_noise(6, seed=9)
    alone = Noise(9, torch.tensor([4]))
    x_0 = process.encode(tokens, table)
    t = torch.linspace(0.2, 0.9, 6, dtype=torch.float64).unsqueeze(1)
    assert torch.equal(process.corrupt(x_0, t, noise)[4:5], process.corrupt(x_0[4:5], t[4:5], alone))
    assert torch.equal(process.prior(tokens, table, noise)[4:5], process.prior(tokens[4:5], table, alone))
    prediction, step = point_mass(process, tokens), process.corrupt(x_0, t, noise)
    whole = process.reverse(step, prediction, t, t / 2, table).sample(noise)
    one = process.reverse(step[4:5], Prediction(prediction.logits[4:5]), t[4:5], t[4:5] / 2, table).sample(alone)
    assert torch.equal(whole[4:5], one)


def test_idle_rows_stay_whatever_is_predicted(process, tools):
    """And where noise is the mask alone, the others change: idle is exact."""
    tokens, rows = torch.randint(VOCABULARY, (400, LENGTH), generator=torch.Generator().manual_seed(0)), 400
    table, noise = tools.circle(process.symbols, DIMENSIONS), tools.rows_noise(rows)
    t, s = column(0.7, rows), column(0.65, rows)
    x_t = process.corrupt(process.encode(tokens, table), t, noise)
    idle = process.idle(x_t, t, s, noise.at(1))
    for shift in (0, 1):
        said = point_mass(process, (tokens + shift) % VOCABULARY)
        x_s = process.reverse(x_t, said, t, s, table).sample(noise.at(1))
        same = (x_s == x_t).flatten(1).all(1)
        assert same[idle].all()
        if getattr(process, "absorbing", False):
            assert torch.equal(same, idle) and idle.any() and not idle.all()
