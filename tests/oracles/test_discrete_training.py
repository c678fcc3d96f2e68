"""Training losses of the objectives over ids: value and gradients against naive ones, V-wide and in float64.

The naive side takes from `draw` the states, times, weights and given positions, and makes of them, by the kernels of a
single token, what the papers minimise. Vocabulary 3, length 4, every last layer a parameter.
"""

import math
from dataclasses import dataclass

import pytest
import torch

from diffusion_lm.config import build, config_class, part_class
from diffusion_lm.noisy import Batch, Corrupted
from diffusion_lm.objectives.base import TrainingNoise
from diffusion_lm.prompts import PromptConfig
from diffusion_lm.random import Noise
from diffusion_lm.readouts import READOUTS

V, L, ROWS, T = 3, 4, 48, 4
SCHEDULES = {
    "log_linear": ({"eps": 0.01}, lambda t: 1 - 0.99 * t, lambda t: torch.full_like(t, 0.99)),
    "cosine": (
        {"s": 0.0},
        lambda t: torch.cos(t * math.pi / 2) ** 2,
        lambda t: math.pi / 2 * torch.sin(math.pi * t),
    ),
}


@dataclass(frozen=True)
class Weighted:
    """Times with a density that is not uniform."""

    usual: TrainingNoise

    def times(self, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        v, weight = self.usual.times(position)
        return v**2, weight * 2 * v

    def noise(self, position: torch.Tensor) -> Noise:
        return self.usual.noise(position)

    def mean_of_step(self, position, value):
        """As if the rows were a global batch."""
        return value(position).mean().expand(len(position))


@dataclass(frozen=True)
class Seen:
    """A draw as the naive side reads it. weight [N, 1]: of the times; slope: -da / dt; scored: not given."""

    world: object
    drawn: Corrupted
    a: torch.Tensor
    slope: torch.Tensor
    earlier: torch.Tensor
    values: torch.Tensor

    @property
    def masked(self) -> torch.Tensor:
        return self.drawn.x_t == V

    @property
    def scored(self) -> torch.Tensor:
        given = self.drawn.given
        return torch.ones_like(self.drawn.x_t, dtype=torch.bool) if given is None else ~given

    def kernel(self, a: torch.Tensor) -> torch.Tensor:
        return self.world.kernel(a)

    def entropy(self) -> torch.Tensor:
        return -self.values.log_softmax(-1).gather(-1, self.drawn.tokens.unsqueeze(-1)).squeeze(-1)

    def at_state(self, table: torch.Tensor) -> torch.Tensor:
        return table.gather(-1, self.drawn.x_t.unsqueeze(-1)).squeeze(-1)

    def truth_and_guess(self, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """q( . | x_0) and q( . | prediction). [N, L, V + 1]"""
        kernel = self.kernel(a)
        truth = kernel[torch.arange(len(a))[:, None], self.drawn.tokens]
        return truth, self.values.softmax(-1) @ kernel[:, :V]

    def rates_here(self) -> torch.Tensor:
        """Q(y, z) per unit of t, over y. [N, L, V + 1]"""
        rates = self.world.rates(self.a) * self.slope[:, None, None]
        return rates.transpose(1, 2)[torch.arange(len(self.a))[:, None], self.drawn.x_t]


def masked_bound(seen: Seen) -> torch.Tensor:
    return (seen.slope / (1 - seen.a))[:, None] * seen.entropy() * seen.masked


def fixed_count(seen: Seen) -> torch.Tensor:
    free, count = (v.sum(1, keepdim=True).double() for v in (seen.scored, seen.masked))
    return free / count * seen.entropy() * seen.masked


def jumps(seen: Seen) -> torch.Tensor:
    """KL(q || q') + r - ln r - 1, r = q(z) / q'(z), every symbol written out."""
    truth, guess = seen.truth_and_guess(seen.a)
    ratio = seen.at_state(truth / guess.where(guess > 0, 1.0))
    return torch.xlogy(truth, truth / guess.where(truth > 0, 1.0)).sum(-1) + ratio - ratio.log() - 1


def jump_weights(seen: Seen) -> torch.Tensor:
    """Arrivals at the state from any one other, over its probability."""
    truth, _ = seen.truth_and_guess(seen.a)
    other = (seen.drawn.x_t == 0).long().unsqueeze(-1)
    return seen.rates_here().gather(-1, other).squeeze(-1) / seen.at_state(truth)


def jump_bound(seen: Seen) -> torch.Tensor:
    return jump_weights(seen) * jumps(seen)


def clamped(seen: Seen) -> torch.Tensor:
    return jump_weights(seen).clamp(max=10.0) * jumps(seen)


def relative(seen: Seen) -> torch.Tensor:
    _, _, token = seen.world.masses(seen.a)
    rate = seen.world.rates(seen.a)[:, 0, 1] * seen.slope
    return jump_weights(seen) * (token / rate)[:, None] * jumps(seen)


def steps(seen: Seen) -> torch.Tensor:
    between = torch.linalg.solve(seen.kernel(seen.earlier), seen.kernel(seen.a)).clamp(min=0.0)
    onwards = between.transpose(1, 2)[torch.arange(len(seen.a))[:, None], seen.drawn.x_t]
    true, guess = (v * onwards for v in seen.truth_and_guess(seen.earlier))
    true, guess = (v / v.sum(-1, keepdim=True) for v in (true, guess))
    return T * torch.xlogy(true, true / guess.where(true > 0, 1.0)).sum(-1)


def scores(seen: Seen) -> torch.Tensor:
    alpha, mask, _ = seen.world.masses(seen.a)
    factor = torch.where(seen.masked, (alpha / (mask * V).clamp(min=1e-30))[:, None], 1.0).unsqueeze(-1)
    s = seen.values.exp() * factor
    truth, _ = seen.truth_and_guess(seen.a)
    rho = (truth / seen.at_state(truth).unsqueeze(-1))[..., :V]
    terms = seen.rates_here()[..., :V] * (s - torch.xlogy(rho, s) + torch.xlogy(rho, rho) - rho)
    return terms.masked_fill(torch.arange(V) == seen.drawn.x_t.unsqueeze(-1), 0.0).sum(-1)


def own_cross_entropy(seen: Seen) -> torch.Tensor:
    likely = seen.kernel(seen.a).transpose(1, 2)[torch.arange(ROWS)[:, None], seen.drawn.x_t][..., :V]
    joint = seen.values.softmax(-1) * likely
    return -(joint.gather(-1, seen.drawn.tokens.unsqueeze(-1)).squeeze(-1) / joint.sum(-1)).log()


def masked_cross_entropy(seen: Seen) -> torch.Tensor:
    return seen.entropy() * seen.masked


NAIVE = {  # (objective, process, settings): loss per position and unit of time
    ("masked", "masked", ()): masked_bound,
    ("masked", "masked", (("estimator", "fixed_count"),)): fixed_count,
    ("uniform", "uniform", ()): jump_bound,
    ("gidd", "uniform", ()): jump_bound,
    ("gidd", "mask_uniform", ()): jump_bound,
    ("gidd", "mask_uniform", (("weighting", "clamp"),)): clamped,
    ("gidd", "mask_uniform", (("weighting", "dynamic"),)): relative,
    ("discrete_time", "masked", (("num_steps", T),)): steps,
    ("discrete_time", "uniform", (("num_steps", T),)): steps,
    ("discrete_time", "mask_uniform", (("num_steps", T),)): steps,
    ("score_entropy", "masked", ()): scores,
    ("score_entropy", "uniform", ()): scores,
    ("cross_entropy", "masked", ()): masked_cross_entropy,
    ("cross_entropy", "uniform", ()): own_cross_entropy,
    ("cross_entropy", "mask_uniform", ()): own_cross_entropy,
}


def objective_of(name: str, process: str, settings: tuple, schedule: str, prompt: float, rows: int = ROWS):
    alpha = build(config_class("schedules", schedule)(**SCHEDULES[schedule][0]))
    process = build(config_class("processes", process)(), alpha, V)
    config = config_class("objectives", name)(**dict(settings))
    objective = build(config, process, PromptConfig(fraction=prompt), TrainingNoise(3, rows))
    objective.training_noise = Weighted(objective.training_noise)
    return objective


@pytest.mark.parametrize("prompt", [0.0, 0.6])
@pytest.mark.parametrize("schedule", list(SCHEDULES))
@pytest.mark.parametrize("case", list(NAIVE), ids=lambda case: "-".join((*case[:2], *(str(v) for _, v in case[2]))))
def test_value_and_gradients_of_the_loss(toy, case, schedule, prompt):
    name, process, settings = case
    objective, world = objective_of(name, process, settings, schedule, prompt), toy.World(process)
    model = toy.Lookup(world, L, READOUTS[part_class(config_class("objectives", name)()).readout])
    tokens = torch.randint(V, (ROWS, L), generator=torch.Generator().manual_seed(0))
    drawn = objective.draw(Batch(tokens, torch.arange(ROWS)))
    loss = objective(model, drawn)
    (found,) = torch.autograd.grad(loss.loss, model.weight)

    _, alpha, slope = SCHEDULES[schedule]
    t = drawn.t.squeeze(1)
    a = alpha(t)
    level = (1 - world.masses(a)[0]).unsqueeze(1)
    if ("estimator", "fixed_count") in settings:
        level = drawn.t  # there t is the masked share itself
    seen = Seen(world, drawn, a, slope(t), alpha((t - 1 / T).clamp(min=0.0)), model.values(drawn.x_t, level))
    losses = drawn.weight * NAIVE[case](seen) * seen.scored
    weighs = losses.sum(1)
    count = seen.scored.sum().double()
    if name == "cross_entropy":  # a mean over what is scored, whatever the time; of masks, as many as are expected
        share = (1 - a).unsqueeze(1) if process == "masked" else 1.0
        count = (drawn.weight * share * seen.scored).sum()
    naive = losses.sum() / count
    (wanted,) = torch.autograd.grad(naive, model.weight)

    torch.testing.assert_close(loss.loss.double(), naive, rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(loss.nll.double(), weighs, rtol=2e-6, atol=1e-5)
    assert torch.equal(loss.tokens.long(), seen.scored.sum(1))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6 * float(wanted.abs().max()))
    assert wanted.abs().max() > 0


@pytest.mark.parametrize("case", list(NAIVE), ids=lambda case: "-".join((*case[:2], *(str(v) for _, v in case[2]))))
def test_what_is_drawn(toy, case):
    """States have the marginal's law at their time, or exactly as many masks; rows name what is scored, once."""
    name, process, settings = case
    objective, world = objective_of(name, process, settings, "cosine", 0.5, 4000), toy.World(process)
    tokens = torch.randint(V, (4000, L), generator=torch.Generator().manual_seed(0))
    drawn = objective.draw(Batch(tokens, torch.arange(len(tokens))))
    assert torch.equal(drawn.x_t[drawn.given], tokens[drawn.given])
    scored = ~drawn.given & ((drawn.x_t == V) | (process != "masked"))
    named = drawn.rows[drawn.rows >= 0]
    assert torch.equal(named, scored.flatten().nonzero().squeeze(1))
    assert len(drawn.rows) % 256 == 0
    free = (~drawn.given).sum(1)
    if ("estimator", "fixed_count") in settings:
        count = (drawn.x_t == V).sum(1)
        assert (count >= 1).all()
        torch.testing.assert_close(drawn.t.squeeze(1), count / free.double())
        bare = torch.bincount(count[free == L], minlength=L + 1)[1:].double()
        assert toy.chi_square(bare, (torch.arange(L + 1, dtype=torch.float64) / L).sqrt().diff()) > 1e-4  # u = v^2
        share = (count / free.double()).unsqueeze(1) * ~drawn.given
        surplus = ((drawn.x_t == V).double() - share).sum(0)
        assert (surplus.abs() <= 4 * (share * (1 - share)).sum(0).sqrt()).all()
        return
    if name == "score_entropy":  # the rate 1 / alpha of uniform noise is bounded, over a schedule that ends at 0 too
        last = objective.training_time(torch.ones(1, 1, dtype=torch.float64))
        end = 0.0 if process == "masked" else 1e-3
        assert math.cos(float(last) * math.pi / 2) ** 2 == pytest.approx(end, rel=1e-9, abs=1e-20)
    if name == "discrete_time":
        assert set((drawn.t * T).flatten().tolist()) == set(range(1, T + 1))
    a = torch.cos(drawn.t * math.pi / 2).squeeze(1) ** 2
    kernel = world.kernel(a)
    chances = kernel[torch.arange(len(a))[:, None], tokens]  # [N, L, V + 1]
    surplus = torch.nn.functional.one_hot(drawn.x_t, V + 1) - chances
    surplus = (surplus * ~drawn.given.unsqueeze(-1)).sum(1)
    error = (chances * (1 - chances) * ~drawn.given.unsqueeze(-1)).sum(1)
    late = a < 0.5
    for rows in (late, ~late):
        assert (surplus[rows].sum(0).abs() <= 4 * error[rows].sum(0).sqrt() + 1e-9).all()
    assert late.any()
    assert (~late).any()
