"""Every schedule: its ends, its range, its derivative and its inverse."""

import inspect

import pytest
import torch

from diffusion_lm.config import build, config_class, part_class, variants

SCHEDULES = variants("schedules")
DTYPES = [torch.float32, torch.float64]


@pytest.fixture(params=SCHEDULES)
def schedule(request):
    return build(config_class("schedules", request.param)())


def times(dtype: torch.dtype, count: int = 401) -> torch.Tensor:
    return torch.linspace(0, 1, count, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_reaches_its_declared_ends(schedule, dtype):
    alpha = schedule.alpha(times(dtype))
    assert 0 <= schedule.alpha_1 < schedule.alpha_0 <= 1
    torch.testing.assert_close(float(alpha[0]), schedule.alpha_0, rtol=0, atol=1e-6)
    torch.testing.assert_close(float(alpha[-1]), schedule.alpha_1, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_alpha_is_a_falling_probability_in_the_precision_of_the_time(schedule, dtype):
    alpha = schedule.alpha(times(dtype))
    assert alpha.dtype == schedule.alpha_prime(times(dtype)).dtype == dtype
    assert alpha.min() >= 0
    assert alpha.max() <= 1
    assert (alpha.diff() < 0).all()


def test_alpha_prime_is_the_derivative(schedule):
    t = times(torch.float64)[1:-1].requires_grad_()
    (slope,) = torch.autograd.grad(schedule.alpha(t).sum(), t)
    torch.testing.assert_close(schedule.alpha_prime(t.detach()), slope, rtol=1e-9, atol=1e-12)
    t = t.detach()
    difference = (schedule.alpha(t + 1e-6) - schedule.alpha(t - 1e-6)) / 2e-6
    torch.testing.assert_close(schedule.alpha_prime(t), difference, rtol=1e-6, atol=1e-8)
    assert (schedule.alpha_prime(times(torch.float64)) <= 0).all()


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-4), (torch.float64, 1e-8)])
def test_inverse_goes_back_both_ways(schedule, dtype, error):
    t = times(dtype)
    torch.testing.assert_close(schedule.inverse(schedule.alpha(t)), t, rtol=0, atol=error)
    alpha = torch.linspace(schedule.alpha_1, schedule.alpha_0, 101, dtype=dtype)
    torch.testing.assert_close(schedule.alpha(schedule.inverse(alpha)), alpha, rtol=0, atol=error)
    assert schedule.inverse(alpha).dtype == dtype


def test_log_snr_is_the_log_odds_of_alpha(schedule):
    t = times(torch.float64)[1:-1]
    alpha = schedule.alpha(t)
    torch.testing.assert_close(schedule.log_snr(t), alpha.log() - (1 - alpha).log())


def test_takes_any_shape(schedule):
    t = times(torch.float64, 7)
    for shape in ((7,), (7, 1), (1, 7, 1)):
        assert schedule.alpha(t.reshape(shape)).shape == shape
    assert schedule.alpha(t[3]).shape == ()


@pytest.mark.parametrize("name", SCHEDULES)
def test_says_its_formula(name):
    text = inspect.getdoc(inspect.getmodule(part_class(config_class("schedules", name)())))
    assert text.startswith(f"{name}: alpha(t) = ")
