"""The learned schedule: what gradients arrive where, against plain autograd of formulas written here a second time."""

from dataclasses import dataclass

import pytest
import torch

from diffusion_lm.errors import UserError
from diffusion_lm.experiment import ExperimentConfig
from diffusion_lm.model import DenoisingModel
from diffusion_lm.noisy import Batch
from diffusion_lm.objectives.base import TrainingNoise
from diffusion_lm.objectives.gaussian import GaussianBound, GaussianBoundConfig
from diffusion_lm.processes.gaussian import Gaussian, GaussianConfig
from diffusion_lm.prompts import PromptConfig, draw_given
from diffusion_lm.random import Noise, Stream
from diffusion_lm.readouts import Prediction
from diffusion_lm.schedules.learned import Learned, LearnedConfig
from diffusion_lm.training.config import TrainingConfig
from diffusion_lm.training.optimizer import clip_gradients, make_optimizer

V, D, ROWS, LENGTH = 3, 2, 16, 4
LIMITS = (2.0, -5.0)
SHARE = 0.3
INTERIOR, ENDS = ("slope", "height", "steepness", "centre"), ("start", "end")


class Net(DenoisingModel):
    """A network in float64 whose logits and token vectors have gradients."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.self_conditioning = 0.0
        generator = torch.Generator().manual_seed(1)
        self.vectors = torch.nn.Parameter(torch.randn(V, D, generator=generator, dtype=torch.float64))
        self.weight = torch.nn.Parameter(torch.randn(D + 2, V, generator=generator, dtype=torch.float64))

    def table(self) -> torch.Tensor:
        return self.vectors

    def logits(self, x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        seen = torch.cat((x, x.mean(1, keepdim=True).norm(dim=-1, keepdim=True).expand(-1, x.shape[1], 1)), -1)
        seen = torch.cat((seen, level.unsqueeze(-1).expand(-1, x.shape[1], 1)), -1)
        return torch.tanh(seen) @ self.weight

    def forward(self, noisy) -> Prediction:
        return Prediction(self.logits(noisy.x, noisy.noise_level))


@dataclass(frozen=True)
class Fixed:
    """Training noise at times that are not stratified."""

    t: torch.Tensor

    def times(self, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.t, torch.ones_like(self.t)

    def noise(self, position: torch.Tensor) -> Noise:
        return Noise(0, position)

    def mean_of_step(self, position, value):
        """As if the rows were a global batch."""
        return value(position).mean().expand(len(position))


def moved(units: int = 4, seed: int = 0) -> Learned:
    schedule = Learned(LearnedConfig(units=units))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in schedule.parameters():
            parameter += 0.7 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return schedule


def naive_terms(net, schedule, tokens, t, at_start, eps, scored):
    """(diffusion, reconstruction + prior) of every row in nats, in plain autograd over every parameter."""
    softplus = torch.nn.functional.softplus

    def h(at):
        bumps = torch.sigmoid(softplus(schedule.steepness) * (at - schedule.centre))
        return softplus(schedule.slope) * at + (softplus(schedule.height) * bumps).sum(1, keepdim=True)

    zero, one = torch.zeros_like(t), torch.ones_like(t)
    t = torch.where(at_start, 0.0, t).requires_grad_()
    g = (h(t) - h(zero)) / (h(one) - h(zero))
    (rise,) = torch.autograd.grad(g.sum(), t, create_graph=True)
    half = (LIMITS[0] - LIMITS[1]) / 2
    first = LIMITS[0] - half * torch.sigmoid(schedule.start)
    last = LIMITS[1] + half * torch.sigmoid(schedule.end)
    lam = first - (first - last) * g
    clean = net.vectors[tokens]
    x = torch.sigmoid(lam).sqrt().unsqueeze(-1) * clean + torch.sigmoid(-lam).sqrt().unsqueeze(-1) * eps
    x = torch.where(scored.unsqueeze(-1), x, clean)
    log_p = torch.log_softmax(net.logits(x, (LIMITS[0] - lam) / (LIMITS[0] - LIMITS[1])), -1)
    error = (clean - log_p.exp() @ net.vectors).square().sum(-1)
    diffusion = 0.5 * (first - last) * rise * lam.exp() * (error * scored).sum(1, keepdim=True)
    entropy = -(log_p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) * scored).sum(1, keepdim=True)
    a = torch.sigmoid(last)
    prior = 0.5 * (a * clean.square().sum(-1) - a * D - D * torch.log(1 - a))
    rest = torch.where(at_start, entropy / SHARE, 0.0) + (prior * scored).sum(1, keepdim=True)
    return torch.where(at_start, 0.0, diffusion / (1 - SHARE)), rest


@pytest.mark.parametrize("prompted", [0.0, 0.5])
def test_the_pace_gets_the_gradient_of_the_squares_and_all_else_that_of_the_bound(prompted):
    net, schedule = Net(), moved()
    process = Gaussian(GaussianConfig(log_snr_max=LIMITS[0], log_snr_min=LIMITS[1]), schedule, V)
    config, prompt = GaussianBoundConfig(reconstruction_share=SHARE), PromptConfig(fraction=prompted)
    objective = GaussianBound(config, process, prompt, TrainingNoise(0, ROWS))
    generator = torch.Generator().manual_seed(2)
    t = torch.rand(ROWS, 1, generator=generator, dtype=torch.float64)
    objective.training_noise = Fixed(t)
    batch = Batch(torch.randint(V, (ROWS, LENGTH), generator=generator), torch.arange(ROWS))
    loss = objective(net, batch)
    loss.loss.backward()
    arrived = {name: p.grad for module in (net, schedule) for name, p in module.named_parameters()}

    noise = Noise(0, batch.position)
    at_start = noise.uniform(Stream.RECONSTRUCT, 1) < SHARE
    assert 0 < int(at_start.sum()) < ROWS
    given = draw_given(prompt, noise, LENGTH)
    scored = torch.ones_like(batch.tokens, dtype=torch.bool) if given is None else ~given
    eps = noise.normal(Stream.CORRUPT, LENGTH, D)
    diffusion, rest = naive_terms(net, schedule, batch.tokens, t, at_start, eps, scored)
    tokens = scored.sum(1, keepdim=True)
    share = tokens / tokens.sum()  # 1 / rows, without prompts: rows weigh as their tokens
    bound = ((diffusion + rest) / tokens * share).sum()
    torch.testing.assert_close(loss.loss.double(), bound, rtol=1e-5, atol=0)
    squares = ((diffusion / tokens).square() * share).sum()
    for function, names in ((squares, INTERIOR), (bound, (*ENDS, "vectors", "weight"))):
        parameters = [getattr(net if hasattr(net, name) else schedule, name) for name in names]
        wanted = torch.autograd.grad(function, parameters, retain_graph=True)
        for name, gradient in zip(names, wanted, strict=True):
            assert gradient.abs().max() > 1e-6, name
            torch.testing.assert_close(arrived[name], gradient, rtol=1e-4, atol=1e-7, msg=name)


def second_moments(model, source, ends: tuple[float, float], points: int = 101, rows: int = 4096):
    """E[f^2 | lambda] on a grid of lambdas, f the diffusion term's integrand."""
    clean = model.vectors[source.draw(rows)]
    eps = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grid = torch.linspace(ends[1], ends[0], points, dtype=torch.float64)
    found = []
    for lam in grid.view(-1, 1, 1):
        x = torch.sigmoid(lam).sqrt() * clean + torch.sigmoid(-lam).sqrt() * eps
        estimate = model.log_posterior(x, lam.expand(rows, 1)).exp() @ model.vectors
        found.append((0.5 * lam.exp() * (clean - estimate).square().sum(-1)).square().mean())
    return grid, torch.stack(found)


