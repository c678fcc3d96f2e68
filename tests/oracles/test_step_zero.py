"""Before the first step a zero-initialised head says ln V of every token: what each convention makes of it, exactly.

MDLM's number (arXiv 2406.07524, its code) leaves out t < 1e-3 and, with log_linear to alpha = 1e-3, the masked shares
above 0.999: (1 - 1e-3) ln V, which is 10.814 for GPT-2's 50257 tokens, where the whole integral is ln V = 10.825.
"""

import math

import pytest
import torch

from diffusion_lm.denoisers.transformer import TransformerConfig
from diffusion_lm.model import DenoisingModel, ModelConfig
from diffusion_lm.noisy import Batch
from diffusion_lm.objectives.base import TrainingNoise
from diffusion_lm.objectives.masked import MaskedBound, MaskedBoundConfig, share_of_counts
from diffusion_lm.processes.masked import Masked, MaskedConfig
from diffusion_lm.prompts import PromptConfig
from diffusion_lm.random import Noise
from diffusion_lm.schedules.log_linear import LogLinear, LogLinearConfig
from diffusion_lm.times.importance import Importance, ImportanceConfig
from diffusion_lm.times.stratified import Stratified, StratifiedConfig

EPS = T_MIN = 1e-3
GPT2 = 50257


def model_and_objective(vocabulary: int, global_batch: int = 8, times=None, **config):
    """A real model as it starts, and the masked objective in MDLM's setting."""
    process = Masked(MaskedConfig(), LogLinear(LogLinearConfig(eps=EPS)), vocabulary)
    torch.manual_seed(0)
    model = DenoisingModel(ModelConfig(d_model=64), TransformerConfig(n_layers=1), process)
    noise = TrainingNoise(0, global_batch, times or Stratified(StratifiedConfig()))
    return model, MaskedBound(MaskedBoundConfig(t_min=T_MIN, **config), process, PromptConfig(fraction=0.0), noise)


def batch_of(rows: int, length: int, vocabulary: int) -> Batch:
    tokens = torch.randint(vocabulary, (rows, length), generator=torch.Generator().manual_seed(1))
    return Batch(tokens, torch.arange(rows))


def counted(length: int, low: float, high: float) -> float:
    """(1 / L) int_low^high (l / u) P(l masked | u) du, summed over l = 1..L: how much of the range of u a cut keeps.

    By the midpoint rule in ln u, of the binomial law in Python's integers.
    """
    steps = 4000
    width = math.log(high / low) / steps
    total = 0.0
    for k in range(steps):
        u = low * math.exp((k + 0.5) * width)
        masked = sum(n * math.comb(length, n) * u**n * (1 - u) ** (length - n) for n in range(1, length + 1))
        total += masked / length * width
    return total


@torch.no_grad()
def test_the_reported_bound_is_ln_v_and_mdlms_number_beside_it_is_10_814():
    """All numbers of masked positions occur once per sequence, so nothing is left to chance."""
    length = 6
    model, objective = model_and_objective(GPT2)
    bound = objective.bound(model, batch_of(2, length, GPT2), Noise(0, torch.arange(2)), length)
    per_token = bound.nll / bound.tokens
    torch.testing.assert_close(per_token, torch.full_like(per_token, math.log(GPT2)), rtol=1e-6, atol=0)
    cut = bound.beside["mdlm_cut"] / bound.tokens
    assert cut.tolist() == pytest.approx([0.999 * math.log(GPT2)] * 2, rel=1e-6)
    assert [round(v, 3) for v in cut.tolist()] == [10.814] * 2
    assert round(float(per_token[0]), 3) == 10.825


@torch.no_grad()
@pytest.mark.parametrize("vocabulary", [2, 7, 300])
def test_any_vocabulary(vocabulary):
    model, objective = model_and_objective(vocabulary)
    bound = objective.bound(model, batch_of(3, 8, vocabulary), Noise(0, torch.arange(3)), 8)
    cut = bound.beside["mdlm_cut"] / bound.tokens
    assert cut.tolist() == pytest.approx([(1 - EPS) * math.log(vocabulary)] * 3, rel=1e-6)


@pytest.mark.parametrize("length", [1, 4, 16])
def test_the_shares_of_counts_are_those_of_the_cut_range(length):
    """Their mean is the length of the cut range of u, whatever L; count by count against the integral itself."""
    low, high = EPS * (1 - EPS), 1 - EPS
    share = share_of_counts(length, low, high)
    assert float(share.mean()) == pytest.approx(high - low, rel=1e-12)
    assert float(share.mean()) == pytest.approx(counted(length, low, high), rel=1e-5)
    assert float(share_of_counts(length, 0.0, 1.0).min()) == pytest.approx(1.0, abs=1e-12)


@torch.no_grad()
@pytest.mark.parametrize(
    ("times", "config"),
    [
        (Stratified(StratifiedConfig()), {}),
        (Importance(ImportanceConfig()), {}),
        (Importance(ImportanceConfig()), {"estimator": "fixed_count"}),
    ],
    ids=["stratified", "importance", "importance, fixed count"],
)
def test_the_training_loss_is_that_in_expectation(times, config):
    """Bernoulli masks: E[masked / t] = 1 - eps. Exact counts, whose range is not cut: 1."""
    vocabulary, length, rows = 7, 32, 4000
    model, objective = model_and_objective(vocabulary, rows, times, **config)
    loss = objective(model, batch_of(rows, length, vocabulary))
    per_token = loss.nll.double() / length
    expected = (1.0 if config else 1 - EPS) * math.log(vocabulary)
    error = float(per_token.std()) / math.sqrt(rows)
    assert error < 0.03 * expected
    assert abs(float(per_token.mean()) - expected) < 4 * error
    assert float(loss.loss) == pytest.approx(float(per_token.mean()), rel=1e-5)


@torch.no_grad()
def test_at_every_time_the_expected_loss_of_bernoulli_masks_is_mdlms_number(monkeypatch):
    """One position: masked with probability (1 - eps) t, and worth nothing when it is not."""
    model, objective = model_and_objective(GPT2, 64)
    monkeypatch.setattr(objective.process, "corrupt", lambda x, t, noise, s=None: torch.full_like(x, GPT2))
    drawn = objective.draw(batch_of(64, 1, GPT2))
    expected = objective(model, drawn).nll.double() * 0.999 * drawn.t.squeeze(1)
    torch.testing.assert_close(expected, torch.full_like(expected, 0.999 * math.log(GPT2)), rtol=1e-6, atol=0)
    assert round(float(expected.mean()), 3) == 10.814


@torch.no_grad()
def test_with_fixed_counts_every_row_is_ln_v():
    """No draw of masks or times can change it."""
    model, objective = model_and_objective(7, 16, estimator="fixed_count")
    loss = objective(model, batch_of(16, 12, 7))
    torch.testing.assert_close(loss.nll / 12, torch.full((16,), math.log(7)), rtol=1e-6, atol=0)
