"""The scan of clean texts and, from the states that they have at each block's start, of noisy blocks beside them.

Blocks of many positions: the clean text is scanned in chunks that divide a block, and the states before the blocks'
first chunks are where the noisy blocks start. The gradients of those states go back into the clean scan. Short blocks
would make a state for every few positions; there a chunk holds several clean blocks and the noisy ones beside them, the
noisy ones see the clean ones before them in the chunk as products of positions (arXiv 2405.21060, section 5: attention
with a mask of decays), and states stand between chunks only.
"""

from typing import Any

import torch
from torch.nn import functional as F

from diffusion_lm.blocks import fold, unfold
from diffusion_lm.layers.chunked_scan import backward, forward, starts
from diffusion_lm.layers.scan_layout import Plan
from diffusion_lm.precision import wide
from diffusion_lm.shapes import Tensor

SHORT = 32
"""Longest block of which a chunk holds several."""
BESIDE = 32
"""Positions of either text in such a chunk."""


def forward_blocks(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, count: int, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """y of clean and noisy rows [2 R, S, H, P], and the states before chunks that the gradient needs."""
    size = x.shape[1]
    if size <= SHORT or count == 1:
        y, _, before = forward(*_as_texts(count, x, dt, A, B, C), None, None, _beside(size, count, chunk))
        return fold(y, size), before, x.new_empty(0)
    plan, every, values = _divided(size, chunk, x, dt, B, C)
    clean, noisy = zip(*(v.chunk(2) for v in values), strict=True)
    texts = _as_texts(count, *clean)
    own, _, before = forward(texts[0], texts[1], A, texts[2], texts[3], None, None, plan)
    first = starts(before, texts[0], plan, every).flatten(0, 1)
    rest, _, after = forward(noisy[0], noisy[1], A, noisy[2], noisy[3], first, None, plan)
    return torch.cat((fold(own, plan.chunk * every), rest))[:, :size].contiguous(), before, after


def backward_blocks(
    dy: Tensor, inputs: tuple[Tensor, ...], before: Tensor, after: Tensor, count: int, chunk: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, A, B and C."""
    x, dt, A, B, C = inputs
    size = x.shape[1]
    if size <= SHORT or count == 1:
        dy, *values = _as_texts(count, dy, x, dt, A, B, C)
        dx, ddt, dA, dB, dC, _ = backward(dy, None, tuple(values), None, before, _beside(size, count, chunk), False)
        return fold(dx, size), fold(ddt, size), dA, fold(dB, size), fold(dC, size)
    plan, every, values = _divided(size, chunk, dy, x, dt, B, C)
    clean, noisy = zip(*(v.chunk(2) for v in values), strict=True)
    right = backward(noisy[0], None, (noisy[1], noisy[2], A, *noisy[3:]), None, after, plan)
    texts, dstarts = _as_texts(count, *clean), right[5].unflatten(0, (-1, count))
    left = backward(texts[0], None, (texts[1], texts[2], A, *texts[3:]), None, before, plan, False, dstarts)
    dx, ddt, dB, dC = (
        torch.cat((fold(left[k], plan.chunk * every), right[k]))[:, :size].contiguous() for k in (0, 1, 3, 4)
    )
    return dx, ddt, left[2] + right[2], dB, dC


def _as_texts(count: int, *values: Tensor) -> list[Tensor]:
    """Rows of blocks as whole texts; what has no rows stays."""
    return [v if v.dim() == 1 else unfold(v, count) for v in values]


def _beside(size: int, count: int, chunk: int) -> Plan:
    """Short blocks: several to a chunk; or a single block in a text, which has nothing before it."""
    if count == 1:
        return Plan(min(chunk, size))
    return Plan(size * min(count, max(1, min(BESIDE, chunk) // size)), block=size, beside=True)


def _divided(size: int, chunk: int, *values: Tensor) -> tuple[Plan, int, list[Tensor]]:
    """Chunks that divide a block, how many of them, and rows that are filled up for it with steps of 0."""
    every = -(-size // chunk)
    plan = Plan(-(-size // every))
    amount = plan.chunk * every - size
    return plan, every, [F.pad(v, (0, 0) * (v.dim() - 2) + (0, amount)) if amount else v for v in values]


class BlockScan(torch.autograd.Function):
    """(x, dt, A, B, C, count, chunk) -> y, for eager mode."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        *inputs, ctx.count, ctx.chunk = arguments
        y, *states = forward_blocks(*arguments)
        ctx.save_for_backward(*inputs, *states)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        *inputs, before, after = ctx.saved_tensors
        return *backward_blocks(dy, tuple(inputs), before, after, ctx.count, ctx.chunk), None, None


@torch.library.custom_op("diffusion_lm::block_scan", mutates_args=())
def opaque_block_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, count: int, chunk: int) -> Tensor:
    """The same for compiled graphs. No states are kept: the backward pass makes them again."""
    return forward_blocks(x, dt, A, B, C, count, chunk)[0]


@opaque_block_scan.register_fake
def _(x, dt, A, B, C, count, chunk):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("diffusion_lm::block_scan_backward", mutates_args=())
def opaque_block_backward(
    dy: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, count: int, chunk: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, A, B and C."""
    _, before, after = forward_blocks(x, dt, A, B, C, count, chunk)
    return backward_blocks(dy, (x, dt, A, B, C), before, after, count, chunk)


@opaque_block_backward.register_fake
def _(dy, x, dt, A, B, C, count, chunk):
    return tuple(torch.empty_like(v, memory_format=torch.contiguous_format) for v in (x, dt, A, B, C))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.count, ctx.chunk = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    return *opaque_block_backward(dy, *ctx.saved_tensors, ctx.count, ctx.chunk), None, None


opaque_block_scan.register_autograd(_differentiate, setup_context=_setup)


def scan_blocks(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, count: int, chunk: int) -> Tensor:
    """y of clean rows and of noisy rows [2 R, S, H, P]."""
    inputs = (x, wide(dt), wide(A), B, C)
    if torch.compiler.is_compiling():
        return opaque_block_scan(*inputs, count, chunk)
    with torch.autocast(x.device.type, enabled=False):
        return BlockScan.apply(*inputs, count, chunk)