def test_training_the_pace_brings_the_second_moment_near_its_least(toy):
    """On a source whose posterior is known: the model is right already, only the schedule learns. With the law q of
    lambda a row's loss is f / q, so that E[l^2] = int E[f^2] / q >= (int sqrt(E[f^2]))^2."""
    source, ends = toy.Source(V, 1, seed=4), (1.0, -4.0)
    model = toy.GaussianPosterior(source, toy.polygon(V, D), ends)
    schedule = Learned(LearnedConfig(units=8, margin=1e-6))
    process = Gaussian(GaussianConfig(log_snr_max=ends[0], log_snr_min=ends[1]), schedule, V)
    objective = GaussianBound(
        GaussianBoundConfig(reconstruction_share=1e-6), process, PromptConfig(fraction=0.0), TrainingNoise(0, 256)
    )
    for end in (schedule.start, schedule.end):
        end.requires_grad_(False)
    grid, squares = second_moments(model, source, ends)
    least = float(torch.trapezoid(squares.sqrt(), grid)) ** 2

    @torch.no_grad()
    def moment() -> float:
        lam = schedule.log_snr(torch.linspace(0, 1, 2001, dtype=torch.float64))
        place = torch.bucketize((lam[1:] + lam[:-1]) / 2, grid).clamp(1, len(grid) - 1)
        return float(((squares[place] + squares[place - 1]) / 2 * (lam.diff() * 2000).square()).mean())

    assert moment() > 1.5 * least
    optimizer = torch.optim.Adam(schedule.parameters(), lr=0.05)
    for step in range(80):
        optimizer.zero_grad()
        objective(model, Batch(source.draw(256, seed=step), torch.arange(256) + 256 * step)).loss.backward()
        optimizer.step()
    assert moment() < 1.15 * least


