"""The bound of a chain of T steps against enumeration: vocabulary 3, all states, all steps.

Length 3 every day, length 4 among the slow tests.

Every step is written out: x_s given x_t by Bayes' rule over the one-step kernel K_s^-1 K_t, with x_0 and with the
prediction in place of x_0, and the Kullback-Leibler divergence of the two over x_s. The schedules leave something at
both ends (alpha_0 < 1, alpha_1 > 0), so that reconstruction and prior count.
"""

import math

import pytest
import torch

import diffusion_lm.objectives.discrete_time as chain
from diffusion_lm.config import build, config_class
from diffusion_lm.discrete.objective import Drawn
from diffusion_lm.noisy import Batch
from diffusion_lm.objectives.base import TrainingNoise
from diffusion_lm.objectives.discrete_time import DiscreteTime, DiscreteTimeConfig
from diffusion_lm.prompts import PromptConfig
from diffusion_lm.random import Noise

V = 3
LENGTHS = [3, pytest.param(4, marks=pytest.mark.slow)]
PROCESSES = ["masked", "uniform", "mask_uniform"]
LONG_CASES = {  # all but the cosine; see conftest.py
    f"test_the_exact_posterior_stays_above_the_entropy_and_comes_nearer_with_steps[4-{process}-{schedule}]"
    for process in PROCESSES
    for schedule in ("log_linear", "geometric", "sqrt")
} | {"test_the_exact_posterior_stays_above_the_entropy_and_comes_nearer_with_steps[4-mask_uniform-cosine]"}
ALPHA = {  # written here a second time, by hand
    "log_linear": ({"eps": 0.05}, lambda t: 1 - 0.95 * t),
    "cosine": ({"s": 0.0}, lambda t: math.cos(t * math.pi / 2) ** 2),
    "geometric": ({"sigma_min": 0.05, "sigma_max": 4.0}, lambda t: math.exp(-0.05 * 80**t)),
    "sqrt": ({"s": 0.04}, lambda t: 1 - math.sqrt(0.04 + 0.96 * t)),
}
STEPS = [1, 2, 5]


@pytest.fixture(scope="module", params=LENGTHS)
def source(toy, request):
    return toy.Source(V, request.param)


def objective_of(process: str, schedule: str, steps: int) -> DiscreteTime:
    alpha = build(config_class("schedules", schedule)(**ALPHA[schedule][0]))
    process = build(config_class("processes", process)(), alpha, V)
    return DiscreteTime(DiscreteTimeConfig(num_steps=steps), process, PromptConfig(fraction=0.0), TrainingNoise(0, 8))


class Chain:
    """All sequences x all states, and what the naive side says of them at the times of a schedule."""

    def __init__(self, world, source, schedule: str, steps: int) -> None:
        states = world.states(source.length)
        self.world, self.source, self.steps, self.alpha = world, source, steps, ALPHA[schedule][1]
        self.many = len(states)
        self.x_0 = source.sequences.repeat_interleave(self.many, 0)
        self.x_t = states.repeat(len(source.sequences), 1)

    def a(self, t: float, rows: int = 1) -> torch.Tensor:
        return torch.full((rows,), self.alpha(t), dtype=torch.float64)

    def chance(self, t: float) -> torch.Tensor:
        return self.world.chance(self.x_0, self.x_t, self.a(t, len(self.x_0)))

    def mean(self, t: float, values: torch.Tensor) -> torch.Tensor:
        """Over q(x_t | x_0), for every sequence. [S]"""
        chance = self.chance(t)
        return (chance * values.where(chance > 0, 0.0)).view(-1, self.many).sum(1)

    def step(self, p: torch.Tensor, t: float, s: float) -> torch.Tensor:
        """KL(q(x_s | x_t, x_0) || p(x_s | x_t)), summed over positions. [N]"""
        later, earlier = self.world.kernel(self.a(t))[0], self.world.kernel(self.a(s))[0]
        between = torch.linalg.solve(earlier, later)
        torch.testing.assert_close(between.sum(1), torch.ones(V + 1, dtype=torch.float64))
        assert between.min() > -1e-12
        onwards = between.clamp(min=0.0).T[self.x_t]  # q(x_t | x_s), over x_s [N, L, V + 1]
        true, model = earlier[self.x_0] * onwards, (p @ earlier[:V]) * onwards
        true, model = true / true.sum(-1, keepdim=True), model / model.sum(-1, keepdim=True)
        return torch.xlogy(true, true / model.where(true > 0, 1.0)).sum((1, 2))

    def reconstruction(self, p: torch.Tensor) -> torch.Tensor:
        """-ln p(x_0 | the state at t = 0), with what each position's own state says. [N]"""
        joint = p * self.world.kernel(self.a(0.0))[0, :V].T[self.x_t]
        joint = joint / joint.sum(-1, keepdim=True)
        return -joint.gather(-1, self.x_0.unsqueeze(-1)).log().sum((1, 2))

    def prior(self) -> float:
        """KL(q_1(. | x_0) || p_1) per sequence; p_1 is the noise of uniformly drawn tokens."""
        last = self.world.kernel(self.a(1.0))[0, :V]
        return self.source.length * float(torch.xlogy(last[0], last[0] / last.mean(0).where(last[0] > 0, 1.0)).sum())

    def bound(self, predict) -> torch.Tensor:
        """For every sequence; predict(x_t, t) [N, L, V]. [S]"""
        total = self.mean(0.0, self.reconstruction(predict(self.x_t, 0.0))) + self.prior()
        for step in range(self.steps):
            t, s = (step + 1) / self.steps, step / self.steps
            total = total + self.mean(t, self.step(predict(self.x_t, t), t, s))
        return total

    def of(self, objective, model, monkeypatch) -> dict[str, torch.Tensor]:
        """Terms of `objective.bound` through all states, for every sequence: T draws are one per step. [S]"""
        rows = torch.arange(len(self.x_0))

        def every_state(process, x_0, t, noise) -> Drawn:
            assert (t == t[0]).all()
            return Drawn(self.x_t, t, self.many * self.chance(float(t[0])))

        # one row's level must be every row's, for a state to have one time
        levels = torch.arange(self.steps, dtype=torch.float64) / self.steps + 0.3 / self.steps
        monkeypatch.setattr(chain, "stratified_levels", lambda noise, draws: levels.expand(len(rows), draws))
        monkeypatch.setattr(chain, "draw_states", every_state)
        with torch.no_grad():
            found = objective.bound(model, Batch(self.x_0, rows), Noise(0, rows), self.steps)
        torch.testing.assert_close(sum(found.terms.values()), found.nll)
        return {name: value.view(-1, self.many).mean(1) for name, value in found.terms.items()}


