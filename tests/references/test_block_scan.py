"""The scan of clean and noisy blocks is the recurrence, block by block from the state that the clean text has there."""

import pytest
import torch

from diffusion_lm.config import variants
from diffusion_lm.kernels.base import ScanKernel, kernel_class
from diffusion_lm.layers.convolution import convolve, convolve_blocks, tails
from diffusion_lm.layers.single_step import lone_position, single_step

HEADS, WIDTH, STATE = 4, 3, 5


def step(h, x, dt, A, B, C):
    """h = exp(dt A) h + dt x B^T, y = h C, for one position."""
    h = torch.exp(dt * A)[..., None, None] * h + dt[..., None, None] * x[..., None] * B[:, :, None]
    return h, (h * C[:, :, None]).sum(-1)


def naive(x, dt, A, B, C, count):
    """Position by position, `count` blocks to a text; noisy blocks leave nothing."""
    B, C = (v.repeat_interleave(HEADS // B.shape[2], 2) for v in (B, C))
    rows, size = len(x) // 2, x.shape[1]
    y = {}
    for text in range(rows // count):
        h = x.new_zeros(1, HEADS, WIDTH, STATE)
        for row in range(text * count, (text + 1) * count):
            passing = h
            for source in (rows + row, row):
                h = passing
                for i in range(size):
                    at = (slice(source, source + 1), i)
                    h, y[source, i] = step(h, x[at], dt[at], A, B[at], C[at])
    return torch.stack([torch.cat([y[row, i] for i in range(size)]) for row in range(2 * rows)])


def inputs(texts: int, count: int, size: int, groups: int, dtype=torch.float64) -> list[torch.Tensor]:
    """x, dt, A, B, C of clean and noisy rows, some heads that forget at once and some that hardly do."""
    generator = torch.Generator().manual_seed(count * 100 + size)

    def normal(*shape):
        return torch.randn(2 * texts * count, size, *shape, generator=generator, dtype=torch.float64)

    dt = torch.nn.functional.softplus(normal(HEADS) - 1)
    A = -torch.logspace(-2, 1, HEADS, dtype=torch.float64)
    values = [normal(HEADS, WIDTH), dt, A, normal(groups, STATE), normal(groups, STATE)]
    return [v.to(dtype).requires_grad_() for v in values]


def gradients(y, of):
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(y.dtype)
    return torch.autograd.grad((y * weight).sum(), of)


SHAPES = [(1, 1), (5, 1), (1, 6), (4, 2), (7, 3), (3, 16), (2, 17), (3, 37), (1, 40), (2, 45)]
"""Blocks per text and positions per block: several to a chunk, one, chunks that divide a block or do not."""


@pytest.mark.parametrize("way", ["own", "by states"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("count", "size"), SHAPES)
def test_blocks_start_where_the_clean_text_is(way, groups, count, size):
    """The kernel's own way, and the one that any kernel has."""
    values, kernel = inputs(2, count, size, groups), kernel_class("torch")()
    over_blocks = kernel.over_blocks if way == "own" else lambda *v, **k: ScanKernel.over_blocks(kernel, *v, **k)
    y, expected = over_blocks(*values, count=count, chunk_size=9), naive(*values, count)
    torch.testing.assert_close(y, expected)
    for own, right in zip(gradients(y, values), gradients(expected, values), strict=True):
        torch.testing.assert_close(own, right)


@pytest.mark.parametrize("limit", [1, 2 * HEADS * 18**2])
def test_nothing_of_a_piece_of_rows_or_chunks_is_left_out(monkeypatch, limit):
    """A CPU takes a few chunks of a few rows at a time."""
    monkeypatch.setattr("diffusion_lm.layers.chunked_scan.SLICE", limit)
    for count, size in ((7, 3), (3, 37)):
        values = inputs(3, count, size, 2)
        y, expected = kernel_class("torch")().over_blocks(*values, count=count, chunk_size=9), naive(*values, count)
        torch.testing.assert_close(y, expected)
        for own, right in zip(gradients(y, values), gradients(expected, values), strict=True):
            torch.testing.assert_close(own, right)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("rows", "size"), [(6, 2), (7, 5), (40, 4), (4, 16)])
def test_short_rows_share_a_chunk_and_nothing_else(rows, size, reverse):
    values, kernel = inputs(1, rows, size, 2), kernel_class("torch")()
    together = kernel.scan(*values, chunk_size=64, reverse=reverse)[0]
    x, dt, A, B, C = values
    alone = [
        kernel.scan(*(v[k : k + 1] for v in (x, dt)), A, *(v[k : k + 1] for v in (B, C)), chunk_size=1, reverse=reverse)
        for k in range(2 * rows)
    ]
    expected = torch.cat([y for y, _ in alone])
    torch.testing.assert_close(together, expected)
    for own, right in zip(gradients(together, values), gradients(expected, values), strict=True):
        torch.testing.assert_close(own, right)


def test_one_position_is_a_step():
    x, dt, A, B, C = inputs(2, 1, 1, 2)
    state = torch.randn(4, HEADS, WIDTH, STATE, dtype=torch.float64)
    B_all, C_all = (v.repeat_interleave(2, 2) for v in (B, C))
    for start in (state, torch.zeros_like(state)):
        h, expected = step(start, x[:, 0], dt[:, 0], A, B_all[:, 0], C_all[:, 0])
        y, after = single_step(x, dt, A, B, C, start if start.any() else None)
        torch.testing.assert_close(y[:, 0], expected)
        torch.testing.assert_close(after, h)
    torch.testing.assert_close(lone_position(x, dt, A, B, C)[:, 0], expected)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_row_of_one_position_has_the_gradients_of_the_step_and_none_of_decay(reverse):
    values = inputs(3, 1, 1, 2)
    x, dt, A, B, C = values
    found = kernel_class("torch")().scan(*values, chunk_size=64, reverse=reverse)[0]
    B, C = (v.repeat_interleave(2, 2) for v in (B, C))
    expected = step(torch.zeros(len(x), HEADS, WIDTH, STATE, dtype=x.dtype), x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0])[1]
    for own, right in zip(gradients(found, values), gradients(expected.unsqueeze(1), values), strict=True):
        torch.testing.assert_close(own, right)
    assert not torch.autograd.grad(kernel_class("torch")().scan(*values, chunk_size=64)[0].sum(), A)[0].any()


@pytest.mark.parametrize("name", variants("kernels"))
@pytest.mark.parametrize("want", [False, True])
@pytest.mark.parametrize("known", [False, True])
def test_without_gradients_no_kernel_is_asked_for_one_position(name, known, want):
    """So that every one of them can be run here, whatever it needs for longer texts."""
    x, dt, A, B, C = (v.detach() for v in inputs(2, 1, 1, 2, torch.float32))
    start = torch.randn(len(x), HEADS, WIDTH, STATE) if known else torch.zeros(len(x), HEADS, WIDTH, STATE)
    B_all, C_all = (v.repeat_interleave(2, 2) for v in (B, C))
    h, expected = step(start, x[:, 0], dt[:, 0], A, B_all[:, 0], C_all[:, 0])
    with torch.no_grad():
        options = {"initial_state": start if known else None, "want_state": want}
        y, after = kernel_class(name)().scan(x, dt, A, B, C, chunk_size=64, **options)
    torch.testing.assert_close(y[:, 0], expected)
    assert (after is not None) == want
    if want:
        torch.testing.assert_close(after, h)


def test_a_state_is_float32_at_least_after_a_step():
    x, dt, A, B, C = (v.detach().bfloat16() for v in inputs(2, 1, 1, 1))
    y, after = single_step(x, dt, A, B, C)
    assert (y.dtype, after.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize(("count", "size", "width"), [(5, 1, 4), (4, 2, 4), (3, 3, 7), (2, 8, 4), (1, 4, 4), (3, 2, 1)])
def test_tails_are_what_stood_before_each_block(count, size, width):
    texts = torch.randn(2, count * size, 3)
    rows = texts.unflatten(1, (count, size)).flatten(0, 1)
    found = tails(rows, count, width - 1)
    for text in range(2):
        padded = torch.cat((torch.zeros(width - 1, 3), texts[text]))
        for block in range(count):
            torch.testing.assert_close(found[text * count + block], padded[block * size : block * size + width - 1])


def test_what_came_before_is_seen_and_what_comes_after_is_nothing():
    """A centred convolution of a block that follows something."""
    x, left, weight = torch.randn(2, 5, 3), torch.randn(2, 2, 3), torch.randn(3, 1, 5)
    padded = torch.cat((left, x, torch.zeros(2, 2, 3)), 1)
    expected = torch.nn.functional.conv1d(padded.transpose(1, 2), weight, groups=3).transpose(1, 2)
    torch.testing.assert_close(convolve(x, weight, None, 2, left=left), expected)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("before", [0, 1, 3])
@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_a_text_shorter_than_the_taps(length, before, mirrored):
    """Against torch's convolution, which multiplies the zeros outside; what reads only those has the gradient 0."""
    leaves = [torch.randn(n, dtype=torch.float64, requires_grad=True) for n in ((2, length, 3), (3, 1, 4), (3,))]
    x, weight, bias = leaves
    taps = weight.flip(2) if mirrored else weight
    expected = torch.nn.functional.pad(x.transpose(1, 2), (before, 3 - before))
    expected = torch.nn.functional.conv1d(expected, taps, bias, groups=3).transpose(1, 2)
    found, cotangent = convolve(x, weight, bias, before, mirrored=mirrored), torch.randn(2, length, 3).double()
    torch.testing.assert_close(found, expected)
    pairs = (torch.autograd.grad((y * cotangent).sum(), leaves) for y in (found, expected))
    for own, right in zip(*pairs, strict=True):
        torch.testing.assert_close(own, right)


@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("past", [0, 1, 3])
@pytest.mark.parametrize(("count", "size"), [(1, 1), (2, 1), (6, 1), (3, 2)])
def test_blocks_come_after_the_clean_ones_before_them(count, size, past, bias, after):
    """Row by row: each behind the clean text before its block, with nothing after it."""
    x = torch.randn(4 * count, size, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 1, past + 1 + after, dtype=torch.float64, requires_grad=True)
    shift = torch.randn(3, dtype=torch.float64, requires_grad=True) if bias else None
    rows = []
    for row in range(4 * count):
        text, block = row // count % 2, row % count
        clean = [x[text * count + k] for k in range(block)]
        seen = torch.cat((*clean, x[row]))
        padded = torch.nn.functional.pad(seen.T, (past, after))
        rows.append(torch.nn.functional.conv1d(padded, weight, shift, groups=3).T[-size:])
    found, expected = convolve_blocks(x, weight, shift, past, count), torch.stack(rows)
    torch.testing.assert_close(found, expected)
    leaves = [v for v in (x, weight, shift) if v is not None]
    pairs = (torch.autograd.grad((y * y.detach().cos()).sum(), leaves) for y in (found, expected))
    for own, right in zip(*pairs, strict=True):
        torch.testing.assert_close(own, right)
