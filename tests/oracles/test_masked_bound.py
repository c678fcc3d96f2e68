"""The masked objective on a toy source, exactly: all sequences, all masks, all times. Vocabulary 3, length 4."""

import itertools
import math
from dataclasses import dataclass

import pytest
import torch

from diffusion_lm.noisy import Batch
from diffusion_lm.objectives.base import TrainingNoise
from diffusion_lm.objectives.masked import MaskedBound, MaskedBoundConfig
from diffusion_lm.processes.masked import Masked, MaskedConfig
from diffusion_lm.prompts import PromptConfig
from diffusion_lm.random import Noise
from diffusion_lm.schedules.cosine import Cosine, CosineConfig
from diffusion_lm.schedules.log_linear import LogLinear, LogLinearConfig

V, L, EPS, S = 3, 4, 1e-3, 0.008
MASKS = torch.tensor(list(itertools.product([False, True], repeat=L)))
ALPHA = {  # written here a second time, by hand
    "log_linear": lambda t: 1 - (1 - EPS) * t,
    "cosine": lambda t: (math.cos((t + S) / (1 + S) * math.pi / 2) / math.cos(S / (1 + S) * math.pi / 2)) ** 2,
}


@pytest.fixture(scope="module")
def source(toy):
    return toy.Source(V, L)


@pytest.fixture(scope="module")
def exact(toy, source):
    return toy.MaskedTable(source.posterior_table())


