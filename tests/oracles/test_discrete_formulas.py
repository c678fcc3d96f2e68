"""The papers' own formulas, written out with V-wide one-hots, against ours: Duo, GIDD, SEDD, MD4; score posteriors."""

import math
from dataclasses import replace

import pytest
import torch

from diffusion_lm.config import build, config_class
from diffusion_lm.discrete.divergence import jump_divergence, jump_weight, step_divergence
from diffusion_lm.discrete.objective import own_entropy
from diffusion_lm.noisy import Corrupted
from diffusion_lm.objectives.base import TrainingNoise
from diffusion_lm.objectives.gidd import Gidd, GiddConfig
from diffusion_lm.objectives.score_entropy import score_entropy
from diffusion_lm.prompts import PromptConfig
from diffusion_lm.readouts import Prediction, Scores
from diffusion_lm.schedules.cosine import Cosine, CosineConfig
from diffusion_lm.schedules.log_linear import LogLinear, LogLinearConfig

V, ROWS, L = 7, 40, 5
SHARE = 0.1
B = 2 * SHARE / (1 - SHARE)  # GIDD's 2^gamma p / (1 - p), gamma = 1


def process_of(name: str, schedule=None):
    return build(config_class("processes", name)(), schedule or LogLinear(LogLinearConfig(eps=0.0)), V)


def times(low: float = 1e-3, high: float = 0.999) -> torch.Tensor:
    return torch.linspace(low, high, ROWS, dtype=torch.float64).unsqueeze(1)


