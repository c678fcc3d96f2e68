"""Every scan kernel: against the recurrence step by step in float64, or refused with the reason."""

from importlib.util import find_spec

import pytest
import torch
from torch.library import opcheck

from diffusion_lm.config import variants
from diffusion_lm.errors import UserError
from diffusion_lm.kernels.base import choose_kernel, kernel_class, runs_of
from diffusion_lm.layers.chunked_scan import opaque_scan

KERNELS = variants("kernels")
DEVICE = "cpu"  # kernels that need a GPU, and its coarser matrix products, are tests/gpu's
USABLE = [name for name in KERNELS if kernel_class(name).missing(DEVICE) is None]
REFUSED = [(name, device) for name in KERNELS for device in ("cpu", "cuda") if kernel_class(name).missing(device)]


def recurrence(x, dt, A, B, C, initial=None, segment=None, reverse=False):
    """h_i = exp(dt_i A) h_{i-1} + dt_i x_i B_i^T, y_i = h_i C_i, position by position; h is 0 where a document starts.
    The outputs and the last state."""
    rows, length, heads, width = x.shape
    B, C = (v.repeat_interleave(heads // B.shape[2], 2) for v in (B, C))
    h = x.new_zeros(rows, heads, width, B.shape[-1]) if initial is None else initial
    places = list(range(length))[::-1] if reverse else list(range(length))
    out = {}
    for number, i in enumerate(places):
        if segment is not None and number:
            h = h * (segment[:, i] == segment[:, places[number - 1]]).to(h.dtype)[:, None, None, None]
        step = dt[:, i, :, None, None]
        h = torch.exp(step * A[:, None, None]) * h + step * x[:, i, :, :, None] * B[:, i, :, None, :]
        out[i] = (h * C[:, i, :, None, :]).sum(-1)
    return torch.stack([out[i] for i in range(length)], 1), h


def inputs(length: int, groups: int = 1, heads: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64) -> list:
    """x, dt, A, B, C: some heads forget within a position, others hardly over the whole length."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    dt = torch.nn.functional.softplus(normal(2, length, heads) - 1)
    A = -torch.logspace(-2, 1.2, heads, dtype=torch.float64)
    values = [normal(2, length, heads, 3), dt, A, normal(2, length, groups, 5), normal(2, length, groups, 5)]
    return [v.to(DEVICE, dtype).requires_grad_() for v in values]


def start_of(values: list, seed: int = 0) -> torch.Tensor:
    """A state [B, H, P, N] for these inputs."""
    x, B = values[0], values[3]
    generator = torch.Generator().manual_seed(seed)
    shape = (len(x), *x.shape[2:], B.shape[-1])
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(x).requires_grad_()


def documents(length: int, seed: int = 0) -> torch.Tensor:
    """Rows of documents of one to nine positions, ids that come back, padding at the end."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(2):
        sizes = torch.randint(1, 10, (length,), generator=generator)
        rows.append((torch.arange(length) % 2 + 1).repeat_interleave(sizes)[:length])
    segment = torch.stack(rows)
    segment[1, length - length // 4 :] = 0
    return segment.to(DEVICE)


def gradients(y: torch.Tensor, of: list) -> list:
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(y.device, y.dtype)
    return torch.autograd.grad((y * weight).sum(), of)


def compare(name: str, values: list, chunk_size: int, initial=None, segment=None, reverse: bool = False) -> None:
    """Outputs, the last state and all gradients."""
    options = {"initial_state": initial, "segment": segment, "reverse": reverse, "want_state": True}
    y, state = kernel_class(name)().scan(*values, chunk_size=chunk_size, **options)
    expected, last = recurrence(*values, initial, segment, reverse)
    assert y.dtype == values[0].dtype
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(state, last, rtol=1e-9, atol=1e-9)
    of = values if initial is None else [*values, initial]
    own, right = (gradients(torch.cat((a.flatten(), b.flatten())), of) for a, b in ((y, state), (expected, last)))
    for found, wanted in zip(own, right, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", USABLE)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("length", "chunk_size"), [(1, 4), (5, 8), (8, 4), (13, 4), (13, 5), (17, 16), (9, 1), (12, 12)]
)
def test_equals_the_recurrence_with_its_gradients(name, groups, length, chunk_size):
    compare(name, inputs(length, groups), chunk_size)


@pytest.mark.parametrize("name", USABLE)
@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("packed", [False, True], ids=["one document", "documents"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("length", "chunk_size"), [(1, 4), (13, 5), (33, 16), (70, 64)])
def test_states_documents_and_both_directions(name, groups, length, chunk_size, packed, reverse):
    values = inputs(length, groups, seed=length)
    segment = documents(length) if packed else None
    compare(name, values, chunk_size, start_of(values), segment, reverse)
    compare(name, values, chunk_size, None, segment, reverse)


@pytest.mark.slow
@pytest.mark.parametrize("name", USABLE)
@pytest.mark.parametrize("first", range(1, 301, 20))
def test_every_length(name, first):
    """1 to 300, the other options in turn."""
    for length in range(first, first + 20):
        values, bits = inputs(length, 1 + length % 2, seed=length), length // 2
        initial = start_of(values) if bits % 2 else None
        segment = documents(length, seed=length) if bits // 2 % 2 else None
        compare(name, values, (16, 37, 64)[length % 3], initial, segment, reverse=bits // 4 % 2 == 1)


@pytest.mark.parametrize("name", USABLE)
def test_nothing_of_a_slice_of_chunks_is_left_out(name, monkeypatch):
    """A CPU takes a few chunks at a time: one, two of five, all."""
    values = inputs(50, 2, seed=4)
    expected = recurrence(*values)[0]
    wanted = gradients(expected, values)
    for size in (1, 2 * 2 * 4 * 100, 1 << 30):
        monkeypatch.setattr("diffusion_lm.layers.chunked_scan.SLICE", size)
        y = kernel_class(name)().scan(*values, chunk_size=10)[0]
        torch.testing.assert_close(y, expected)
        for own, right in zip(gradients(y, values), wanted, strict=True):
            torch.testing.assert_close(own, right)


@pytest.mark.parametrize("name", USABLE)
def test_a_skip_is_added_per_head_or_per_channel(name):
    values = inputs(13, seed=8)
    for D in (torch.randn(4, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)):
        y = kernel_class(name)().scan(*values, chunk_size=4, D=D)[0]
        skip = values[0] * (D if D.dim() == 2 else D[:, None])
        torch.testing.assert_close(y, recurrence(*values)[0] + skip)


@pytest.mark.parametrize("name", USABLE)
def test_steps_of_zero_change_nothing_and_have_their_gradient(name):
    values = inputs(20, seed=9)
    values[1] = (values[1].detach() * (torch.arange(20) % 3 > 0).to(DEVICE)[:, None]).requires_grad_()
    compare(name, values, 8)


@pytest.mark.parametrize("name", USABLE)
def test_inputs_stay_as_they_are(name):
    values = [v.detach() for v in inputs(1, seed=10)]
    start, before = start_of(values).detach(), [v.clone() for v in values]
    kept = start.clone()
    kernel_class(name)().scan(*values, chunk_size=1, initial_state=start, want_state=True)
    assert all(torch.equal(a, b) for a, b in zip([*values, start], [*before, kept], strict=True))


@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("packed", [False, True], ids=["one document", "documents"])
def test_what_compiled_graphs_call_is_the_scan(packed, reverse):
    """The operator keeps torch's rules for operators (schema, shapes, gradients), and is the recurrence."""
    values = inputs(33, 2, seed=11)
    initial, segment = start_of(values), documents(33) if packed else None
    arguments = (*values, initial, None if segment is None else runs_of(segment), 16, reverse)
    opcheck(opaque_scan, arguments)
    y, state, _ = opaque_scan(*arguments)
    expected, last = recurrence(*values, initial, segment, reverse)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(state, last)
    own, right = (gradients(torch.cat((a.flatten(), b.flatten())), values) for a, b in ((y, state), (expected, last)))
    for found, wanted in zip(own, right, strict=True):
        torch.testing.assert_close(found, wanted)


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
    torch.testing.assert_close(y.double(), recurrence(*values)[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", USABLE)
def test_states_that_are_forgotten_at_once_make_no_nan(name):
    values = inputs(40, seed=6)
    values[1] = (values[1].detach() * 0 + 50).requires_grad_()
    y = kernel_class(name)().scan(*values, chunk_size=16)[0]
    assert y.isfinite().all()
    assert all(g.isfinite().all() for g in gradients(y, values))
    torch.testing.assert_close(y, recurrence(*values)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", USABLE)
def test_bfloat16_stays_close(name):
    values = [v.detach() for v in inputs(40, 2, seed=7)]
    x, dt, A, B, C = values
    y = kernel_class(name)().scan(x.bfloat16(), dt.float(), A.float(), B.bfloat16(), C.bfloat16(), chunk_size=16)[0]
    assert y.dtype == torch.bfloat16
    expected = recurrence(*values)[0]
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
