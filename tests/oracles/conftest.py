"""Toy sources of which everything is known: the joint distribution, its entropy, and the exact posterior.

Nothing here uses the code under test but its interfaces (a model that objectives and samplers accept).
"""

import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from diffusion_lm.model import DenoisingModel
from diffusion_lm.noisy import Noisy
from diffusion_lm.readouts import Prediction, Scores


class Source:
    """A random joint distribution over all sequences of `length` tokens, float64."""

    def __init__(self, vocabulary: int, length: int, seed: int = 0, sharpness: float = 1.5) -> None:
        self.vocabulary, self.length = vocabulary, length
        self.sequences = torch.tensor(list(itertools.product(range(vocabulary), repeat=length)))
        generator = torch.Generator().manual_seed(seed)
        logits = sharpness * torch.randn(len(self.sequences), generator=generator, dtype=torch.float64)
        self.probabilities = torch.softmax(logits, 0)

    @property
    def entropy(self) -> float:
        """Nats per sequence."""
        return -float((self.probabilities * self.probabilities.log()).sum())

    def draw(self, rows: int, seed: int = 1) -> torch.Tensor:
        """Sequences drawn from it. [rows, L]"""
        generator = torch.Generator().manual_seed(seed)
        return self.sequences[torch.multinomial(self.probabilities, rows, replacement=True, generator=generator)]

    def index(self, tokens: torch.Tensor) -> torch.Tensor:
        """Places of sequences in `sequences`."""
        place = self.vocabulary ** torch.arange(self.length - 1, -1, -1)
        return (tokens * place).sum(-1)

    def posterior_table(self) -> torch.Tensor:
        """p(x_0^i = v | the tokens that are seen), for every masked state. [(V + 1)^L, L, V]"""
        states = torch.tensor(list(itertools.product(range(self.vocabulary + 1), repeat=self.length)))
        table = torch.zeros(len(states), self.length, self.vocabulary, dtype=torch.float64)
        for row, state in enumerate(states):
            fits = ((self.sequences == state) | (state == self.vocabulary)).all(1)
            weight = self.probabilities * fits
            for i, v in itertools.product(range(self.length), range(self.vocabulary)):
                table[row, i, v] = weight[self.sequences[:, i] == v].sum()
            table[row] /= weight.sum()
        return table


