"""The state of a scan at the start of every block of clean texts: what each block adds, carried over the blocks.

With a = exp(sum of dt A) over a block and b = sum_i exp(sum of dt A after i) dt_i x_i B_i^T, the states before the
blocks are s_{k+1} = a_k s_k + b_k with s_0 = 0 (Dao and Gu, arXiv 2405.21060, section 6, steps 2 and 3). A scan of any
kernel can start there, for the clean block and for the noisy one in its place.
"""

from typing import Any

import torch

from diffusion_lm.layers.carry import carry
from diffusion_lm.precision import wide
from diffusion_lm.shapes import Float, Tensor


class Carried(torch.autograd.Function):
    """(b, a) -> the states before every block, float32 at least."""

    @staticmethod
    def forward(ctx: Any, added: Tensor, across: Tensor) -> Tensor:
        before = torch.empty_like(added, dtype=across.dtype)
        carry(added, across, None, False, before)
        ctx.save_for_backward(across, before)
        return before

    @staticmethod
    def backward(ctx: Any, dbefore: Tensor) -> tuple[Tensor, Tensor]:
        across, before = ctx.saved_tensors
        dadded = torch.empty_like(dbefore)
        carry(dbefore, across, None, True, dadded)
        split = (across.shape[2] // before.shape[2], -1)
        return dadded, (dadded * before).unflatten(-1, split).sum((3, 5)).flatten(2)


def states_at_starts(
    x: Float[Tensor, "R S H P"],
    dt: Float[Tensor, "R S H"],
    A: Float[Tensor, "H"],
    B: Float[Tensor, "R S G N"],
    count: int,
) -> Float[Tensor, "R H P N"]:
    """For clean blocks as rows, `count` to a text."""
    groups, log = B.shape[2], (wide(dt) * wide(A)).cumsum(1)
    share = wide(dt) * torch.exp(log[:, -1:] - log)
    source = (x * share.to(x.dtype).unsqueeze(-1)).unflatten(2, (groups, -1)).flatten(3)  # [R, S, G, RP]
    added = B.permute(0, 2, 3, 1) @ source.transpose(1, 2)  # [R, G, N, RP]
    texts = (added.unflatten(0, (-1, count)), torch.exp(log[:, -1]).unflatten(0, (-1, count)))
    before = Carried.apply(*texts).flatten(0, 1)
    return before.transpose(2, 3).reshape(*x.shape[:1], *x.shape[2:], -1)
