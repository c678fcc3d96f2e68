"""Toy sources of which everything is known: the joint distribution, its entropy, and the exact posterior.

Nothing here uses the code under test but its interfaces (a model that objectives and samplers accept).
"""

import itertools
from types import SimpleNamespace

import pytest
import torch

from diffusion_lm.model import DenoisingModel
from diffusion_lm.noisy import Noisy
from diffusion_lm.readouts import Prediction


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
        """Over all positions, in float64."""
        losses = -self(noisy).logits.double().log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        losses = torch.where(weight != 0, losses, 0.0)
        return (weight * losses).sum().float(), losses.detach().float()


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
        GaussianPosterior=GaussianPosterior,
        polygon=polygon,
        chi_square=chi_square,
    )
