"""The search for a range of times on a toy whose variances are integrals: the range found is the one of least variance.

A model says of every masked token what it is with -ln p = c(level). Of a block of S tokens, k of them masked with
probability l = (1 - eps) t each, the loss per token is X = k c(l) / (t S), so that at a time t

    E[X] = (1 - eps) c,   E[X^2] = c^2 (S l (1 - l) + S^2 l^2) / (t S)^2.
"""

import math

import pytest
import torch

from diffusion_lm.config import build, config_class, from_tree
from diffusion_lm.errors import UserError
from diffusion_lm.experiment import ExperimentConfig, load
from diffusion_lm.noisy import Batch
from diffusion_lm.random import Noise, Stream
from diffusion_lm.readouts import Prediction
from diffusion_lm.times.clipped import ClippedConfig
from diffusion_lm.training.clip_search import ClipSearch, Search, variances

V, S, L, EPS = 3, 2, 8, 1e-3
GRID = {"widths": [0.5, 0.7, 1.0], "step": 0.1}
MIDDLE, LATE = (lambda level: 0.2 + 6 * (level - 0.6) ** 2), (lambda level: 0.2 + 3 * (level - 0.7).abs())


def exact_variance(c, low: float, high: float, size: int = S) -> float:
    """Of X with t uniform over the range, by the midpoint rule."""
    t = EPS + (1 - EPS) * (low + (high - low) * (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)
    level = (1 - EPS) * t
    squared = c(level) ** 2 / (t * size) ** 2 * (size * level * (1 - level) + (size * level) ** 2)
    return float(squared.mean() - ((1 - EPS) * c(level)).mean() ** 2)


def searched(toy, c, size: int = S, rows: int = 1500, **settings) -> tuple[Search, dict[str, float]]:
    """A search over texts of one token all along."""
    tree = {"times": {"name": "clipped", **GRID, **settings}, "data": {"length": L}, "block_size": size}
    config = from_tree(ExperimentConfig, tree)
    process = build(config.process, build(config.schedule), V)

    class Says(toy.Known):
        process = None

        def forward(self, noisy) -> Prediction:
            p = torch.exp(-c(noisy.noise_level)).unsqueeze(-1).expand(*noisy.x.shape, 1)
            return Prediction(toy.padded(torch.cat((p, ((1 - p) / (V - 1)).expand(-1, -1, V - 1)), -1).log()))

    search = Search(config, process, build(config.times))
    search.take(Says(), Batch(torch.zeros(rows, L, dtype=torch.long), torch.arange(rows)))
    return search, search.choose(search.taken())


@pytest.mark.parametrize(("c", "best"), [(MIDDLE, (0.4, 0.9)), (LATE, (0.5, 1.0))])
def test_the_range_of_least_variance_is_found(toy, c, best):
    search, found = searched(toy, c)
    wanted = {(low, high): exact_variance(c, low, high) for low, high in search.sampler.ranges()}
    assert min(wanted, key=wanted.__getitem__) == best == (found["low"], found["high"])
    assert (search.sampler.low, search.sampler.high) == best
    assert found["variance"] == pytest.approx(wanted[best], rel=0.05)
    assert found["variance_of_whole_range"] > 5 * found["variance"]
    t, weight = search.sampler.draw(torch.arange(64), 8, 0)
    assert t.min() >= best[0] and t.max() <= best[1] and (weight == 1).all()


def test_blocks_of_one_token_are_trained_with_much_noise(toy):
    """With one loss c at every level Var = c^2 (E[1 / t] - 1): the more masks, the less of it."""
    search, found = searched(toy, lambda level: torch.full_like(level, 0.7), size=1, widths=[0.5])
    assert (found["low"], found["high"]) == (0.5, 1.0) == search.sampler.ranges()[-1]
    assert found["variance"] == pytest.approx(0.49 * (2 * math.log(2) - 1), rel=0.05)


def test_every_ranges_variance_is_that_of_the_losses_in_it():
    generator = torch.Generator().manual_seed(0)
    t = torch.rand(500, generator=generator, dtype=torch.float64)
    losses = 100 + t * torch.randn(500, generator=generator, dtype=torch.float64)
    ranges = build(config_class("times", "clipped")()).ranges()
    naive = [float(losses[(t >= low) & (t < high)].var()) for low, high in ranges]
    torch.testing.assert_close(variances(t, losses, ranges), torch.tensor(naive, dtype=torch.float64))
    assert variances(t[:1], losses[:1], [(0.0, 1.0)]).tolist() == [math.inf]


def test_a_searchs_times_are_the_bounds_levels_and_do_not_depend_on_batches(toy):
    search, _ = searched(toy, MIDDLE, rows=40)
    for number, objective in enumerate(search.objectives):
        position = torch.arange(40)
        t = objective.training_noise.times(position)[0]
        assert ((t >= number / 8) & (t <= (number + 1) / 8)).all()
        assert torch.equal(objective.training_noise.times(position[7:9])[0], t[7:9])
        uniform = objective.training_noise.noise(position).uniform(Stream.CORRUPT, 3)
        assert torch.equal(uniform, Noise(1234, position).at(number).uniform(Stream.CORRUPT, 3))


def test_a_checkpoint_keeps_the_range(toy):
    callbacks = []
    for c in (MIDDLE, LATE):
        callbacks.append(ClipSearch())
        callbacks[-1].search, _ = searched(toy, c, rows=300)
    first, other = callbacks
    assert first.state_dict() == {"low": 0.4, "high": 0.9} != other.state_dict()
    other.load_state_dict(first.state_dict())
    t = [each.search.sampler.draw(torch.arange(16), 8, 0)[0] for each in callbacks]
    assert torch.equal(*t) and t[0].min() >= 0.4


def test_the_grid_by_hand():
    sampler = build(ClippedConfig(widths=(0.8, 1.0), step=0.1))
    assert sampler.ranges() == [(0.0, 1.0), (0.0, 0.8), (0.1, 0.9), (0.2, 1.0)]
    assert (sampler.low, sampler.high) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"widths": []}, r"widths: got \[\], expected numbers above 0 and at most 1"),
        ({"widths": [0.5, 1.5]}, r"widths: got \[0.5, 1.5\], expected numbers above 0 and at most 1"),
        ({"step": 0.0}, "step: got 0.0, expected 0.001 to 1"),
        ({"draws": 0}, "draws: got 0, expected at least 1"),
        ({"low": 0.6, "high": 0.5}, "range: got low 0.6 and high 0.5, expected 0 <= low < high <= 1"),
    ],
)
def test_a_grid_that_is_none_is_refused(values, line):
    with pytest.raises(UserError, match=f"^times: {line}"):
        from_tree(ExperimentConfig, {"times": {"name": "clipped", **values}})


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["training.val_every=0"], "times: got clipped, which has no effect here: with training.val_every 0 and 1000 "),
        (["training.val_every=1000"], "times: got clipped, which has no effect here: with training.val_every 1000 "),
        (
            ["objective={name: gaussian, cross_entropy: 1}"],
            "times 'clipped': got objective.cross_entropy 1.0, but the range is searched by the variance of the bound ",
        ),
        (["objective=gaussian", "schedule=learned"], "times: got a search for it with a learned schedule, which would"),
    ],
)
def test_a_search_without_a_meaning_is_refused(tmp_path, overrides, line):
    (tmp_path / "tiny.yaml").write_text("{times: clipped, denoiser: transformer}")
    load(tmp_path / "tiny.yaml")
    with pytest.raises(UserError) as refused:
        load(tmp_path / "tiny.yaml", overrides)
    assert line in str(refused.value) and "\n" not in str(refused.value)