def test_the_ends_stay_in_their_halves_of_the_range():
    schedule = Learned(LearnedConfig()).within(3.0, -7.0)
    with torch.no_grad():
        schedule.start.fill_(-50.0)
        schedule.end.fill_(50.0)
    ends = schedule.log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(ends.detach(), torch.tensor([3.0, -2.0], dtype=torch.float64))


def test_it_starts_a_margin_inside_the_range_at_an_even_pace():
    schedule = Learned(LearnedConfig(margin=0.1)).within(3.0, -7.0)
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    even = 2.0 - 8.0 * t
    torch.testing.assert_close(schedule.log_snr(t).detach()[[0, -1]], even[[0, -1]])
    assert (schedule.log_snr(t) - even).abs().max() < 0.5


def test_it_has_an_optimiser_group_of_its_own():
    net = torch.nn.Module()
    net.model, net.schedule = torch.nn.Linear(3, 3), moved()
    net.again = net.schedule
    optimizer = make_optimizer(net, TrainingConfig(lr=0.5, weight_decay=0.3, warmup_steps=0))["optimizer"]
    own = optimizer.param_groups[-1]
    assert {id(p) for p in own["params"]} == {id(p) for p in net.schedule.parameters()}
    assert (own["initial_lr"], own["weight_decay"]) == (LearnedConfig().lr, 0.0)
    others = [p for group in optimizer.param_groups[:-1] for p in group["params"]]
    assert {id(p) for p in others} == {id(p) for p in net.model.parameters()}
    assert len(others) == 2
    assert len(own["params"]) == 6


def test_its_gradient_is_clipped_apart():
    net = torch.nn.Module()
    net.model, net.schedule = torch.nn.Linear(2, 1, bias=False), moved()
    net.model.weight.grad = torch.tensor([[3.0, 4.0]])
    for parameter in net.schedule.parameters():
        parameter.grad = torch.full_like(parameter, 1e6)
    assert float(clip_gradients(net, 1.0)) == pytest.approx(5.0)
    torch.testing.assert_close(net.model.weight.grad, torch.tensor([[0.6, 0.8]]), atol=1e-5, rtol=0)
    squares = sum(float(p.grad.square().sum()) for p in net.schedule.parameters())
    assert squares == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(
    "objective",
    [{"name": "masked"}, {"name": "gaussian", "cross_entropy": 0.5}, {"name": "dimba"}, {"name": "dimba_literal"}],
)
def test_what_cannot_train_it_is_refused_in_one_line(objective):
    from diffusion_lm.config import from_tree

    with pytest.raises(UserError) as refused:
        from_tree(ExperimentConfig, {"objective": objective, "schedule": "learned"})
    assert str(refused.value) == (
        "schedule 'learned' has no meaning here: it is trained by the Gaussian bound alone; expected objective "
        "gaussian with cross_entropy 0, or a fixed schedule"
    )


def test_a_discrete_process_refuses_it():
    from diffusion_lm.processes.masked import Masked, MaskedConfig

    with pytest.raises(ValueError, match="schedule 'learned' has no meaning for process 'masked': it is trained by"):
        Masked(MaskedConfig(), Learned(LearnedConfig()), V)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"units": 0}, "units: got 0, expected at least 1"),
        ({"lr": 0.0}, "lr: got 0.0, expected a positive number"),
        ({"margin": 0.5}, "margin: got 0.5, expected more than 0 and less than 0.5"),
    ],
)
def test_impossible_numbers_are_refused(wrong, said):
    with pytest.raises(ValueError) as refused:
        LearnedConfig(**wrong)
    assert str(refused.value) == said
