"""Training losses over embedded tokens and of the autoregressive objective: value and gradients against naive ones.

The naive side takes the draws (times, normal noise, prompts, rows of the reconstruction term) and makes of them, in
float64 and plain autograd, what the papers minimise. Network and token vectors are parameters.
"""

import math
from dataclasses import dataclass

import pytest
import torch

from diffusion_lm.config import build, config_class
from diffusion_lm.model import DenoisingModel, ModelConfig
from diffusion_lm.noisy import Batch, Noisy
from diffusion_lm.objectives.base import TrainingNoise
from diffusion_lm.prompts import PromptConfig, draw_given
from diffusion_lm.random import Noise, Stream
from diffusion_lm.readouts import Prediction, Vector

V, D, ROWS, LENGTH, STEPS = 4, 3, 24, 5, 12
ENDS = (2.0, -5.0)
SEED = 3
WHOLE = {  # alpha over the whole of time, and its inverse
    "cosine": ({"s": 0.0}, lambda t: torch.cos(t * math.pi / 2) ** 2, lambda a: math.acos(math.sqrt(a)) * 2 / math.pi),
    "log_linear": ({"eps": 0.0}, lambda t: 1 - t, lambda a: 1 - a),
}


class Net(DenoisingModel):
    """A network in float64: a tanh layer over the state, its neighbours' mean and the noise level."""

    def __init__(self, readout: type) -> None:
        torch.nn.Module.__init__(self)
        self.kind, self.self_conditioning = readout, 0.0
        generator = torch.Generator().manual_seed(1)
        self.vectors = torch.nn.Parameter(torch.randn(V, D, generator=generator, dtype=torch.float64))
        out = V if readout is Prediction else D
        self.weight = torch.nn.Parameter(torch.randn(2 * D + 1, out, generator=generator, dtype=torch.float64))

    def table(self) -> torch.Tensor:
        return self.vectors

    def last(self, x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        mean = x.mean(1, keepdim=True).expand_as(x)
        level = level.unsqueeze(-1).expand(-1, x.shape[1], 1)
        return torch.tanh(torch.cat((x, mean, level), -1)) @ self.weight

    def forward(self, noisy: Noisy) -> Prediction | Vector:
        said = self.last(noisy.x, noisy.noise_level)
        return Prediction(said) if self.kind is Prediction else Vector(said, self.vectors)


@dataclass(frozen=True)
class Seen:
    """The draws of a batch, as the naive side reads them. lam: ln(alpha / (1 - alpha)) of each row [N, 1]."""

    net: Net
    tokens: torch.Tensor
    lam: torch.Tensor
    weight: torch.Tensor
    scored: torch.Tensor

    @property
    def clean(self) -> torch.Tensor:
        return self.net.vectors[self.tokens]

    def last(self) -> torch.Tensor:
        eps = Noise(SEED, torch.arange(ROWS)).normal(Stream.CORRUPT, LENGTH, D)
        alpha = (1 / (1 + torch.exp(-self.lam))).unsqueeze(-1)
        x = alpha.sqrt() * self.clean + (1 - alpha).sqrt() * eps
        x = torch.where(self.scored.unsqueeze(-1), x, self.clean)
        return self.net.last(x, (ENDS[0] - self.lam) / (ENDS[0] - ENDS[1]))

    def own(self, log_p: torch.Tensor) -> torch.Tensor:
        """-log_p of the tokens, summed over scored positions. [N, 1]"""
        found = -log_p.gather(-1, self.tokens.unsqueeze(-1)).squeeze(-1)
        return (found * self.scored).sum(1, keepdim=True)

    def apart(self, estimate: torch.Tensor) -> torch.Tensor:
        """|e - estimate|^2, summed over scored positions. [N, 1]"""
        return ((self.clean - estimate).square().sum(-1) * self.scored).sum(1, keepdim=True)


def alpha_at(schedule: str, t: torch.Tensor) -> torch.Tensor:
    """The schedule from one end of the log-SNR range to the other as t goes from 0 to 1."""
    _, alpha, inverse = WHOLE[schedule]
    first, last = (inverse(1 / (1 + math.exp(-end))) for end in ENDS)
    return alpha(first + (last - first) * t)


def setting(name: str, schedule: str, prompt: float, **config):
    """(objective, batch, time of every row, its weight, scored positions)."""
    process = config_class("processes", "gaussian")(log_snr_max=ENDS[0], log_snr_min=ENDS[1])
    process = build(process, build(config_class("schedules", schedule)(**WHOLE[schedule][0])), V)
    sampler = build(config_class("times", "importance")(t_min=0.1))
    noise, prompts = TrainingNoise(SEED, ROWS, sampler), PromptConfig(fraction=prompt)
    objective = build(config_class("objectives", name)(**config), process, prompts, noise)
    rows = torch.arange(ROWS)
    tokens = torch.randint(V, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    given = draw_given(prompts, Noise(SEED, rows), LENGTH)
    scored = torch.ones_like(tokens, dtype=torch.bool) if given is None else ~given
    t, weight = sampler.draw(rows, ROWS, SEED)
    assert weight.std() > 0.1
    return objective, Batch(tokens, rows), t.unsqueeze(1), weight.unsqueeze(1), scored


def check(objective, net: Net, batch: Batch, naive: torch.Tensor) -> None:
    """The loss of a batch, and the gradients of network and token vectors."""
    loss = objective(net, batch).loss
    torch.testing.assert_close(loss.double(), naive, rtol=2e-6, atol=0)
    parameters = (net.weight, net.vectors)
    for found, wanted in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(naive, parameters)):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
        assert wanted.abs().max() > 0


@pytest.mark.parametrize("prompt", [0.0, 0.6])
@pytest.mark.parametrize("schedule", list(WHOLE))
@pytest.mark.parametrize(("entropy", "bound"), [(0.0, 1.0), (1.0, 0.0), (0.7, 2.0)])
def test_the_gaussian_loss(schedule, prompt, entropy, bound):
    share = 0.3 if bound else 0.0
    config = {"cross_entropy": entropy, "bound": bound, "reconstruction_share": share or 0.3}
    objective, batch, t, weight, scored = setting("gaussian", schedule, prompt, **config)
    at_start = Noise(SEED, batch.position).uniform(Stream.RECONSTRUCT, 1) < share
    assert bool(at_start.any()) == bool(bound)
    t = torch.where(at_start, 0.0, t).requires_grad_()
    lam = torch.logit(alpha_at(schedule, t))
    (slope,) = torch.autograd.grad(lam.sum(), t)

    net = Net(Prediction)
    seen = Seen(net, batch.tokens, lam.detach(), weight, scored)
    log_p = seen.last().log_softmax(-1)
    diffusion = -0.5 * weight * slope * seen.lam.exp() * seen.apart(log_p.exp() @ net.vectors)
    last = 1 / (1 + math.exp(-ENDS[1]))
    prior = 0.5 * (last * seen.clean.square().sum(-1) - last * D - D * math.log(1 - last))
    later, first = (~at_start) / (1 - share), at_start / (share or 1.0)
    nll = later * diffusion + first * seen.own(log_p) + (prior * scored).sum(1, keepdim=True)
    naive = (bound * nll + entropy * later * weight * seen.own(log_p)).sum() / scored.sum()
    check(objective, net, batch, naive)


@pytest.mark.parametrize("prompt", [0.0, 0.6])
@pytest.mark.parametrize("schedule", list(WHOLE))
@pytest.mark.parametrize("anchor", [0.0, 0.7])
def test_dimbas_anchored_loss(schedule, prompt, anchor):
    objective, batch, t, weight, scored = setting("dimba", schedule, prompt, cross_entropy=anchor)
    net = Net(Prediction)
    seen = Seen(net, batch.tokens, torch.logit(alpha_at(schedule, t)), weight, scored)
    log_p = seen.last().log_softmax(-1)
    rows = weight * (seen.apart(log_p.exp() @ net.vectors) / D + anchor * seen.own(log_p))
    check(objective, net, batch, rows.sum() / scored.sum())


@pytest.mark.parametrize("prompt", [0.0, 0.6])
@pytest.mark.parametrize("anchor", [0.0, 0.7])
def test_dimbas_literal_loss(prompt, anchor):
    config = {"timesteps": STEPS, "cross_entropy": anchor, "max_beta": 0.8}
    objective, batch, t, weight, scored = setting("dimba_literal", "cosine", prompt, **config)
    alpha = alpha_at("cosine", torch.arange(STEPS + 1, dtype=torch.float64) / STEPS).tolist()
    product, abar = alpha[0], []
    for k in range(1, STEPS + 1):
        product *= 1 - min(1 - alpha[k] / alpha[k - 1], 0.8)
        abar.append(product)
    step = [math.ceil(float(v) * STEPS) for v in t]
    lam = torch.logit(torch.tensor([[abar[k - 1]] for k in step], dtype=torch.float64))

    net = Net(Vector)
    seen = Seen(net, batch.tokens, lam, weight, scored)
    said = seen.last()
    apart = (said.unsqueeze(2) - net.vectors).square().sum(-1)
    rows = weight * (seen.apart(said) / D + anchor * seen.own((-apart / 2).log_softmax(-1)))
    check(objective, net, batch, rows.sum() / scored.sum())


@pytest.mark.parametrize("denoiser", ["transformer", "mamba"])
def test_the_autoregressive_loss(denoiser):
    """The cross-entropy of every token after its prefix, each from a call that is shown the prefix alone."""
    torch.manual_seed(4)
    mixers = {"transformer": ("attention", {"causal": True}), "mamba": ("mamba2", {"head_dim": 8, "d_state": 4})}
    mixer = config_class("mixers", mixers[denoiser][0])(**mixers[denoiser][1])
    trunk = config_class("denoisers", denoiser)(n_layers=1, mixer=mixer)
    process = build(config_class("processes", "left_to_right")(), build(config_class("schedules", "log_linear")()), V)
    model = DenoisingModel(ModelConfig(d_model=64), trunk, process).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    objective = build(config_class("objectives", "autoregressive")(), process, PromptConfig(), TrainingNoise(0, 6))
    tokens = torch.randint(V, (6, LENGTH), generator=torch.Generator().manual_seed(0))
    loss = objective(model, Batch(tokens, torch.arange(6))).loss

    naive = 0.0
    for place in range(LENGTH):
        shown = torch.cat((tokens[:, :place], torch.zeros(6, 1, dtype=torch.long)), 1)  # its last id is not looked at
        said = model(Noisy(shown, torch.zeros(6, 1, dtype=torch.float64))).logits[:, place, :V]
        naive = naive - said.log_softmax(-1).gather(1, tokens[:, place : place + 1]).sum() / tokens.numel()
    torch.testing.assert_close(loss, naive, rtol=1e-9, atol=0)
    names, parameters = zip(*model.named_parameters())
    found, wanted = (torch.autograd.grad(v, parameters, materialize_grads=True) for v in (loss, naive))
    for name, a, b in zip(names, found, wanted):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9, msg=name)
    assert max(float(b.abs().max()) for b in wanted) > 0.01
