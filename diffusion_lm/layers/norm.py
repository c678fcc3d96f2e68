"""Norms over the channels. The gated one is computed in float32 or better; the others in their input's precision, which
on the residual stream is that."""

from collections.abc import Callable

import torch
from torch import nn

from diffusion_lm.layers.slices import slices
from diffusion_lm.precision import wide
from diffusion_lm.shapes import Float, Tensor


class GatedRMSNorm(nn.Module):
    """norm(y * silu(z)) * weight, the norm over groups of channels (Mamba-2, arXiv 2405.21060, section 7.1); with
    `before_gate`, norm(y) * weight * silu(z)."""

    def __init__(self, channels: int, groups: int = 1, eps: float = 1e-5, before_gate: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.groups, self.eps, self.before_gate = groups, eps, before_gate

    def forward(self, y: Float[Tensor, "B L D"], z: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        places = slices(y)
        if len(places) == 1:
            return self._gated(y, z)
        out = torch.empty_like(y)
        for place in places:
            out[:, place] = self._gated(y[:, place], z[:, place])
        return out

    def _gated(self, y: Float[Tensor, "B L D"], z: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        gate = nn.functional.silu(wide(z))
        gated = (wide(y) if self.before_gate else wide(y) * gate).unflatten(-1, (self.groups, -1))
        scaled = gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + self.eps)
        scaled = scaled.flatten(-2) * self.weight
        return (scaled * gate if self.before_gate else scaled).to(y.dtype)


def rms_norm(channels: int, *, affine: bool = True) -> nn.RMSNorm:
    """RMSNorm with the project's epsilon (Zhang and Sennrich, arXiv 1910.07467)."""
    return nn.RMSNorm(channels, eps=1e-5, elementwise_affine=affine)


def layer_norm(channels: int) -> nn.LayerNorm:
    """LayerNorm with a scale and no shift, as MDLM's (Ba et al., arXiv 1607.06450, equation 4)."""
    return nn.LayerNorm(channels, eps=1e-5, bias=False)


NORMS: dict[str, Callable[[int], nn.Module]] = {"rms": rms_norm, "layer": layer_norm}
"""Norms of the residual stream; each has one weight per channel."""
