"""Every schedule: its formula, ends, range, derivative and inverse, in both precisions; processes run over each."""

import inspect
import math

import pytest
import torch

from diffusion_lm.config import build, config_class, part_class, variants
from diffusion_lm.random import Noise

SCHEDULES = variants("schedules")
FIXED = [name for name in SCHEDULES if not part_class(config_class("schedules", name)()).learned]
DTYPES = [torch.float32, torch.float64]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def inside(t: float) -> float:
    """The share of a distribution up to time t, 1e-5 cut off at either end."""
    return 1e-5 + (1 - 2e-5) * t


# every default written a second time, by hand, in Python's floats
FORMULAS = {
    "log_linear": lambda t: 1 - 0.999 * t,
    "sigma_linear": lambda t: math.exp(-10 * t),
    "cosine": lambda t: (math.cos((t + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)) ** 2,
    "half_cosine": lambda t: 1e-3 + 0.999 * math.cos(math.pi * t / 2),
    "cosine_md4": lambda t: 1 - math.cos(math.pi / 2 * (1 - t)),
    "polynomial": lambda t: 1 - t * t,
    "geometric": lambda t: math.exp(-(1e-4 ** (1 - t)) * 20**t),
    "sqrt": lambda t: 1 - math.sqrt(1e-4 + 0.9999 * t),
    "logistic": lambda t: sigmoid(2 * math.log((1 - inside(t)) / inside(t))),
    "gumbel": lambda t: sigmoid(-(4.723 - 0.852 * math.log(-math.log(inside(t))))),
}
CHANGED = [
    ("log_linear", {"eps": 0.1}, lambda t: 1 - 0.9 * t),
    ("sigma_linear", {"sigma_min": 0.5, "sigma_max": 2.0}, lambda t: math.exp(-0.5 - 1.5 * t)),
    ("cosine", {"s": 0.0}, lambda t: math.cos(math.pi * t / 2) ** 2),
    ("cosine", {"s": 1e6}, lambda t: (1 - t) ** 2),
    ("half_cosine", {"eps": 0.0}, lambda t: math.cos(math.pi * t / 2)),
    ("polynomial", {"exponent": 1.0}, lambda t: 1 - t),
    ("polynomial", {"exponent": 3.5}, lambda t: 1 - t**3.5),
    ("geometric", {"sigma_min": 1e-3, "sigma_max": 1.0}, lambda t: math.exp(-(1e-3 ** (1 - t)))),
    ("sqrt", {"s": 0.25}, lambda t: 1 - math.sqrt(0.25 + 0.75 * t)),
    ("logistic", {"location": -1.0, "scale": 1.0}, lambda t: (1 - inside(t)) / (1 + (math.e - 1) * inside(t))),
    ("gumbel", {"mu": 0.0, "beta": 1.0}, lambda t: -math.log(inside(t)) / (1 - math.log(inside(t)))),
]
ROUNDED = ("log_linear", "polynomial")  # one minus something: the digits of a float32 near 1, not of a small alpha
DENSE = [0.0, 1e-12, 1e-6, *(k / 97 for k in range(1, 97)), 1 - 1e-6, 1 - 1e-12, 1.0]


@pytest.fixture(params=SCHEDULES)
def schedule(request):
    return build(config_class("schedules", request.param)())


@pytest.fixture(params=FIXED)
def fixed(request):
    return build(config_class("schedules", request.param)())


def times(dtype: torch.dtype, count: int = 401) -> torch.Tensor:
    return torch.linspace(0, 1, count, dtype=dtype)


def column(*t: float) -> torch.Tensor:
    return torch.tensor(t, dtype=torch.float64).unsqueeze(1)


def test_every_fixed_schedule_is_written_here():
    assert set(FORMULAS) == set(FIXED)


@pytest.mark.parametrize(
    ("name", "changes", "formula"),
    [(name, {}, f) for name, f in FORMULAS.items()] + CHANGED,
    ids=lambda value: "" if callable(value) else str(value),  # a function's address differs between pytest's workers
)
def test_alpha_is_the_formula(name, changes, formula):
    schedule = build(config_class("schedules", name)(**changes))
    t = torch.tensor(DENSE, dtype=torch.float64)
    expected = torch.tensor([formula(v) for v in DENSE], dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha(t), expected, rtol=1e-9, atol=2e-15)
    single = t.float()
    exact = torch.tensor([formula(v) for v in single.tolist()], dtype=torch.float64)
    rounding = 2.0**-23 if name in ROUNDED else 1e-12
    torch.testing.assert_close(schedule.alpha(single).double(), exact, rtol=2e-5, atol=rounding)
    assert (schedule.alpha(single) >= 0).all()
    ends = torch.tensor([schedule.alpha_0, schedule.alpha_1], dtype=torch.float64)
    torch.testing.assert_close(ends, expected[[0, -1]], rtol=1e-9, atol=1e-15)


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
def test_reaches_its_declared_ends(schedule, dtype):
    alpha = schedule.alpha(times(dtype))
    assert 0 <= schedule.alpha_1 < schedule.alpha_0 <= 1
    rounding = {"rel": 1e-6, "abs": 2.0**-23} if dtype == torch.float32 else {"rel": 1e-9, "abs": 0.0}
    assert float(alpha[0]) == pytest.approx(schedule.alpha_0, **rounding)
    assert float(alpha[-1]) == pytest.approx(schedule.alpha_1, **rounding)


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
def test_alpha_is_a_falling_probability_in_the_precision_of_the_time(schedule, dtype):
    alpha = schedule.alpha(times(dtype))
    assert alpha.dtype == schedule.alpha_prime(times(dtype)).dtype == schedule.log_snr(times(dtype)).dtype == dtype
    assert alpha.min() >= 0
    assert alpha.max() <= 1
    assert (alpha.diff() < 0).all()


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_lost_at_either_end(schedule, dtype):
    """Values and slopes are finite up to the ends and next to them, and the inverse of an end is that end."""
    step = torch.finfo(dtype).eps
    t = torch.tensor([0.0, torch.finfo(dtype).tiny, step, 1 - step, 1.0], dtype=dtype)
    for value in (schedule.alpha(t), schedule.alpha_prime(t)):
        assert value.isfinite().all()
    assert (schedule.alpha_prime(t) <= 0).all()
    assert ((schedule.alpha(t) >= 0) & (schedule.alpha(t) <= 1)).all()
    assert (schedule.alpha(t).diff() <= 0).all()
    ends = schedule.inverse(torch.tensor([schedule.alpha_0, schedule.alpha_1], dtype=dtype))
    assert ((ends >= 0) & (ends <= 1)).all()
    torch.testing.assert_close(ends, torch.tensor([0.0, 1.0], dtype=dtype), rtol=0, atol=1e-3 if step > 1e-9 else 1e-7)
    log_snr = schedule.log_snr(t.double())
    assert not log_snr.isnan().any()
    assert (log_snr[1:] <= log_snr[:-1]).all()


def test_alpha_prime_is_the_derivative(schedule):
    t = times(torch.float64)[1:-1].requires_grad_()
    (slope,) = torch.autograd.grad(schedule.alpha(t).sum(), t)
    torch.testing.assert_close(schedule.alpha_prime(t.detach()), slope, rtol=1e-9, atol=1e-12)
    t = t.detach()
    difference = (schedule.alpha(t + 1e-6) - schedule.alpha(t - 1e-6)) / 2e-6
    torch.testing.assert_close(schedule.alpha_prime(t), difference, rtol=1e-6, atol=1e-8)
    assert (schedule.alpha_prime(times(torch.float64)) <= 0).all()


def test_log_snr_prime_is_the_derivative(schedule):
    t = times(torch.float64)[1:-1].requires_grad_()
    (slope,) = torch.autograd.grad(schedule.log_snr(t).sum(), t)
    torch.testing.assert_close(schedule.log_snr_prime(t.detach()), slope, rtol=1e-7, atol=0)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-4), (torch.float64, 1e-8)])