class Known(DenoisingModel):
    """A model without a network."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def weighted_cross_entropy(self, noisy: Noisy, tokens: torch.Tensor, weight: torch.Tensor, rows: torch.Tensor):
        """Over all positions, in float64; of scores sum_v s(v) / V - ln s(token) + ln V - 1."""
        said = self(noisy)
        total = said.logits.double().logsumexp(-1)
        losses = total - said.logits.double().gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        if isinstance(said, Scores):
            mean = total - math.log(int(said.logits[0, 0].isfinite().sum()))
            losses = losses + mean.exp() - mean - 1
        losses = torch.where(weight != 0, losses, 0.0)
        return (weight * losses).sum().float(), losses.detach()


class MaskedTable(Known):
    """A model that looks its prediction up by the masked state alone. probabilities: [(V + 1)^L, L, V]"""

    def __init__(self, probabilities: torch.Tensor) -> None:
        super().__init__()
        self.logits = probabilities.log()
        self.place = (probabilities.shape[2] + 1) ** torch.arange(probabilities.shape[1] - 1, -1, -1)

    def table(self) -> torch.Tensor:
        return torch.zeros(self.logits.shape[2] + 1, 1, dtype=torch.float64)

    def forward(self, noisy: Noisy) -> Prediction:
        return Prediction(self.logits[(noisy.x * self.place).sum(1)])


class GaussianPosterior(Known):
    """The exact p(x_0^i | x_t) of a source whose tokens are vectors, by Bayes' rule. With a `sharpness` but 1, wrong.

    ends: (log_snr_max, log_snr_min), between which the noise level runs linearly from 0 to 1.
    """

    def __init__(
        self, source: Source, vectors: torch.Tensor, ends: tuple[float, float], sharpness: float = 1.0
    ) -> None:
        super().__init__()
        self.source, self.vectors, self.ends, self.sharpness = source, vectors, ends, sharpness

    def table(self) -> torch.Tensor:
        return self.vectors

    def forward(self, noisy: Noisy) -> Prediction:
        log_snr = self.ends[0] - noisy.noise_level * (self.ends[0] - self.ends[1])
        return Prediction(self.log_posterior(noisy.x, log_snr))

    def log_posterior(self, x: torch.Tensor, log_snr: torch.Tensor) -> torch.Tensor:
        """ln p(x_0^i = v | x_t). x: [B, L, D], log_snr: [B, 1] -> [B, L, V]"""
        alpha = torch.sigmoid(log_snr).unsqueeze(-1)
        noise = torch.sigmoid(-log_snr).unsqueeze(-1)
        apart = (x.unsqueeze(2) - alpha.sqrt().unsqueeze(-1) * self.vectors).square().sum(-1)
        each = -apart / (2 * noise)  # ln N(x_i; e_v) [B, L, V]
        places = torch.arange(self.source.length)
        joint = each[:, places, self.source.sequences].sum(-1) + self.source.probabilities.log()  # [B, S]
        said = torch.nn.functional.one_hot(self.source.sequences, self.source.vocabulary).bool()
        spread = joint[:, :, None, None].masked_fill(~said, -torch.inf)
        return torch.log_softmax(self.sharpness * spread.logsumexp(1), -1)


class World:
    """A discrete process of single tokens as matrices, from its definition alone; V tokens and the mask, id V.

    q(x_t | x_0) is row x_0 of K = alpha I + 1 b^T. `a` in (0, 1) is the schedule's value, 1 clean; everything but the
    schedule is a function of it. mask_uniform: GIDD's equations, p being `share`.
    """

    def __init__(self, name: str, vocabulary: int = 3, share: float = 0.1, gamma: float = 1.0) -> None:
        self.name, self.vocabulary, self.share, self.gamma = name, vocabulary, share, gamma
        self.symbols = vocabulary + (name != "uniform")

    def masses(self, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """alpha, noise on the mask, noise on each token."""
        if self.name == "masked":
            return a, 1 - a, 0 * a
        if self.name == "uniform":
            return a, 0 * a, (1 - a) / self.vocabulary
        c = 2**self.gamma * self.share / (1 - self.share) * (a * (1 - a)) ** (self.gamma / 2)
        return a / (1 + c), (1 - a) / (1 + c), c / (1 + c) / self.vocabulary

    def kernel(self, a: torch.Tensor) -> torch.Tensor:
        """K for every a. [N] -> [N, V + 1, V + 1]"""
        alpha, mask, token = self.masses(a)
        noise = torch.cat((token[:, None].expand(-1, self.vocabulary), mask[:, None]), 1)
        return alpha[:, None, None] * torch.eye(self.vocabulary + 1, dtype=a.dtype) + noise[:, None, :]

    def rates(self, a: torch.Tensor) -> torch.Tensor:
        """Q with dK = K Q d(1 - a). [N, V + 1, V + 1]"""
        slope = torch.autograd.functional.jvp(self.kernel, (a,), (-torch.ones_like(a),))[1]
        return torch.linalg.solve(self.kernel(a), slope)

    def a_of(self, level: torch.Tensor) -> torch.Tensor:
        """Where 1 - alpha is that level, by bisection. [N]"""
        low, high = torch.zeros_like(level), torch.ones_like(level)
        for _ in range(100):
            middle = (low + high) / 2
            above = 1 - self.masses(middle)[0] > level
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        return (low + high) / 2

    def states(self, length: int) -> torch.Tensor:
        """Every state of so many positions."""
        return torch.tensor(list(itertools.product(range(self.symbols), repeat=length)))

    def chance(self, x_0: torch.Tensor, x_t: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        """q(x_t | x_0) of every row. [N]"""
        return self.kernel(a)[torch.arange(len(a))[:, None], x_0, x_t].prod(1)

    def nodes(self, step: float = 0.65) -> tuple[torch.Tensor, torch.Tensor]:
        """Values of a and weights for integrals over (0, 1): the trapezoid rule over logit(a).

        Further out where a is near 1: there mask_uniform has random tokens as the root of 1 - a.
        """
        place = torch.arange(-26, 34, step, dtype=torch.float64)
        return torch.sigmoid(place), step * torch.sigmoid(place) * torch.sigmoid(-place)


class Informed(Known):
    """What is exactly known of a source that a `World` corrupts: p(x_0^i | x_t without i), for every state and level.

    own: look at x_t^i as well. blur: share of the uniform distribution mixed in. scores: say it as ratios of p_t.
    """

    def __init__(
        self, source: Source, world: World, own: bool = False, blur: float = 0.0, scores: bool = False
    ) -> None:
        super().__init__()
        self.source, self.world, self.own, self.blur, self.scores = source, world, own, blur, scores

    def forward(self, noisy: Noisy) -> Prediction | Scores:
        levels, row = noisy.noise_level.squeeze(1).unique(return_inverse=True)
        a = self.world.a_of(levels)[row]
        p = self.predict(noisy.x, a)
        return self.as_scores(p, noisy.x, a) if self.scores else Prediction(padded(p.log()))

    def predict(self, x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        """[N, L, V]"""
        v, length = self.source.vocabulary, self.source.length
        likely = self.world.kernel(a).transpose(1, 2)[torch.arange(len(a))[:, None], x][..., :v]  # q(x_i | v) [N, L, V]
        each = likely[:, torch.arange(length), self.source.sequences]  # [N, S, L]
        found = torch.zeros(len(a), length, v, dtype=torch.float64)
        for i in range(length):
            others = [j for j in range(length) if j != i]
            weight = each[..., others].prod(-1) * self.source.probabilities
            found[:, i] = weight @ torch.nn.functional.one_hot(self.source.sequences[:, i], v).double()
        found = found * likely if self.own else found
        return (1 - self.blur) * found / found.sum(-1, keepdim=True) + self.blur / v

    def as_scores(self, p: torch.Tensor, x: torch.Tensor, a: torch.Tensor) -> Scores:
        """ln of p_t(v at i) / p_t(x), less ln(alpha / (mask V)) at masked positions."""
        v = self.source.vocabulary
        after = p @ self.world.kernel(a)[:, :v]
        ratios = after[..., :v] / after.gather(-1, x.unsqueeze(-1))
        alpha, mask, _ = self.world.masses(a)
        factor = torch.where(x == v, (alpha / (mask * v))[:, None], 1.0)
        return Scores(padded(ratios.log() - factor.log().unsqueeze(-1)))


class Lookup(Known):
    """Any predictor at all: random last layers by state, which drift with the noise level. Readout of that kind."""

    def __init__(self, world: World, length: int, kind: type = Prediction, seed: int = 8) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        shape = (2, (world.vocabulary + 1) ** length, length, world.vocabulary)
        self.weight = torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
        self.place, self.kind = (world.vocabulary + 1) ** torch.arange(length - 1, -1, -1), kind

    def values(self, x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """[N, L, V]"""
        row = (x * self.place).sum(1)
        return self.weight[0][row] + level.unsqueeze(-1) * self.weight[1][row]

    def forward(self, noisy: Noisy) -> Prediction | Scores:
        return self.kind(padded(self.values(noisy.x, noisy.noise_level)))


def padded(values: torch.Tensor, by: int = 2) -> torch.Tensor:
    """Last layers as models give them: the mask id and a padded id with -inf."""
    return torch.nn.functional.pad(values, (0, by), value=-torch.inf)


def polygon(vocabulary: int, dimensions: int = 2) -> torch.Tensor:
    """Token vectors of norm sqrt(D), not all equally far apart."""
    angle = torch.tensor([0.0, 1.9, 4.0, 5.0][:vocabulary], dtype=torch.float64)
    vectors = torch.stack((angle.cos(), angle.sin(), *[0 * angle] * (dimensions - 2)), 1)
    return vectors * dimensions**0.5


def chi_square(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    """p-value of counts under probabilities that are all positive."""
    expected = probabilities * counts.sum()
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2, dtype=torch.float64), statistic / 2))


@pytest.fixture(scope="session")
def toy() -> SimpleNamespace:
    """Everything above."""
    return SimpleNamespace(
        Source=Source,
        Known=Known,
        MaskedTable=MaskedTable,
        World=World,
        Informed=Informed,
        Lookup=Lookup,
        padded=padded,
        GaussianPosterior=GaussianPosterior,
        polygon=polygon,
        chi_square=chi_square,
    )


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their markers
def pytest_collection_modifyitems(items):
    """Mark the single cases that a file of this folder names in `LONG_CASES`; pytest gives the items of all folders."""
    for item in items:
        if item.path.parent == Path(__file__).parent and item.name in getattr(item.module, "LONG_CASES", ()):
            item.add_marker(pytest.mark.long)
