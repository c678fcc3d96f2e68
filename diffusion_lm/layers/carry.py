"""The recurrence over the states of chunks, s_{k+1} = a_k s_k + b_k. Its gradient is the same one backwards."""

import torch

from diffusion_lm.shapes import Float, Tensor


def carry(
    added: Float[Tensor, "B c G N RP"],
    across: Float[Tensor, "B c H"],
    initial: Float[Tensor, "B G N RP"] | None,
    reverse: bool,
    before: Float[Tensor, "B c G N RP"],
) -> Float[Tensor, "B G N RP"]:
    """The state after the last chunk, wide; `before` takes the one before each chunk."""
    groups, heads = added.shape[2], across.shape[2]
    split = (heads // groups, -1)
    across = across.unflatten(2, (groups, 1, -1)).unsqueeze(-1)  # [B, c, G, 1, R, 1]
    state = (
        torch.zeros_like(added[:, 0], dtype=across.dtype) if initial is None else initial.to(across.dtype, copy=True)
    )
    state = state.unflatten(-1, split)
    for k in range(added.shape[1] - 1, -1, -1) if reverse else range(added.shape[1]):
        before[:, k].unflatten(-1, split).copy_(state)
        state.mul_(across[:, k]).add_(added[:, k].unflatten(-1, split))
    return state.flatten(-2)
