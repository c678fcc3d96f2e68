"""The processes' formulas, written a second time: rates, posteriors by Bayes' rule, evidence, log-SNR."""

import math

import pytest
import torch

from diffusion_lm.processes.gaussian import Gaussian, GaussianConfig
from diffusion_lm.processes.masked import Masked, MaskedConfig
from diffusion_lm.random import Noise
from diffusion_lm.readouts import Prediction
from diffusion_lm.schedules.cosine import Cosine, CosineConfig
from diffusion_lm.schedules.log_linear import LogLinear, LogLinearConfig


@pytest.fixture(params=[LogLinear(LogLinearConfig(eps=0.01)), Cosine(CosineConfig())], ids=["log_linear", "cosine"])
def schedule(request):
    return request.param


def column(*t: float) -> torch.Tensor:
    return torch.tensor(t, dtype=torch.float64).unsqueeze(1)


def test_schedules_at_known_points():
    line, cosine = LogLinear(LogLinearConfig(eps=0.01)), Cosine(CosineConfig(s=0.0))
    t = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(line.alpha(t), torch.tensor([1, 0.7525, 0.505, 0.01], dtype=torch.float64))
    expected = torch.tensor([1, math.cos(math.pi / 8) ** 2, 0.5, 0], dtype=torch.float64)
    torch.testing.assert_close(cosine.alpha(t), expected)
    shifted = Cosine(CosineConfig()).alpha(t[1:2])
    f = [math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2 for u in (0.0, 0.25)]
    torch.testing.assert_close(float(shifted), f[1] / f[0], rtol=1e-12, atol=0)


def test_masked_marginal_and_reverse_are_bayes_rule(schedule):
    process = Masked(MaskedConfig(), schedule, 3)
    t, s = column(0.7), column(0.4)
    a_t, a_s = float(schedule.alpha(t)), float(schedule.alpha(s))
    law = process.marginal(torch.tensor([[2]]), t).probabilities(4)[0, 0]
    torch.testing.assert_close(law, torch.tensor([0, 0, a_t, 1 - a_t], dtype=torch.float64))
    guess = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    logits = torch.cat((guess.log(), torch.full((5,), -torch.inf, dtype=torch.float64)))
    states = torch.tensor([[3, 1]])
    step = process.reverse(states, Prediction(logits.expand(1, 2, 8)), t, s, torch.zeros(4, 1)).probabilities(4)[0]
    # q(x_s | x_t = mask, x_0 = v) by Bayes' rule: q(x_t | x_s) q(x_s | x_0) / q(x_t | x_0), summed over the guess
    by_bayes = torch.zeros(4, dtype=torch.float64)
    for v in range(3):
        by_bayes[v] += guess[v] * (1 - a_t / a_s) * a_s / (1 - a_t)
        by_bayes[3] += guess[v] * (1 - a_s) / (1 - a_t)
    torch.testing.assert_close(step[0], by_bayes)
    torch.testing.assert_close(step[1], torch.tensor([0, 1, 0, 0], dtype=torch.float64))


def test_tokens_that_are_not_masked_stay_whatever_the_prediction_says(schedule):
    process = Masked(MaskedConfig(), schedule, 3)
    elsewhere = torch.tensor([-torch.inf, 0.0, -torch.inf, -torch.inf]).expand(50, 2, 4)
    states = torch.tensor([[0, 3]]).expand(50, 2)
    t, s = torch.full((50, 1), 0.9, dtype=torch.float64), torch.zeros(50, 1, dtype=torch.float64)
    back = process.reverse(states, Prediction(elsewhere), t, s, torch.zeros(4, 1)).sample(Noise(0, torch.arange(50)))
    assert back.tolist() == [[0, 1]] * 50
    assert process.decode(states, Prediction(elsewhere), Noise(0, torch.arange(50))).tolist() == [[0, 1]] * 50


def test_unmasking_rate_is_the_hazard_of_going_back(schedule):
    """-alpha' / (1 - alpha) is d/dt ln(1 - alpha)."""
    process = Masked(MaskedConfig(), schedule, 3)
    t = column(0.01, 0.3, 0.99).requires_grad_()
    (slope,) = torch.autograd.grad(torch.log1p(-schedule.alpha(t)).sum(), t)
    torch.testing.assert_close(process.unmasking_rate(t.detach()), slope)


def test_the_rate_of_log_linear_is_1_over_t():
    process = Masked(MaskedConfig(), LogLinear(LogLinearConfig()), 3)
    t = column(1e-3, 0.1, 0.5, 1.0)
    torch.testing.assert_close(process.unmasking_rate(t), 1 / t, rtol=1e-9, atol=0)


def gaussian(schedule, ends: tuple[float, float] = (3.0, -4.0)) -> Gaussian:
    return Gaussian(GaussianConfig(log_snr_max=ends[0], log_snr_min=ends[1]), schedule, 3)


