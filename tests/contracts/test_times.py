"""Every time sampler: strata, ranks, densities, and that no objective's expectation or bound depends on it."""

import math

import pytest
import torch

from diffusion_lm.config import build, config_class, from_tree, part_class, variants
from diffusion_lm.errors import UserError
from diffusion_lm.experiment import ExperimentConfig
from diffusion_lm.noisy import Batch
from diffusion_lm.objectives.base import TrainingNoise

VOCABULARY = 5


def even(low: float, high: float):
    """P(time <= t) of a constant density, and the density of t."""
    return lambda t: (t - low) / (high - low)


def power_law(low: float, high: float, power: float, t_min: float = 1e-3):
    """The same of a density proportional to y^-power, y = t_min + (1 - t_min) t."""

    def primitive(t):
        y = t_min + (1 - t_min) * t
        return y.log() if power == 1 else y ** (1 - power) / (1 - power)

    def share(t):
        ends = primitive(torch.tensor([low, high], dtype=torch.float64))
        return (primitive(t) - ends[0]) / (ends[1] - ends[0])

    return share


CLIP = {"low": 0.3, "high": 0.8}
CASES = [  # variant, its config, the share of probability below t written a second time
    ("stratified", {}, even(0.0, 1.0)),
    ("stratified", CLIP, even(0.3, 0.8)),
    ("antithetic", {}, even(0.0, 1.0)),
    ("antithetic", CLIP, even(0.3, 0.8)),
    ("clipped", {}, even(0.0, 1.0)),
    ("clipped", CLIP, even(0.3, 0.8)),
    ("importance", {}, power_law(0.0, 1.0, 1.0)),
    ("importance", CLIP, power_law(0.3, 0.8, 1.0)),
    ("importance", {"power": 0.5}, power_law(0.0, 1.0, 0.5)),
    ("importance", {"power": 2.0, "t_min": 0.2}, power_law(0.0, 1.0, 2.0, 0.2)),
]
NAMES = [f"{name}-{'-'.join(map(str, config.values()))}" for name, config, _ in CASES]


@pytest.fixture(params=CASES, ids=NAMES)
def case(request):
    """A sampler, and the share of probability below a time."""
    name, config, share = request.param
    return build(config_class("times", name)(**config)), share