def expected(source, values: torch.Tensor) -> float:
    return float((source.probabilities * values).sum())


def level(world, a: torch.Tensor) -> torch.Tensor:
    return 1 - world.masses(a)[0]


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("schedule", list(ALPHA))
@pytest.mark.parametrize("process", PROCESSES)
def test_the_bound_of_any_predictor_is_the_enumerated_one(toy, monkeypatch, source, process, schedule, steps):
    world = toy.World(process)
    naive, model = Chain(world, source, schedule, steps), toy.Lookup(world, source.length)

    def predict(x_t: torch.Tensor, t: float) -> torch.Tensor:
        with torch.no_grad():
            return model.values(x_t, level(world, naive.a(t, len(x_t))).unsqueeze(1)).softmax(-1)

    found = naive.of(objective_of(process, schedule, steps), model, monkeypatch)
    start = naive.mean(0.0, naive.reconstruction(predict(naive.x_t, 0.0)))
    torch.testing.assert_close(found["reconstruction"], start, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found["prior"], torch.full_like(start, naive.prior()), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sum(found.values()), naive.bound(predict), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("schedule", list(ALPHA))
@pytest.mark.parametrize("process", PROCESSES)
def test_the_exact_posterior_stays_above_the_entropy_and_comes_nearer_with_steps(
    toy, monkeypatch, source, process, schedule
):
    world, values = toy.World(process), []
    model = toy.Informed(source, world)
    for steps in (*STEPS, 20):
        naive = Chain(world, source, schedule, steps)
        found = sum(naive.of(objective_of(process, schedule, steps), model, monkeypatch).values())
        enumerated = naive.bound(lambda x_t, t, alpha=naive.a: model.predict(x_t, alpha(t, len(x_t))))
        torch.testing.assert_close(found, enumerated, rtol=1e-6, atol=1e-6)
        values.append(expected(source, found))
    assert values == sorted(values, reverse=True)
    rest = lost_at_the_ends(world, source, naive, model)
    assert source.entropy + 1e-6 < values[-1]
    assert values[-1] - source.entropy - rest < 0.25 * (values[0] - source.entropy - rest)


def lost_at_the_ends(world, source, naive: Chain, model) -> float:
    """KL(q_1 || p_1) of whole states, and that tokens are drawn apart from one another at t = 0, however many steps."""
    last = world.kernel(naive.a(1.0))[0, :V]
    states = world.states(source.length)
    chances = last[source.sequences[:, None], states].prod(-1)  # [S, X]
    true, noise = source.probabilities @ chances, last.mean(0)[states].prod(-1)
    joint = naive.chance(0.0).view(-1, naive.many) * source.probabilities[:, None]
    together = -float(torch.xlogy(joint, joint / joint.sum(0).where(joint.sum(0) > 0, 1.0)).sum())
    said = naive.reconstruction(model.predict(naive.x_t, naive.a(0.0, len(naive.x_t))))
    apart = expected(source, naive.mean(0.0, said))
    return float(torch.xlogy(true, true / noise.where(true > 0, 1.0)).sum()) + apart - together


@pytest.mark.parametrize("process", PROCESSES)
def test_one_step_of_one_token_is_exact(toy, monkeypatch, process):
    """A chain over one token whose posterior is exact loses nothing, however few its steps."""
    one, world = toy.Source(V, 1, seed=3), toy.World(process)
    naive = Chain(world, one, "cosine", 2)
    found = naive.of(objective_of(process, "cosine", 2), toy.Informed(one, world), monkeypatch)
    assert expected(one, sum(found.values())) == pytest.approx(one.entropy, abs=1e-9)


@pytest.mark.parametrize("process", PROCESSES)
def test_the_bounds_own_draws_agree(toy, source, process):
    """The number of draws need not be that of the steps."""
    world, rows = toy.World(process), 8000
    naive, model = Chain(world, source, "geometric", 5), toy.Informed(source, world)
    wanted = expected(source, naive.bound(lambda x_t, t: model.predict(x_t, naive.a(t, len(x_t)))))
    position = torch.arange(rows)
    batch = Batch(source.draw(rows), position)
    found = objective_of(process, "geometric", 5).bound(model, batch, Noise(2, position), 3).nll
    error = float(found.std()) / rows**0.5
    assert error < 0.02 * wanted
    assert abs(float(found.mean()) - wanted) < 4 * error


@pytest.mark.parametrize("steps", [0, -3])
def test_an_empty_chain_is_refused(steps):
    with pytest.raises(ValueError, match=f"num_steps: got {steps}, expected at least 1"):
        DiscreteTimeConfig(num_steps=steps)
