"""Tools of the contract tests. Variants are discovered from the folders, so a new file is tested without an edit here.

Test files cannot import one another (``--import-mode=importlib``), so the tools come as fixtures.
"""

import itertools
import math
from dataclasses import MISSING, fields, replace
from types import SimpleNamespace

import pytest
import torch

from diffusion_lm.config import build, config_class, part_class, variants
from diffusion_lm.model import DenoisingModel, ModelConfig
from diffusion_lm.noisy import Noisy
from diffusion_lm.objectives.base import TrainingNoise
from diffusion_lm.prompts import PromptConfig
from diffusion_lm.random import Noise
from diffusion_lm.readouts import Prediction, Scores

VOCABULARY, PADDING = 3, 2


def p_value(statistic: float, degrees: int) -> float:
    """P(chi^2 with that many degrees of freedom > statistic)."""
    half = torch.tensor([degrees / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def chi_square(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    """p-value of counts under probabilities; 0 where something impossible was counted."""
    counts, expected = counts.double().flatten(), probabilities.double().flatten() * counts.sum()
    if counts[expected < 1e-9].any():
        return 0.0
    counts, expected = counts[expected >= 1e-9], expected[expected >= 1e-9]
    return 1.0 if len(counts) == 1 else p_value(float(((counts - expected) ** 2 / expected).sum()), len(counts) - 1)


def two_sample(a: torch.Tensor, b: torch.Tensor, cells: int) -> float:
    """p-value of two samples of cell numbers, equally many, under one common law."""
    x, y = (torch.bincount(v.flatten(), minlength=cells).double() for v in (a, b))
    seen = x + y > 0
    statistic = ((x - y)[seen] ** 2 / (x + y)[seen]).sum()
    return 1.0 if seen.sum() == 1 else p_value(float(statistic), int(seen.sum()) - 1)


def near(values: torch.Tensor, expected: torch.Tensor | float, errors: float = 4.0) -> bool:
    """Whether the mean over dimension 0 is `expected` within that many standard errors, everywhere."""
    values = values.double()
    error = values.std(0) / len(values) ** 0.5
    return bool(((values.mean(0) - expected).abs() <= errors * error + 1e-12).all())


def circle(symbols: int, dimensions: int) -> torch.Tensor:
    """A token table whose rows have norm sqrt(D), well apart, float64."""
    angle = torch.arange(symbols, dtype=torch.float64) * 2 * torch.pi / symbols
    rows = torch.stack((angle.cos(), angle.sin(), *[0 * angle] * (dimensions - 2)), 1)
    return rows * dimensions**0.5


def process_of(name: str, schedule: str, vocabulary: int = VOCABULARY):
    """A process of default config over a schedule of default config."""
    return build(config_class("processes", name)(), build(config_class("schedules", schedule)()), vocabulary)


def time_of(process, level: torch.Tensor) -> torch.Tensor:
    """The time at which a process has a noise level, by bisection."""
    low, high = torch.zeros_like(level), torch.ones_like(level)
    for _ in range(60):
        middle = (low + high) / 2
        below = process.noise_level(middle.unsqueeze(1)).squeeze(1) < level
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return high


class Fake(DenoisingModel):
    """A model without a network: what tests hand to objectives and samplers. Subclasses give `table` and `forward`."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def weighted_cross_entropy(self, noisy: Noisy, tokens: torch.Tensor, weight: torch.Tensor, rows: torch.Tensor):
        """Over all positions, after a look at whether `rows` names every one that has a weight, once."""
        named = rows[rows >= 0]
        assert len(named.unique()) == len(named)
        assert set((weight.flatten() != 0).nonzero().squeeze(1).tolist()) <= set(named.tolist())
        said = self(noisy)
        total = said.logits.logsumexp(-1)
        losses = total - said.logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        if isinstance(said, Scores):  # sum_v s(v) / V - ln s(token) + ln V - 1
            mean = total - math.log(int(said.logits[0, 0].isfinite().sum()))
            losses = losses + mean.exp() - mean - 1
        losses = torch.where(weight != 0, losses, 0.0)
        return (weight * losses).sum(), losses.detach()


class Oracle(Fake):
    """A model that knows the source: what a process asks for, by Bayes' rule over every sequence, through its marginal.

    Discrete processes ask for p(x_0^i | x_t without i), Gaussian ones for p(x_0^i | x_t), and those whose input is
    shifted for p(x_0^i | x_t before i). sequences [S, L] with probabilities [S]. Like a real model it has padded
    logits. `calls` counts its uses.
    """

    def __init__(self, process, sequences: torch.Tensor, probabilities: torch.Tensor, dimensions: int = 2) -> None:
        super().__init__()
        self.process, self.sequences, self.probabilities = process, sequences, probabilities
        self.dimensions, self.calls = dimensions, 0

    def table(self) -> torch.Tensor:
        return circle(self.process.symbols, self.dimensions)

    def forward(self, noisy: Noisy) -> Prediction:
        self.calls += 1
        levels, row = noisy.noise_level.double().unique(return_inverse=True)
        evidence = self._evidence(noisy, time_of(self.process, levels)[row])
        weight = (evidence - evidence.amax(1, keepdim=True)).exp() * self.probabilities[:, None]  # [B, S, L]
        said = torch.nn.functional.one_hot(self.sequences, self.process.symbols + PADDING).double()
        joint = torch.einsum("bsl,slv->blv", weight, said)
        return Prediction((joint / joint.sum(-1, keepdim=True)).log())

    def _evidence(self, noisy: Noisy, t: torch.Tensor) -> torch.Tensor:
        """ln q of what the prediction at every position may look at, given every sequence. [B, S, L]"""
        each, length = self._likelihood(noisy, t), noisy.x.shape[1]
        sees = torch.ones(length, length, dtype=torch.bool)
        if self.process.discrete:
            sees = ~torch.eye(length, dtype=torch.bool)
        if self.process.shifted:
            sees = torch.tril(sees, -1)
        return torch.stack([each[..., own].sum(-1) for own in sees], -1)

    def _likelihood(self, noisy: Noisy, t: torch.Tensor) -> torch.Tensor:
        """ln q(x_t^i | x_0^i) of every row and position under every sequence. [B, S, L]"""
        rows, many, length = len(t), len(self.sequences), noisy.x.shape[1]
        x = noisy.x.repeat_interleave(many, 0)
        x_0 = self.process.encode(self.sequences.repeat(rows, 1), self.table())
        marginal = self.process.marginal(x_0, t.repeat_interleave(many, 0))
        if self.process.discrete:
            each = marginal.probabilities(self.process.symbols).gather(-1, x.unsqueeze(-1)).squeeze(-1).log()
            same = x == x_0
        else:
            normal = torch.distributions.Normal(marginal.mean, marginal.std.expand_as(marginal.mean))
            each, same = normal.log_prob(x).sum(-1), (x == x_0).all(-1)
        if self.process.shifted:  # what is hidden says nothing, and nothing else is noise
            each = torch.where(x == self.process.mask_id, 0.0, same.double().log())
        if noisy.given is not None:
            each = torch.where(noisy.given.repeat_interleave(many, 0), same.double().log(), each)
        return each.view(rows, many, length)


def all_sequences(vocabulary: int, length: int) -> torch.Tensor:
    """Every sequence. [V^L, L]"""
    return torch.tensor(list(itertools.product(range(vocabulary), repeat=length)))


def factorised(seed: int, length: int, vocabulary: int = VOCABULARY) -> tuple[torch.Tensor, torch.Tensor]:
    """All sequences and their probabilities, positions independent, no probability below 0.1."""
    generator = torch.Generator().manual_seed(seed)
    each = 0.1 + torch.rand(length, vocabulary, generator=generator, dtype=torch.float64)
    each /= each.sum(1, keepdim=True)
    sequences = all_sequences(vocabulary, length)
    return sequences, each[torch.arange(length), sequences].prod(1)


def small_model(process, denoiser: str = "transformer", seed: int = 0, objective: str = "", **changes):
    """A small model over a process, weights as they start, with the readout and the mixers that an objective needs."""
    torch.manual_seed(seed)
    wants = part_class(config_class("objectives", objective or process.bound_objective)())
    if wants.causal:
        changes = {"mixer": config_class("mixers", "attention")(causal=True)} | changes
    config = config_class("denoisers", denoiser)(**({"n_layers": 1} | changes))
    return DenoisingModel(ModelConfig(d_model=64, embedding_dim=4), config, process, wants.readout)


def changed(said, change):
    """A prediction whose tensor, the last layer's, is changed by a function."""
    name = fields(said)[0].name
    return replace(said, **{name: change(getattr(said, name))})


def shaken(module, seed: int = 0, size: float = 0.1):
    """The module with noise added to every parameter, so that nothing is zero any more."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return module


def objective_of(name: str, process, *, prompt: float = 0.0, global_batch: int = 8, seed: int = 0, **changes):
    """An objective over a process, prompts in that share of the rows."""
    config = config_class("objectives", name)(**changes)
    return build(config, process, PromptConfig(fraction=prompt), TrainingNoise(seed, global_batch))


def rows_noise(rows: int, seed: int = 0, start: int = 0) -> Noise:
    """The noise of that many rows."""
    return Noise(seed, torch.arange(start, start + rows))


FEW_CHANNELS = {"head_dim": 8, "d_state": 4, "chunk_size": 16}


def small_mixer(cls, **options):
    """A mixer's config of few channels."""
    return cls(**{name: size for name, size in FEW_CHANNELS.items() if name in cls.__dataclass_fields__} | options)


def mixer_cases() -> list[tuple[str, object, bool]]:
    """(name, config, whether every day) of every mixer in the folder: as it is, with each switch turned, with each
    choice of words alone and (not every day) with every other, and with groups of heads."""
    found = []
    for name in variants("mixers"):
        cls = config_class("mixers", name)
        names = cls.__dataclass_fields__
        inner = {"inner": small_mixer(config_class("mixers", "mamba2"))} if "inner" in names else {}
        options = [((f.name,), {f.name: not f.default}) for f in fields(cls) if isinstance(f.default, bool)]
        options += [((key,), {key: n}) for key, n in (("n_kv_heads", 1), ("n_groups", 2)) if key in names]
        words = {f.name: f.metadata["choices"] for f in fields(cls) if "choices" in f.metadata}
        options += [(chosen, dict(zip(words, chosen))) for chosen in itertools.product(*words.values())]
        if inner:
            causal = small_mixer(config_class("mixers", "attention"), causal=True)
            biases = small_mixer(config_class("mixers", "mamba2"), bias=True)
            options.append((("attention",), {"inner": causal}))
            options.append((("biases",), {"inner": biases, "sharing": "everything"}))
        for label, values in options:
            turned = sum(names[key].default not in (value, MISSING) for key, value in values.items())
            found.append(("-".join((name, *label)), small_mixer(cls, **(inner | values)), turned < 2))
    return found


def mixers_with(*, exact: bool) -> list:
    """Parameters of a fixture: those whose cache is exact, or is not."""
    return [
        pytest.param(config, id=name, marks=[] if everyday else [pytest.mark.slow])
        for name, config, everyday in mixer_cases()
        if config.exact_cache == exact
    ]


@pytest.fixture(params=mixers_with(exact=True))
def exact_mixer(request):
    """The config of every mixer in the folder that says that its cache is exact."""
    return request.param


@pytest.fixture(params=mixers_with(exact=False))
def inexact_mixer(request):
    """And of every one that says that it is not."""
    return request.param


@pytest.fixture(scope="session")
def tools() -> SimpleNamespace:
    """Everything above."""
    return SimpleNamespace(**{name: value for name, value in globals().items() if not name.startswith("_")})