@pytest.fixture(scope="module")
def wrong(toy):
    """Any predictor at all: random, and sure of itself."""
    logits = 2 * torch.randn((V + 1) ** L, L, V, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    return toy.MaskedTable(torch.softmax(logits, -1))


def objective(schedule: str = "log_linear", t_min: float = 1e-3, global_batch: int = 8) -> MaskedBound:
    alpha = LogLinear(LogLinearConfig(eps=EPS)) if schedule == "log_linear" else Cosine(CosineConfig(s=S))
    return MaskedBound(
        MaskedBoundConfig(t_min=t_min),
        Masked(MaskedConfig(), alpha, V),
        PromptConfig(fraction=0.0),
        TrainingNoise(0, global_batch),
    )


def surprise(model, source, mask: torch.Tensor) -> torch.Tensor:
    """sum over the masked i of -ln p(x_i | the others), for every sequence. [S]"""
    x = source.sequences
    place = (V + 1) ** torch.arange(L - 1, -1, -1)
    log_p = model.logits[(x.masked_fill(mask, V) * place).sum(1)]
    return -(log_p.gather(-1, x.unsqueeze(-1)).squeeze(-1) * mask).sum(1)


def integral(model, source, low: float, high: float) -> torch.Tensor:
    """int_low^high du / u E[sum over masked of -ln p], each position masked with probability u. Every sequence. [S]

    In closed form: a mask of l positions has probability u^l (1 - u)^(L - l), a polynomial.
    """
    total = torch.zeros(len(source.sequences), dtype=torch.float64)
    for mask in MASKS[1:]:
        masked = int(mask.sum())
        terms = [(-1) ** j * math.comb(L - masked, j) / (masked + j) for j in range(L - masked + 1)]
        share = sum(c * (high ** (masked + j) - low ** (masked + j)) for j, c in enumerate(terms))
        total += share * surprise(model, source, mask)
    return total


def expected(source, values: torch.Tensor) -> float:
    return float((source.probabilities * values.double()).sum())


def every_count_with_every_mask(monkeypatch, process) -> int:
    """Let row r take, of the masks of its count, number r mod how many there are. Returns rows per sequence."""

    def chosen(x, count, noise, given=None):
        out = x.clone()
        for row, number in enumerate(count.tolist()):
            masks = MASKS[MASKS.sum(1) == number]
            out[row][masks[row % len(masks)]] = V
        return out

    monkeypatch.setattr(process, "corrupt_exactly", chosen)
    return math.lcm(*(math.comb(L, n) for n in range(1, L + 1)))


def enumerated_bound(monkeypatch, model, source) -> torch.Tensor:
    """`objective.bound` of every sequence, masks enumerated: L strata are one draw per number of masked tokens. [S]"""
    loss = objective()
    many = every_count_with_every_mask(monkeypatch, loss.process)
    tokens = source.sequences.repeat_interleave(many, 0)
    rows = torch.arange(len(tokens))
    return loss.bound(model, Batch(tokens, rows), Noise(0, rows), L).nll.double().view(-1, many).mean(1)


def test_the_closed_form_itself_gives_the_entropy(source, exact):
    """The chain rule over all orders: nothing of the code under test is in this."""
    assert expected(source, integral(exact, source, 0.0, 1.0)) == pytest.approx(source.entropy, abs=1e-12)


def test_the_bound_of_the_exact_posterior_is_the_entropy(monkeypatch, source, exact):
    nll = enumerated_bound(monkeypatch, exact, source)
    assert expected(source, nll) == pytest.approx(source.entropy, abs=1e-6)


def test_the_bound_of_any_predictor_is_the_integral(monkeypatch, source, wrong):
    nll = enumerated_bound(monkeypatch, wrong, source)
    torch.testing.assert_close(nll, integral(wrong, source, 0.0, 1.0), rtol=1e-5, atol=1e-5)
    assert expected(source, nll) > source.entropy + 0.1


def test_a_predictor_a_little_off_is_worse(monkeypatch, toy, source):
    table = source.posterior_table()
    off = toy.MaskedTable(0.9 * table + 0.1 / V)
    assert expected(source, enumerated_bound(monkeypatch, off, source)) > source.entropy + 1e-3


def test_the_bound_is_above_the_models_own_log_likelihood(monkeypatch, source, wrong):
    """p(x) by brute force: tokens unmasked one by one in each of the 24 orders. Jensen: bound(x) >= -ln p(x)."""
    x, place = source.sequences, (V + 1) ** torch.arange(L - 1, -1, -1)
    p = torch.zeros(len(x), dtype=torch.float64)
    for order in itertools.permutations(range(L)):
        hidden, log_p = torch.ones(L, dtype=torch.bool), torch.zeros(len(x), dtype=torch.float64)
        for i in order:
            log_p += wrong.logits[(x.masked_fill(hidden, V) * place).sum(1), i, x[:, i]]
            hidden[i] = False
        p += log_p.exp() / math.factorial(L)
    assert float(p.sum()) == pytest.approx(1, abs=1e-9)
    gap = enumerated_bound(monkeypatch, wrong, source) + p.log()
    assert (gap > -1e-5).all()
    assert gap.max() > 0.1


def test_the_bounds_own_draws_agree(source, exact, wrong):
    rows = torch.arange(20_000)
    tokens = source.draw(len(rows))
    for model in (exact, wrong):
        nll = objective().bound(model, Batch(tokens, rows), Noise(3, rows), 2).nll.double()
        error = float(nll.std()) / len(rows) ** 0.5
        assert abs(float(nll.mean()) - expected(source, integral(model, source, 0.0, 1.0))) < 4 * error
        assert error < 0.05


def test_exact_masks_are_uniform_among_those_of_their_count(toy):
    process, rows = objective().process, torch.arange(6000)
    for count in range(L + 1):
        counts = torch.full((len(rows),), count)
        masked = process.corrupt_exactly(torch.zeros(len(rows), L, dtype=torch.long), counts, Noise(count, rows)) == V
        assert (masked.sum(1) == count).all()
        seen = (masked.unsqueeze(1) == MASKS[MASKS.sum(1) == count]).all(-1).sum(0)
        assert len(seen) == 1 or toy.chi_square(seen.double(), torch.full((len(seen),), 1 / len(seen))) > 1e-4


@dataclass(frozen=True)
class Fixed:
    """Training noise whose times a test chose."""

    u: torch.Tensor

    def times(self, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.u, torch.ones_like(self.u)

    def noise(self, position: torch.Tensor) -> Noise:
        return Noise(0, position)

    def mean_of_step(self, position, value):
        """As if the rows were a global batch."""
        return value(position).mean().expand(len(position))


@pytest.mark.parametrize("schedule", list(ALPHA))
@pytest.mark.parametrize("t_min", [1e-3, 0.2])
@pytest.mark.parametrize("predictor", ["exact", "wrong"])
def test_the_training_estimators_expectation(monkeypatch, request, source, schedule, t_min, predictor):
    """All sequences x masks x Gauss-Legendre times, through `forward`: int du / u, u = 1 - alpha(t), t in [t_min, 1].

    t is uniform in [t_min, 1], so the weight -alpha' / (1 - alpha) overcounts the cut range by 1 / (1 - t_min).
    """
    model, alpha, loss = request.getfixturevalue(predictor), ALPHA[schedule], objective(schedule, t_min)
    node, weight = (torch.as_tensor(v) / 2 for v in _legendre(40))
    node = node + 0.5
    tokens = source.sequences.repeat_interleave(len(MASKS) * len(node), 0)
    masks = MASKS.repeat_interleave(len(node), 0).repeat(len(source.sequences), 1)
    u = node.repeat(len(source.sequences) * len(MASKS))
    monkeypatch.setattr(loss.process, "corrupt", lambda x, t, noise, s=None: x.masked_fill(masks, V))
    loss.training_noise = Fixed(u.unsqueeze(1))
    nll = loss(model, Batch(tokens, torch.arange(len(tokens)))).nll.double()
    masked = torch.tensor([1 - alpha(t) for t in (t_min + (1 - t_min) * u).tolist()], dtype=torch.float64)
    chance = torch.where(masks, masked.unsqueeze(1), 1 - masked.unsqueeze(1)).prod(1)
    nll = (nll * chance * weight.repeat(len(source.sequences) * len(MASKS))).view(len(source.sequences), -1).sum(1)
    wanted = integral(model, source, 1 - alpha(t_min), 1 - alpha(1.0)) / (1 - t_min)
    torch.testing.assert_close(nll, wanted, rtol=1e-5, atol=1e-5)


def _legendre(count: int) -> tuple:
    import numpy

    return numpy.polynomial.legendre.leggauss(count)


@pytest.mark.parametrize("schedule", list(ALPHA))
def test_the_training_estimators_own_draws_agree(source, exact, schedule):
    rows = 40_000
    loss = objective(schedule, global_batch=rows)
    nll = loss(exact, Batch(source.draw(rows), torch.arange(rows))).nll.double()
    wanted = expected(source, integral(exact, source, 1 - ALPHA[schedule](1e-3), 1 - ALPHA[schedule](1.0))) / 0.999
    error = float(nll.std()) / rows**0.5
    assert abs(float(nll.mean()) - wanted) < 4 * error
    assert error < 0.05


def test_the_cut_of_the_paper_is_small_and_known(source, exact):
    """MDLM's range [1e-3, 1] with log_linear: what training's number leaves out is a few thousandths."""
    cut = expected(source, integral(exact, source, (1 - EPS) * 1e-3, 1 - EPS)) / 0.999
    assert 0 < abs(source.entropy - cut) < 0.006 * source.entropy


def test_a_cut_that_is_no_time_is_refused():
    for t_min in (0.0, 1.0, -1.0):
        with pytest.raises(ValueError, match=f"t_min: got {t_min}, expected 0 < t_min < 1"):
            MaskedBoundConfig(t_min=t_min)
