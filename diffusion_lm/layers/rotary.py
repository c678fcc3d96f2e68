"""Rotary position embedding, rotate-half form (Su et al., arXiv 2104.09864)."""

import torch
from torch import nn

from diffusion_lm.shapes import Float, Tensor


class Rotary(nn.Module):
    """Rotates pairs of channels (i, i + P/2) of queries and keys by position * base^(-2i/P)."""

    def __init__(self, head_dim: int, base: float = 10_000.0) -> None:
        super().__init__()
        if head_dim % 2:
            raise ValueError(f"head_dim: got {head_dim}, expected an even number for the rotary embedding")
        self.half, self.base = head_dim // 2, base

    def forward(self, x: Float[Tensor, "B H L P"]) -> Float[Tensor, "B H L P"]:
        precision = torch.promote_types(x.dtype, torch.float32)
        frequency = self.base ** (-torch.arange(self.half, device=x.device, dtype=precision) / self.half)
        angle = torch.arange(x.shape[2], device=x.device, dtype=precision)[:, None] * frequency  # [L, P/2]
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
