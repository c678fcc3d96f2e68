"""Sums that need it are made in float32 at least, and in float64 where a model is evaluated in float64."""

import torch

from diffusion_lm.shapes import Float, Tensor


def wide(x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """`x` in float32, or in its own precision where that is higher."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def narrow(x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """`x` in autocast's precision, in which the next product takes it: what is done before that moves less memory."""
    device = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return x
    return x.to(torch.get_autocast_dtype(device))
