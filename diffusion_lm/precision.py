"""Sums that need it are made in float32 at least, and in float64 where a model is evaluated in float64."""

import torch

from diffusion_lm.shapes import Float, Tensor


def wide(x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """`x` in float32, or in its own precision where that is higher."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