def test_inverse_goes_back_both_ways(schedule, dtype, error):
    t = times(dtype)
    torch.testing.assert_close(schedule.inverse(schedule.alpha(t)), t, rtol=0, atol=error)
    alpha = torch.linspace(schedule.alpha_1, schedule.alpha_0, 101, dtype=dtype)
    torch.testing.assert_close(schedule.alpha(schedule.inverse(alpha)), alpha, rtol=0, atol=error)
    assert schedule.inverse(alpha).dtype == dtype


@torch.no_grad()
def test_log_snr_is_the_log_odds_of_alpha(schedule):
    t = times(torch.float64)[1:-1]
    alpha = schedule.alpha(t)
    torch.testing.assert_close(schedule.log_snr(t), alpha.log() - (1 - alpha).log(), rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_takes_any_shape(schedule):
    t = times(torch.float64, 7)
    for shape in ((7,), (7, 1), (1, 7, 1)):
        assert schedule.alpha(t.reshape(shape)).shape == shape
    assert schedule.alpha(t[3]).shape == ()


def test_the_masked_process_masks_what_alpha_leaves_out(fixed):
    process = build(config_class("processes", "masked")(), fixed, 5)
    rows = 4000
    t = torch.rand(rows, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x_t = process.corrupt(torch.zeros(rows, 16, dtype=torch.int64), t, Noise(0, torch.arange(rows)))
    masked, expected = process.is_masked(x_t).double(), (1 - fixed.alpha(t)).expand(rows, 16)
    error = ((expected * (1 - expected)).sum().sqrt() / masked.numel()).clamp(min=1e-9)
    assert abs(float(masked.mean() - expected.mean())) < 4 * error
    rate = process.unmasking_rate(t)
    torch.testing.assert_close(rate, -fixed.alpha_prime(t) / (1 - fixed.alpha(t)))
    assert rate.isfinite().all()
    early = process.unmasking_rate(torch.tensor([[0.0], [1e-30], [1e-9], [1e-5]], dtype=torch.float64)).float()
    assert early.isfinite().all(), "also where 1 - alpha is not told from 0"


def test_weights_are_numbers_where_a_schedule_leaves_text_clean():
    """1 - alpha is 1e-30 at the t_min of every objective: no token is masked, and nothing is weighed."""
    schedule = build(config_class("schedules", "polynomial")(exponent=10.0))
    process = build(config_class("processes", "masked")(), schedule, 5)
    t, s = column(1e-3, 0.01, 0.5), column(0.0, 1e-3, 0.2)
    assert process.unmasking_rate(t).float().isfinite().all()
    torch.testing.assert_close(process.unmasking_rate(t)[2], column(10 * 0.5**9 / 0.5**10)[0])
    share = process.unmasking_share(t, s)
    torch.testing.assert_close(share, column(0.0, 0.0, 1 - 0.4**10), rtol=1e-4, atol=1e-12)


def test_the_gaussian_process_runs_through_its_log_snr_range(fixed):
    """From the larger of what it allows and what the schedule has, falling all the way; signal power as the formula."""
    process = build(config_class("processes", "gaussian")(), fixed, 5)
    highest, lowest = (math.log(a / (1 - a)) if 0 < a < 1 else math.inf for a in (fixed.alpha_0, fixed.alpha_1))
    lowest = -math.inf if fixed.alpha_1 == 0 else lowest
    t = times(torch.float64).unsqueeze(1)
    log_snr = process.log_snr(t)
    assert float(log_snr[0]) == pytest.approx(min(3.0, highest), abs=1e-6)
    assert float(log_snr[-1]) == pytest.approx(max(-7.0, lowest), abs=1e-6)
    assert (log_snr.diff(dim=0) < 0).all()
    level = process.noise_level(t)
    assert ((level >= -1e-9) & (level <= 1 + 1e-9)).all()
    x_t = process.corrupt(torch.ones(len(t), 50, 8, dtype=torch.float64), t, Noise(0, torch.arange(len(t))))
    assert x_t.isfinite().all()
    error = x_t - torch.sigmoid(log_snr).sqrt().unsqueeze(-1)
    spread = (error / torch.sigmoid(-log_snr).sqrt().unsqueeze(-1)).square()
    assert abs(float(spread.mean()) - 1) < 4 * math.sqrt(2 / spread.numel())


def test_a_schedule_outside_the_log_snr_range_is_refused():
    noisy = build(config_class("schedules", "gumbel")())
    with pytest.raises(ValueError, match=r"the schedule's alpha lies in \[.*\], outside the log-SNR range"):
        build(config_class("processes", "gaussian")(log_snr_max=3.0, log_snr_min=0.0), noisy, 5)


@pytest.mark.parametrize(
    ("name", "values", "text"),
    [
        ("log_linear", {"eps": 1.0}, "eps: got 1.0, expected 0 <= eps < 1"),
        ("half_cosine", {"eps": -0.1}, "eps: got -0.1, expected 0 <= eps < 1"),
        ("sigma_linear", {"sigma_min": 2.0, "sigma_max": 1.0}, "sigma range: got 2.0 to 1.0, expected 0 <= sigma_min"),
        ("sigma_linear", {"sigma_max": 100.0}, r"sigma range: got 0.0 to 100.0, .* sigma_max <= 80"),
        ("geometric", {"sigma_min": 0.0}, "sigma range: got 0.0 to 20.0, expected 1e-6 <= sigma_min"),
        ("cosine", {"s": 1e30}, r"s: got 1e\+30, expected 0 <= s <= 1e6"),
        ("polynomial", {"exponent": 0.5}, r"exponent: got 0.5, expected 1 to 10 \(below 1 alpha falls infinitely"),
        ("sqrt", {"s": 0.0}, r"s: got 0.0, expected 1e-8 <= s < 1 \(at 0 alpha falls infinitely fast"),
        ("logistic", {"cut": 0.0}, r"cut: got 0.0, expected 1e-12 <= cut < 0.5 \(at 0 the ends are infinite\)"),
        ("logistic", {"scale": -1.0}, "scale: got -1.0, expected more than 0"),
        ("logistic", {"location": 75.0}, r"log-SNR: got 75 - 23.0.* expected it between -80 and 80; lower scale"),
        ("gumbel", {"cut": 0.5}, "cut: got 0.5, expected 1e-12 <= cut < 0.5"),
        ("gumbel", {"beta": 0.0}, "beta: got 0.0, expected more than 0"),
        ("gumbel", {"mu": math.nan}, "-log SNR: got nan to nan, expected it between -80 and 80"),
    ],
)
def test_values_without_a_meaning_are_refused(name, values, text):
    with pytest.raises(ValueError, match=text):
        config_class("schedules", name)(**values)


@pytest.mark.parametrize("name", SCHEDULES)
def test_says_its_formula(name):
    text = inspect.getdoc(inspect.getmodule(part_class(config_class("schedules", name)())))
    assert text.startswith(f"{name}: alpha(t) = ")