def drawn(sampler, steps: int, global_batch: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Times and weights of some steps. [steps, global batch] each"""
    t, weight = sampler.draw(torch.arange(steps * global_batch), global_batch, seed)
    return t.view(steps, -1), weight.view(steps, -1)


def strata(case, steps: int, global_batch: int) -> torch.Tensor:
    """In which of the equal strata of probability every time lies. [steps, global batch]"""
    sampler, share = case
    return (share(drawn(sampler, steps, global_batch)[0]) * global_batch).floor().long()


def test_every_sampler_is_written_here():
    assert {name for name, *_ in CASES} == set(variants("times"))


@pytest.mark.parametrize("global_batch", [2, 8, 64])
def test_a_step_has_one_time_in_every_stratum(case, global_batch):
    found = strata(case, 40, global_batch)
    assert torch.equal(found.sort(1).values, torch.arange(global_batch).expand(40, -1))


def test_times_lie_in_the_range_and_reach_its_ends(case):
    sampler, _ = case
    t, weight = drawn(sampler, 200, 16)
    low, high = sampler.config.low, sampler.config.high
    assert t.dtype == weight.dtype == torch.float64
    assert t.min() >= low
    assert t.max() <= high
    assert t.min() < low + 0.01
    assert t.max() > high - 0.02


def tied(found: torch.Tensor, groups: torch.Tensor, tools) -> float:
    """p-value of "every group of slots gets every stratum equally often". found: [steps, N], groups: [N].

    A step gives each slot another stratum, a random permutation: the table of group x stratum then scatters about its
    mean N / (N - 1) times as much as independent draws with both margins given would.
    """
    steps, many = found.shape
    count = int(groups.max()) + 1
    table = torch.zeros(count, many, dtype=torch.float64)
    table.index_put_((groups.expand(steps, -1), found), torch.ones((), dtype=torch.float64), accumulate=True)
    expected = steps / count
    statistic = float(((table - expected) ** 2 / expected).sum())
    return tools.p_value(statistic * (many - 1) / many, (count - 1) * (many - 1))


@pytest.mark.parametrize(
    "groups",
    [torch.arange(8), torch.arange(8) // 4, torch.arange(8) % 2, torch.arange(8) // 2, torch.arange(8) % 4],
    ids=["slots", "2 slices", "2 strided", "4 slices", "4 strided"],
)
def test_no_slot_and_no_rank_is_tied_to_a_band(case, tools, groups):
    found = strata(case, 1500, 8)
    assert tied(found, groups, tools) > 1e-4
    assert tied(found.sort(1).values, torch.arange(8), tools) < 1e-12  # strata in the order of the slots are seen


def test_steps_are_shuffled_independently(case):
    """Whether a slot's time is early does not tell whether it is in the next step, nor do offsets repeat."""
    sampler, share = case
    place = share(drawn(sampler, 1500, 8)[0]) - 0.5
    for slot in range(8):
        product = place[1:, slot] * place[:-1, slot]
        assert abs(float(product.mean())) < 4 / 12 / math.sqrt(len(product))
    offsets = ((place + 0.5) * 8 % 1).min(1).values
    assert len((offsets * 1e9).round().unique()) > 1490


def test_times_do_not_depend_on_who_asks(case):
    sampler, _ = case
    position = torch.arange(64)
    t, weight = sampler.draw(position, 16, 5)
    for part in (position[3:4], position[10:30], position.flip(0), position[::7]):
        some, its_weight = sampler.draw(part, 16, 5)
        assert torch.equal(some, t[part])
        assert torch.equal(its_weight, weight[part])
    assert not torch.equal(sampler.draw(position, 16, 6)[0], t)


def test_weight_is_one_over_the_density(case):
    """Relative to a constant density on the range."""
    sampler, share = case
    t, weight = drawn(sampler, 50, 8)
    t.requires_grad_()
    (density,) = torch.autograd.grad(share(t).sum(), t)
    width = sampler.config.high - sampler.config.low
    torch.testing.assert_close(weight * density * width, torch.ones_like(weight), rtol=1e-9, atol=0)


INTEGRALS = [  # f and its primitive
    (lambda t: torch.ones_like(t), lambda t: t),
    (lambda t: t**2, lambda t: t**3 / 3),
    (lambda t: 1 / (t + 0.01), lambda t: math.log(t + 0.01)),
    (lambda t: torch.sin(20 * t), lambda t: -math.cos(20 * t) / 20),
]


@pytest.mark.parametrize(("f", "primitive"), INTEGRALS, ids=["1", "t^2", "1/t", "sin"])
def test_weighted_means_are_integrals(case, tools, f, primitive):
    sampler, _ = case
    t, weight = drawn(sampler, 2000, 8)
    low, high = sampler.config.low, sampler.config.high
    expected = (primitive(high) - primitive(low)) / (high - low)
    means = (weight * f(t)).mean(1)
    assert tools.near(means.unsqueeze(1), expected)
    assert float(means.std()) / math.sqrt(len(means)) < 0.02 * (1 + abs(expected))


def test_antithetic_pairs_mirror_each_other():
    for low, high in ((0.0, 1.0), (0.2, 0.5)):
        sampler = build(config_class("times", "antithetic")(low=low, high=high))
        t = drawn(sampler, 30, 10)[0].sort(1).values
        torch.testing.assert_close(t + t.flip(1), torch.full_like(t, low + high), rtol=0, atol=1e-12)
        torch.testing.assert_close((3 - 2 * t).mean(1), torch.full((30,), 3 - low - high, dtype=torch.float64))


def batch_of(rows: int) -> Batch:
    tokens = torch.randint(VOCABULARY, (rows, 6), generator=torch.Generator().manual_seed(3))
    return Batch(tokens, torch.arange(rows))


def estimators() -> list[tuple[str, str, dict]]:
    """(objective, process, config) of all that draw their times, a word's choices each on its own."""
    found = []
    for name in variants("objectives"):
        cls = part_class(config_class("objectives", name)())
        found += [(name, process, {}) for process in cls.processes]
    more = [
        ("masked", "masked", {"estimator": "fixed_count"}),
        ("gaussian", "gaussian", {"cross_entropy": 1.0, "bound": 0.0}),
    ]
    return found + more


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(("name", "process", "config"), estimators(), ids=str)
@pytest.mark.parametrize("times", ["antithetic", "importance"])
def test_the_expectation_of_an_objective_is_the_same(tools, name, process, config, times):
    """Of the loss, and of its rows' estimates: 10 global batches of 100 rows each, from t = 0.1 on.

    Nearer to 0 some estimators have no variance to measure by.
    """
    cls, steps, rows = part_class(config_class("objectives", name)()), 10, 100
    process = tools.process_of(process, cls.default_schedule, VOCABULARY)
    objective = tools.objective_of(name, process, global_batch=rows, **config)
    model, batch = tools.small_model(process, objective=name), batch_of(steps * rows)
    tools.shaken(model.head, size=0.3)

    def found(sampler: str) -> torch.Tensor:
        sampler = build(config_class("times", sampler)(low=0.1))
        objective.training_noise = TrainingNoise(7, rows, sampler)
        parts = zip(batch.tokens.split(rows), batch.position.split(rows))
        losses = [objective(model, Batch(*part)) for part in parts]
        return torch.stack([torch.stack((loss.loss.double(), loss.nll.double().mean())) for loss in losses])

    plain, other = found("stratified"), found(times)
    error = ((plain.var(0) + other.var(0)) / steps).sqrt()
    assert (error < 0.2 * plain.mean(0).abs()).all()
    assert ((plain.mean(0) - other.mean(0)).abs() < 4.5 * error).all()


def masked_over(times: str, tools, **config):
    process = tools.process_of("masked", "log_linear", VOCABULARY)
    objective = tools.objective_of("masked", process)
    objective.training_noise = TrainingNoise(0, 8, build(config_class("times", times)(**config)))
    return objective


def test_with_power_1_all_rows_of_the_masked_bound_weigh_the_same(tools):
    """MDLM's change of variables: the integral of 1 / t from t_min to 1 over the width of the range."""
    objective = masked_over("importance", tools)
    found = objective.draw(batch_of(8))
    weight = found.weight * objective.process.unmasking_rate(found.t)
    torch.testing.assert_close(weight, torch.full_like(weight, math.log(1000) / 0.999), rtol=1e-9, atol=0)


@pytest.mark.parametrize("times", variants("times"))
def test_a_clipped_range_is_trained_on_and_never_evaluated_on(tools, times):
    whole, clipped = masked_over("stratified", tools), masked_over(times, tools, low=0.3, high=0.8)
    t = clipped.draw(batch_of(8)).t
    assert ((t >= 1e-3 + 0.999 * 0.3) & (t <= 1e-3 + 0.999 * 0.8)).all()
    model = tools.shaken(tools.small_model(whole.process))
    bounds = [o.bound(model, batch_of(8), tools.rows_noise(8), 3) for o in (whole, clipped)]
    assert torch.equal(bounds[0].nll, bounds[1].nll)
    assert torch.equal(bounds[0].level, bounds[1].level)


def test_an_odd_global_batch_is_refused_in_pairs():
    text = (
        "times 'antithetic': got a global batch of 5, expected an even number, for times in pairs; "
        "set another training.batch_size, or times=stratified"
    )
    with pytest.raises(ValueError, match=text):
        TrainingNoise(0, 5, build(config_class("times", "antithetic")()))
    with pytest.raises(UserError, match=text):
        from_tree(ExperimentConfig, {"times": "antithetic", "training": {"batch_size": 5}})
    assert TrainingNoise(0, 5, build(config_class("times", "stratified")())).global_batch == 5


@pytest.mark.parametrize("name", variants("times"))
@pytest.mark.parametrize(("low", "high"), [(-0.1, 1.0), (0.0, 1.1), (0.5, 0.5), (0.8, 0.3)])
def test_a_range_that_is_none_is_refused(name, low, high):
    with pytest.raises(ValueError, match=f"range: got low {low} and high {high}, expected 0 <= low < high <= 1"):
        config_class("times", name)(low=low, high=high)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"power": 0.0}, "power: got 0.0, expected more than 0 and at most 4"),
        ({"power": 5.0}, "power: got 5.0, expected more than 0 and at most 4"),
        ({"t_min": 0.0}, "t_min: got 0.0, expected 1e-12 <= t_min < 1"),
    ],
)
def test_a_density_without_an_integral_is_refused(values, text):
    with pytest.raises(ValueError, match=text):
        config_class("times", "importance")(**values)