@pytest.fixture
def text() -> torch.Tensor:
    return torch.randint(V, (ROWS, L), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def values() -> torch.Tensor:
    return 2 * torch.randn(ROWS, L, V, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def noised(text: torch.Tensor, mask: bool) -> torch.Tensor:
    """Some positions kept, some of another token, some masked."""
    x_t = text.clone()
    x_t[:, 1] = (text[:, 1] + 1 + torch.arange(ROWS) % (V - 1)) % V
    x_t[:, 3] = V if mask else (text[:, 3] + 2) % V
    return x_t


def one_hot(ids: torch.Tensor, symbols: int = V) -> torch.Tensor:
    return torch.nn.functional.one_hot(ids, symbols).double()


def test_duos_form_of_the_uniform_bound(toy, text, values):
    """alpha' / (V alpha) [V / x_i - V / p_i - sum_j (x_j / x_i) ln(p_i x_j / (p_j x_i))].

    x is V alpha onehot(x_0) + 1 - alpha, p the same of the prediction, i the present state.
    """
    process, t, x_t = process_of("uniform", Cosine(CosineConfig(s=0.0))), times(), noised(text, mask=False)
    alpha, slope = torch.cos(t * math.pi / 2) ** 2, -math.pi / 2 * torch.sin(math.pi * t)
    alpha, slope = alpha.unsqueeze(-1), slope.unsqueeze(-1)
    truth = V * alpha * one_hot(text) + 1 - alpha
    guess = V * alpha * values.softmax(-1) + 1 - alpha
    truth_i, guess_i = ((one_hot(x_t) * v).sum(-1, keepdim=True) for v in (truth, guess))
    total = (truth / truth_i * torch.log(guess_i * truth / (guess * truth_i))).sum(-1)
    duo = (slope / (V * alpha)).squeeze(-1) * ((V / truth_i - V / guess_i).squeeze(-1) - total)
    ours = jump_divergence(process, Prediction(toy.padded(values)), text, x_t, t)
    ours = jump_weight(process, text, x_t, t) * ours
    torch.testing.assert_close(ours, duo, rtol=1e-8, atol=1e-10)
    assert (ours > 0).all()


def gidd_weights(t: torch.Tensor, text: torch.Tensor, x_t: torch.Tensor) -> dict[str, torch.Tensor]:
    """The paper's, for a = 1 - t and gamma = 1; c' is the derivative of c."""
    t = t.expand(text.shape)
    c, slope = B * torch.sqrt(t * (1 - t)), B * (1 - 2 * t) / (2 * torch.sqrt(t * (1 - t)))
    token = (c + (1 - t) * slope) / ((1 - t) * c)
    right = (c + (1 - t) * slope) / V / ((1 - t) * (1 - t + c / V))
    elbo = torch.where(x_t == V, 1 / (t * (1 - t)), torch.where(x_t == text, right, token))
    return {"elbo": elbo, "clamp": elbo.clamp(max=10.0), "dynamic": elbo / token}


def drawn_at(text: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor) -> Corrupted:
    return Corrupted(text, x_t, t, torch.ones_like(t), None, torch.arange(ROWS * L), torch.full((ROWS,), float(L)))


@pytest.mark.parametrize("weighting", ["elbo", "clamp", "dynamic"])
def test_gidds_weights(text, weighting):
    process, t, x_t = process_of("mask_uniform"), times(), noised(text, mask=True)
    objective = Gidd(GiddConfig(weighting=weighting), process, PromptConfig(fraction=0.0), TrainingNoise(0, 8))
    weight = objective.training_weight(drawn_at(text, x_t, t))
    assert weight.dtype == torch.float64
    torch.testing.assert_close(weight, gidd_weights(t, text, x_t)[weighting], rtol=1e-9, atol=0)


def test_dynamic_weights_are_2_at_a_mask_1_at_a_random_token_and_small_at_the_right_one(text):
    """The paper writes B / V sqrt((1 - a) / a) there; the ratio of the bound's own weights has c / V in q_t(x | x)."""
    process, t, x_t = process_of("mask_uniform"), times(1e-4, 0.5), noised(text, mask=True)
    objective = Gidd(GiddConfig(weighting="dynamic"), process, PromptConfig(fraction=0.0), TrainingNoise(0, 8))
    weight = objective.training_weight(drawn_at(text, x_t, t))
    torch.testing.assert_close(weight[:, 3], torch.full_like(weight[:, 3], 2.0))
    torch.testing.assert_close(weight[:, 1], torch.ones_like(weight[:, 1]))
    paper = (B / V * torch.sqrt(t / (1 - t))).squeeze(1)
    torch.testing.assert_close(weight[:, 0], paper / (1 + paper))


def test_gidds_divergence_by_one_hots(toy, text, values):
    """KL(q_t( . | x_0) || q_t( . | p)) + r - ln r - 1 over V + 1 symbols."""
    process, t, x_t = process_of("mask_uniform"), times(), noised(text, mask=True)
    c = B * torch.sqrt(t * (1 - t))
    alpha, mask, token = (v.unsqueeze(-1) for v in ((1 - t) / (1 + c), t / (1 + c), c / (1 + c) / V))
    noise = torch.cat((token.expand(-1, 1, V), mask), -1)
    truth = alpha * one_hot(text, V + 1) + noise
    guess = alpha * toy.padded(values, 1).softmax(-1) + noise
    r = ((truth / guess) * one_hot(x_t, V + 1)).sum(-1)
    naive = (truth * (truth / guess).log()).sum(-1) + r - r.log() - 1
    ours = jump_divergence(process, Prediction(toy.padded(values)), text, x_t, t)
    torch.testing.assert_close(ours, naive, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("noise", [1e-12, 1e-6, 1 - 1e-6, 1 - 1e-12])
@pytest.mark.parametrize("name", ["uniform", "mask_uniform"])
def test_divergences_are_finite_and_not_negative_near_the_ends(toy, text, values, name, noise):
    """In float32 logits too, with a prediction that is sure of itself and wrong: ln p down to -2000."""
    process, t = process_of(name), torch.full((ROWS, 1), noise, dtype=torch.float64)
    for logits in (values.float(), 1000 * values.float()):
        said = Prediction(toy.padded(logits).requires_grad_())
        cost = jump_divergence(process, said, text, noised(text, mask=name == "mask_uniform"), t)
        assert cost.isfinite().all()
        assert cost.min() > -1e-5 * max(1.0, float(cost.detach().max()))
        (slope,) = torch.autograd.grad(cost.sum(), said.logits)
        assert slope.isfinite().all()


def test_sedds_form_of_score_entropy_over_masks(toy, text, values):
    """sigma' (sum_v e^{s_v} - q s_x + q (ln q - 1)) at masked positions alone, q = 1 / expm1(sigma), s = ln ratio."""
    process, t = process_of("masked", LogLinear(LogLinearConfig(eps=1e-3))), times()
    x_t = noised(text, mask=True).where(torch.arange(L) == 3, text)
    sigma, slope = -torch.log1p(-0.999 * t), 0.999 / (1 - 0.999 * t)
    q = 1 / torch.expm1(sigma)
    log_ratio = values - torch.log(torch.expm1(sigma) * V).unsqueeze(-1)  # our network's output leaves this factor out
    of_x = log_ratio.gather(-1, text.unsqueeze(-1)).squeeze(-1)
    sedd = slope * (log_ratio.exp().sum(-1) - q * of_x + q * (q.log() - 1)) * (x_t == V)
    ours = score_entropy(process, Scores(toy.padded(values)), text, x_t, t)
    torch.testing.assert_close(ours, sedd, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 3, 1000])
def test_md4s_weights_of_a_masked_step(toy, text, values, steps):
    """KL of a step = -expm1(g_t - g_s) a_s CE at masked positions, g = logit a; MDLM: (a_s - a_t) / (1 - a_t) CE."""
    process = process_of("masked", LogLinear(LogLinearConfig(eps=1e-3)))
    t = (1 + torch.arange(ROWS, dtype=torch.float64) % steps).unsqueeze(1) / steps
    s = t - 1 / steps
    a_t, a_s = 1 - 0.999 * t, 1 - 0.999 * s
    x_t = noised(text, mask=True).where(torch.arange(L) == 3, text)
    entropy = -values.log_softmax(-1).gather(-1, text.unsqueeze(-1)).squeeze(-1) * (x_t == V)
    ours = step_divergence(process, Prediction(toy.padded(values)), text, x_t, t, s.clamp(min=0.0))
    torch.testing.assert_close(ours, (a_s - a_t) / (1 - a_t) * entropy, rtol=1e-8, atol=1e-12)
    later = s.squeeze(1) > 1e-9  # logit alpha_0 is infinite
    md4 = -torch.expm1(torch.logit(a_t[later]) - torch.logit(a_s[later])) * a_s[later] * entropy[later]
    torch.testing.assert_close(ours[later], md4, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", ["masked", "uniform", "mask_uniform"])
def test_own_entropy_is_bayes_rule_with_the_positions_own_state(toy, text, values, name):
    process, world, t = process_of(name), toy.World(name, V), times()
    x_t = noised(text, mask=name != "uniform")
    if name == "masked":
        x_t[:, 1] = V
    a = (1 - t).squeeze(1)
    likely = world.kernel(a).transpose(1, 2)[torch.arange(ROWS)[:, None], x_t][..., :V]
    joint = likely * values.softmax(-1)
    naive = -(joint / joint.sum(-1, keepdim=True)).gather(-1, text.unsqueeze(-1)).squeeze(-1).log()
    ours = own_entropy(process, Prediction(toy.padded(values)), x_t, t, text)
    torch.testing.assert_close(ours, naive, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ["masked", "uniform"])
def test_scores_give_back_the_posterior_that_they_come_from(toy, name):
    """And none to the mask or padding, whatever the scores."""
    source, world = toy.Source(3, 3), toy.World(name)
    process = build(config_class("processes", name)(), LogLinear(LogLinearConfig(eps=0.0)), 3)
    x_t = world.states(3)
    t = torch.linspace(0.01, 0.95, len(x_t), dtype=torch.float64).unsqueeze(1)
    model = toy.Informed(source, world)
    p = model.predict(x_t, 1 - t.squeeze(1))
    scores = model.as_scores(p, x_t, 1 - t.squeeze(1))
    found = scores.posterior(process, x_t, t).probabilities()
    wanted = torch.nn.functional.pad(p, (0, 2))
    places = (x_t == 3) if name == "masked" else torch.ones_like(x_t, dtype=torch.bool)
    torch.testing.assert_close(found[places], wanted[places], rtol=1e-8, atol=1e-10)
    shift = 3 * torch.randn(5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    wild = replace(scores, logits=scores.logits + shift)
    for time in (t, 0 * t, 0 * t + 1):
        found = wild.posterior(process, x_t, time).probabilities()
        assert found.isfinite().all()
        assert (found[..., 3:] == 0).all()


@pytest.mark.parametrize("name", ["uniform", "mask_uniform"])
def test_float32_logits_over_many_tokens_lose_little(toy, name):
    """Continuous time and one of 1000 steps, vocabulary 20,000: the cancelling parts are float64."""
    size, rows = 20_000, 9
    process = build(config_class("processes", name)(), LogLinear(LogLinearConfig(eps=0.0)), size)
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(rows, 3, size, generator=generator, dtype=torch.float64)
    text = logits.argmax(-1).where(torch.arange(3) < 2, 7)
    x_t = text.where(torch.arange(3) != 1, 11)
    t = torch.linspace(1e-3, 0.999, rows, dtype=torch.float64).unsqueeze(1)
    single, double = (
        [
            jump_weight(process, text, x_t, t) * jump_divergence(process, Prediction(v), text, x_t, t),
            1000 * step_divergence(process, Prediction(v), text, x_t, t, t - 1e-3),
        ]
        for v in (logits.float(), logits.float().double())
    )
    for found, wanted in zip(single, double, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
