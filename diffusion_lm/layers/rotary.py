"""Rotary position embedding, rotate-half form (Su et al., arXiv 2104.09864, equation 34).

Channels (i, i + P/2) of a query or key at position p are turned by the angle p * base^(-2i/P), so that their products
depend on distances alone. The table of angles is made once per call of the network; the turn is one pass forward and
one, by the opposite angle, backward. Rows that are not at the same position have a table each.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from diffusion_lm.shapes import Float, Int, Tensor

Table = tuple[Float[Tensor, "*rows L p"], Float[Tensor, "*rows L p"]]
"""Cosines and sines of the angles, p = P / 2."""


def check_head_dim(head_dim: int) -> None:
    """Refuse a number of channels that does not pair."""
    if head_dim % 2:
        raise ValueError(f"head_dim: got {head_dim}, expected an even number for the rotary embedding")


def rotary_table(length: int, head_dim: int, base: float, device: torch.device, dtype: torch.dtype) -> Table:
    """The table for positions 0 .. length - 1, in a precision of float32 at least."""
    return rotary_at(torch.arange(length, device=device), head_dim, base, dtype)


def rotary_at(position: Int[Tensor, "*rows L"], head_dim: int, base: float, dtype: torch.dtype) -> Table:
    """The table for those positions."""
    half = head_dim // 2
    frequency = base ** (-torch.arange(half, device=position.device, dtype=dtype) / half)
    angle = position.to(dtype).unsqueeze(-1) * frequency
    return angle.cos(), angle.sin()


def rotate(x: Float[Tensor, "B L H P"], table: Table) -> Float[Tensor, "B L H P"]:
    """x turned, in its own precision."""
    cos, sin = (value.to(x.dtype).unsqueeze(-2) for value in table)  # [L, 1, P/2] or [B, L, 1, P/2]
    if torch.compiler.is_compiling():  # which makes one pass of this, and cannot write to a part of a tensor
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
    return Rotate.apply(x, cos, sin)


class Rotate(torch.autograd.Function):
    """The turn. Written out, because the products and the join of the halves would be seven passes over memory."""

    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "B L H P"], cos: Float[Tensor, "*rows L 1 p"], sin: Float[Tensor, "*rows L 1 p"]
    ) -> Float[Tensor, "B L H P"]:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Float[Tensor, "B L H P"]) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(upstream, cos, -sin), None, None


def _turned(
    x: Float[Tensor, "B L H P"], cos: Float[Tensor, "*rows L 1 p"], sin: Float[Tensor, "*rows L 1 p"]
) -> Float[Tensor, "B L H P"]:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    (a, b), (first, second) = x.chunk(2, -1), y.chunk(2, -1)
    torch.mul(a, cos, out=first).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=second).addcmul_(a, sin)
    return y
