"""One position of the scan: h = exp(dt A) h + dt x B^T, y = h C (arXiv 2405.21060, section 2)."""

import torch

from diffusion_lm.precision import wide
from diffusion_lm.shapes import Float, Tensor


def single_step(
    x: Float[Tensor, "B 1 H P"],
    dt: Float[Tensor, "B 1 H"],
    A: Float[Tensor, "H"],
    B: Float[Tensor, "B 1 G N"],
    C: Float[Tensor, "B 1 G N"],
    state: Float[Tensor, "B H P N"] | None = None,
) -> tuple[Float[Tensor, "B 1 H P"], Float[Tensor, "B H P N"]]:
    """The output in the dtype of x, and the state after it, in float32 at least. For generation."""
    shape, dtype, (rows, _, groups, size) = x.shape, x.dtype, B.shape
    dt, B, C = wide(dt).squeeze(1), wide(B).view(rows, groups, 1, size), wide(C).view(rows, groups, size, 1)
    added = (wide(x).squeeze(1) * dt.unsqueeze(-1)).reshape(rows, groups, -1, 1) * B  # [B, G, RP, N]
    if state is not None:
        decay = torch.exp(dt * wide(A)).unsqueeze(-1).unsqueeze(-1)
        added = torch.addcmul(added.view(state.shape), wide(state), decay).view(added.shape)
    y = (added @ C).view(shape).to(dtype)
    return y, added.view(rows, *shape[2:], size)


def lone_position(
    x: Float[Tensor, "B 1 H P"],
    dt: Float[Tensor, "B 1 H"],
    A: Float[Tensor, "H"],
    B: Float[Tensor, "B 1 G N"],
    C: Float[Tensor, "B 1 G N"],
) -> Float[Tensor, "B 1 H P"]:
    """The output where no state comes before: dt (C . B) x. Nothing depends on A; its gradient is 0, not missing, for
    strategies that wait for that of every parameter."""
    scores = (wide(C) * wide(B)).sum(-1).repeat_interleave(x.shape[2] // B.shape[2], -1)
    weights = (wide(dt) + 0 * wide(A)) * scores
    return x * weights.to(x.dtype).unsqueeze(-1)