def test_log_snr_runs_over_its_range_and_back(schedule):
    process = gaussian(schedule)
    t = column(*torch.linspace(0, 1, 41).tolist())
    log_snr = process.log_snr(t)
    torch.testing.assert_close(log_snr[[0, -1], 0], torch.tensor([3.0, -4.0], dtype=torch.float64))
    torch.testing.assert_close(process.alpha(t), torch.sigmoid(log_snr))
    back = process.schedule.inverse(torch.sigmoid(log_snr))
    torch.testing.assert_close(back, t, rtol=0, atol=1e-9)
    torch.testing.assert_close(process.noise_level(t), (3 - log_snr) / 7, rtol=0, atol=1e-9)
    t = t[1:-1].clone().requires_grad_()
    (slope,) = torch.autograd.grad(process.log_snr(t).sum(), t)
    torch.testing.assert_close(process.schedule.log_snr_prime(t.detach()), slope)


def test_the_log_snr_range_is_cut_where_the_schedule_ends():
    process = gaussian(LogLinear(LogLinearConfig(eps=0.2)), (3.0, -9.0))
    assert process.log_snr_min == pytest.approx(math.log(0.2 / 0.8))
    assert float(process.alpha(column(1.0))) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="outside the log-SNR range"):
        gaussian(LogLinear(LogLinearConfig(eps=0.5)), (-1.0, -9.0))


@pytest.mark.parametrize("ends", [(30.0, -30.0), (30.0, -40.0), (-39.0, -40.0)])
def test_the_widest_ranges_that_the_config_allows_work(ends):
    process = gaussian(Cosine(CosineConfig()), ends)
    log_snr = process.log_snr(column(0.0, 1.0)).squeeze(1)
    torch.testing.assert_close(log_snr, torch.tensor(ends, dtype=torch.float64), rtol=0, atol=1e-2)
    assert process.noise_level(column(0.0, 0.5, 1.0)).isfinite().all()


@pytest.mark.parametrize("ends", [(1.0, 2.0), (31.0, 0.0), (40.0, -40.0), (0.0, -50.0)])
def test_impossible_ranges_are_refused(ends):
    with pytest.raises(ValueError, match=f"log-SNR range: got {ends[1]} to {ends[0]}, expected"):
        GaussianConfig(log_snr_max=ends[0], log_snr_min=ends[1])


def test_gaussian_corrupt_and_reverse_are_conditional_normals(schedule):
    """(x_s, x_t) given x_0 is one normal vector; x_s given x_t by the textbook formula for its parts."""
    process, (t, s) = gaussian(schedule), (column(0.8), column(0.3))
    a_t, a_s = float(process.alpha(t)), float(process.alpha(s))
    x_0, x_t = torch.randn(2, 1, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    law = process.marginal(x_0, t)
    torch.testing.assert_close(law.mean, math.sqrt(a_t) * x_0)
    torch.testing.assert_close(law.std.squeeze(), torch.tensor(math.sqrt(1 - a_t), dtype=torch.float64))
    covariance = math.sqrt(a_t / a_s) * (1 - a_s)
    mean = math.sqrt(a_s) * x_0 + covariance / (1 - a_t) * (x_t - math.sqrt(a_t) * x_0)
    variance = (1 - a_s) - covariance**2 / (1 - a_t)
    table = torch.cat((x_0[0], torch.zeros(1, 3, dtype=torch.float64)))  # token 0 and token 1 are x_0's two positions
    certain = torch.nn.functional.one_hot(torch.tensor([[0, 1]]), 5).double().log()
    step = process.reverse(x_t, Prediction(certain), t, s, table)
    torch.testing.assert_close(step.mean, mean)
    torch.testing.assert_close(step.std.squeeze(), torch.tensor(math.sqrt(variance), dtype=torch.float64))


def test_estimate_is_the_mean_vector():
    table = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    padded = torch.cat((p.log() + 3, torch.full((5,), -torch.inf, dtype=torch.float64)))
    mean = Prediction(padded.expand(1, 1, 8)).estimate(table)
    torch.testing.assert_close(mean[0, 0], p[0] * table[0] + p[1] * table[1] + p[2] * table[2])


@pytest.mark.parametrize("t", [0.0, 0.4, 1.0])
def test_token_evidence_is_the_log_likelihood_of_the_noisy_vector(schedule, t):
    process = gaussian(schedule)
    table = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    times = column(t, t)
    evidence = process.token_evidence(x, process.noise_level(times), table).double()
    alpha = float(process.alpha(times)[0])
    normal = torch.distributions.Normal(math.sqrt(alpha) * table, math.sqrt(1 - alpha))
    likelihood = normal.log_prob(x.unsqueeze(2)).sum(-1)
    torch.testing.assert_close(evidence.log_softmax(-1), likelihood.log_softmax(-1), rtol=1e-4, atol=1e-4)


def test_gaussian_prior_and_noise_are_the_rows_own():
    process = gaussian(Cosine(CosineConfig()))
    table, noise = torch.zeros(3, 2), Noise(0, torch.arange(4))
    x_1 = process.prior(torch.zeros(4, 3, dtype=torch.long), table, noise)
    x_t = process.corrupt(x_1 * 0, column(1.0, 1.0, 1.0, 1.0), noise)
    assert x_1.dtype == table.dtype
    assert not torch.allclose(x_1, x_t, atol=0.1)
    assert len(x_1.flatten().unique()) == x_1.numel()
