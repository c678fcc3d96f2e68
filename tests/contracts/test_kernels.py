"""Every scan kernel: against the recurrence step by step in float64, or refused with the reason."""

from importlib.util import find_spec

import pytest
import torch

from diffusion_lm.config import variants
from diffusion_lm.errors import UserError
from diffusion_lm.kernels.base import choose_kernel, kernel_class

KERNELS = variants("kernels")
DEVICE = "cpu"  # kernels that need a GPU, and its coarser matrix products, are tests/gpu's
USABLE = [name for name in KERNELS if kernel_class(name).missing(DEVICE) is None]
REFUSED = [(name, device) for name in KERNELS for device in ("cpu", "cuda") if kernel_class(name).missing(device)]


def recurrence(x, dt, A, B, C):
    """h_i = exp(dt_i A) h_{i-1} + dt_i x_i B_i^T, y_i = h_i C_i, position by position, head by head."""
    rows, length, heads, width = x.shape
    per_group = heads // B.shape[2]
    out = []
    for head in range(heads):
        group = head // per_group
        h = x.new_zeros(rows, width, B.shape[-1])
        ys = []
        for i in range(length):
            step = dt[:, i, head, None, None]
            h = torch.exp(step * A[head]) * h + step * x[:, i, head, :, None] * B[:, i, group, None, :]
            ys.append((h * C[:, i, group, None, :]).sum(-1))
        out.append(torch.stack(ys, 1))
    return torch.stack(out, 2)


def inputs(length: int, groups: int = 1, heads: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64) -> list:
    """x, dt, A, B, C: some heads forget within a position, others hardly over the whole length."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    dt = torch.nn.functional.softplus(normal(2, length, heads) - 1)
    A = -torch.logspace(-2, 1.2, heads, dtype=torch.float64)
    values = [normal(2, length, heads, 3), dt, A, normal(2, length, groups, 5), normal(2, length, groups, 5)]
    return [v.to(DEVICE, dtype).requires_grad_() for v in values]


def gradients(y: torch.Tensor, of: list) -> list:
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(y.device, y.dtype)
    return torch.autograd.grad((y * weight).sum(), of)


def compare(name: str, values: list, chunk_size: int) -> None:
    y = kernel_class(name)().scan(*values, chunk_size=chunk_size)[0]
    expected = recurrence(*values)
    assert y.dtype == values[0].dtype
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    for own, right in zip(gradients(y, values), gradients(expected, values), strict=True):
        torch.testing.assert_close(own, right, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", USABLE)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("length", "chunk_size"), [(1, 4), (5, 8), (8, 4), (13, 4), (13, 5), (17, 16), (9, 1), (12, 12)]
)
def test_equals_the_recurrence_with_its_gradients(name, groups, length, chunk_size):
    compare(name, inputs(length, groups), chunk_size)


@pytest.mark.parametrize("name", USABLE)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_chunk_size_changes_nothing(name, groups):
    values = inputs(50, groups, seed=3)
    kernel = kernel_class(name)()
    whole = kernel.scan(*values, chunk_size=64)[0]
    for chunk_size in (1, 7, 16, 50):
        torch.testing.assert_close(kernel.scan(*values, chunk_size=chunk_size)[0], whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", USABLE)
def test_float32_is_close_to_the_recurrence_over_a_long_text(name):
    values = inputs(300, 2, seed=5)
    y = kernel_class(name)().scan(*(v.float() for v in values), chunk_size=64)[0]
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), recurrence(*values), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", USABLE)
def test_states_that_are_forgotten_at_once_make_no_nan(name):
    values = inputs(40, seed=6)
    values[1] = (values[1].detach() * 0 + 50).requires_grad_()
    y = kernel_class(name)().scan(*values, chunk_size=16)[0]
    assert y.isfinite().all()
    assert all(g.isfinite().all() for g in gradients(y, values))
    torch.testing.assert_close(y, recurrence(*values), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", USABLE)
def test_bfloat16_stays_close(name):
    values = [v.detach() for v in inputs(40, 2, seed=7)]
    x, dt, A, B, C = values
    y = kernel_class(name)().scan(x.bfloat16(), dt.float(), A.float(), B.bfloat16(), C.bfloat16(), chunk_size=16)[0]
    assert y.dtype == torch.bfloat16
    expected = recurrence(*values)
    assert (y.double() - expected).norm() < 0.02 * expected.norm()


def test_a_kernel_for_any_device_exists():
    assert "torch" in USABLE
    assert kernel_class("torch").missing("cpu") is None
    assert kernel_class("torch").missing("cuda") is None


@pytest.mark.parametrize(("name", "device"), REFUSED)
def test_a_kernel_that_cannot_run_is_refused_and_says_why(name, device):
    absent = [package for package in kernel_class(name).packages if find_spec(package) is None]
    reason = f"package '{absent[0]}' is not installed" if absent else f"got {device}"
    with pytest.raises(UserError, match=f"kernel '{name}': .*{reason}; install it, or set kernel=auto"):
        choose_kernel(name, device)


def test_a_package_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr("diffusion_lm.backends.find_spec", lambda package: None)
    with pytest.raises(UserError, match="kernel 'mamba_ssm': package 'mamba_ssm' is not installed"):
        choose_kernel("mamba_ssm", "cuda")


def test_a_kernel_of_another_device_is_refused(monkeypatch):
    monkeypatch.setattr("diffusion_lm.backends.find_spec", lambda package: "there")
    with pytest.raises(UserError, match="kernel 'mamba_ssm': it needs a cuda device, got cpu"):
        choose_kernel("mamba_ssm", "cpu")
    assert choose_kernel("mamba_ssm", "cuda") == "mamba_ssm"
    assert choose_kernel("auto", "cuda") == "mamba_ssm"
    assert choose_kernel("auto", "cpu") == "torch"


def test_auto_is_the_usable_kernel_of_highest_priority(monkeypatch):
    monkeypatch.setattr("diffusion_lm.backends.find_spec", lambda package: None)
    assert choose_kernel("auto", "cuda") == choose_kernel("auto", "cpu") == "torch"


def test_an_unknown_kernel_is_refused():
    with pytest.raises(UserError, match=r"kernels: no variant 'torhc'; expected one of .*; did you mean 'torch'"):
        choose_kernel("torhc", "cpu")
