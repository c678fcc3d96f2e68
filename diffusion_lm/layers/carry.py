"""The recurrence over the states of chunks, s_{k+1} = a_k s_k + b_k. Its gradient is the same in the other direction.

A loop in eager mode: it adds no products and touches every state once. A compiled graph must serve every number of
chunks, so that there the recurrence is a product with the matrix of decays, within blocks of chunks and over them.
"""

import torch
from torch.nn import functional as F

from diffusion_lm.shapes import Float, Tensor

BLOCK = 16
"""Chunks per product."""


def carry(
    added: Float[Tensor, "c B G N RP"],
    across: Float[Tensor, "B c H"],
    initial: Float[Tensor, "B G N RP"] | None,
    reverse: bool,
) -> tuple[Float[Tensor, "c B G N RP"], Float[Tensor, "B G N RP"]]:
    """The state before every chunk, in the dtype of `added`, and the one after the last, wide."""
    state = torch.zeros_like(added[0], dtype=across.dtype) if initial is None else initial.to(across.dtype)
    if torch.compiler.is_compiling():
        return as_products(added, across, state, reverse)
    return as_loop(added, across, state, reverse)


def as_loop(added: Tensor, across: Tensor, state: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """One chunk after the other."""
    groups, heads = added.shape[2], across.shape[2]
    split = (heads // groups, -1)
    across = across.unflatten(2, (groups, 1, -1)).unsqueeze(-1)  # [B, c, G, 1, R, 1]
    before, state = torch.empty_like(added), state.clone().unflatten(-1, split)
    for k in range(len(added) - 1, -1, -1) if reverse else range(len(added)):
        before[k].unflatten(-1, split).copy_(state)
        state.mul_(across[:, k]).add_(added[k].unflatten(-1, split))
    return before, state.flatten(-2)


def as_products(added: Tensor, across: Tensor, state: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """All chunks of a block at once, then all blocks."""
    dtype, groups, chunks = added.dtype, added.shape[2], len(added)
    added = added.transpose(0, 1)
    added, across = (v.flip(1) if reverse else v for v in (added.to(across.dtype), across))
    rest = -chunks % BLOCK
    added = F.pad(added, (0, 0, 0, 0, 0, 0, 0, rest)).unflatten(-1, (across.shape[2] // groups, -1))
    log2 = F.pad(across.log2(), (0, 0, 0, rest)).unflatten(2, (groups, -1))
    added, log2 = (v.unflatten(1, (-1, BLOCK)) for v in (added, log2))  # [B, blocks, BLOCK, G, ...]
    within = _decay_products(log2.permute(0, 1, 3, 4, 2))  # [B, blocks, G, R, BLOCK + 1, BLOCK + 1]
    over = _decay_products(log2.sum(2).permute(0, 2, 3, 1))
    local = torch.einsum("bxgrkj,bxjgnrp->bxkgnrp", within[..., 1:], added)
    ends = torch.cat((state.unflatten(-1, (added.shape[-2], -1)).unsqueeze(1), local[:, :, -1]), 1)
    ends = torch.einsum("bgrkj,bjgnrp->bkgnrp", over, ends)
    since = within[..., :-1, 0].permute(0, 1, 4, 2, 3)[:, :, :, :, None, :, None]  # from the block's start
    before = (local[:, :, :-1] + since * ends[:, :-1].unsqueeze(2)).flatten(1, 2)[:, :chunks].flatten(-2)
    return (before.flip(1) if reverse else before).transpose(0, 1).to(dtype), ends[:, -1].flatten(-2)


def _decay_products(log2: Float[Tensor, "*batch c"]) -> Float[Tensor, "*batch c+1 c+1"]:
    """a_j ... a_{k-1} in row k and column j, 0 above the diagonal. Sums are of non-positive numbers: -inf is fine."""
    steps = F.pad(log2, (1, 0)).unsqueeze(-1)
    order = torch.ones(steps.shape[-2], steps.shape[-2], dtype=torch.bool, device=log2.device)
    sums = torch.where(order.tril(-1), steps, 0.0).cumsum(-2)
    return torch.where(order.tril(), sums.exp2(), 0.0)
