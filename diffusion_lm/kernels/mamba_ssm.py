"""mamba_ssm: the Triton scan of the mamba-ssm package, for CUDA.

``mamba_split_conv1d_scan_combined`` serves everything between the projections (with the one at the end), and keeps
less for the backward pass than its parts would; ``mamba_chunk_scan_combined`` serves what it cannot: states in and out,
convolutions wider than causal_conv1d's. A single position is a step of the recurrence.
"""

from dataclasses import dataclass

import torch
from torch import nn

from diffusion_lm.errors import UserError
from diffusion_lm.kernels.base import InnerLayer, ScanKernel, check_groups, of_one_position, runs_of
from diffusion_lm.shapes import Float, Segment, Tensor

CONVOLUTIONS = (2, 3, 4)
"""Widths that causal_conv1d has; it takes channels and rows in multiples of 8."""


@dataclass(kw_only=True, slots=True)
class MambaSsmConfig:
    """Nothing to set."""


class MambaSsm(ScanKernel):
    """Forward and backward in Triton."""

    packages = ("mamba_ssm", "selective_scan_cuda", "triton", "causal_conv1d")
    devices = ("cuda",)
    priority = 1

    def __init__(self, config: MambaSsmConfig | None = None) -> None:
        self.config = config

    def scan(
        self,
        x: Float[Tensor, "B L H P"],
        dt: Float[Tensor, "B L H"],
        A: Float[Tensor, "H"],
        B: Float[Tensor, "B L G N"],
        C: Float[Tensor, "B L G N"],
        *,
        chunk_size: int,
        D: Float[Tensor, "H"] | Float[Tensor, "H P"] | None = None,
        segment: Segment | None = None,
        initial_state: Float[Tensor, "B H P N"] | None = None,
        want_state: bool = False,
        reverse: bool = False,
    ) -> tuple[Float[Tensor, "B L H P"], Float[Tensor, "B H P N"] | None]:
        check_groups(x, B)
        _refuse_float64(x)
        if (found := of_one_position(x, dt, A, B, C, D, initial_state, want_state)) is not None:
            return found
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

        if reverse:
            x, dt, B, C = (v.flip(1) for v in (x, dt, B, C))
            segment = None if segment is None else segment.flip(1)
        found = mamba_chunk_scan_combined(
            x,
            dt,
            A,
            B,
            C,
            chunk_size,
            D=D,
            initial_states=initial_state,
            # theirs compares ids at the ends of chunks, and takes an initial state for that of id 0
            seq_idx=None if segment is None else runs_of(segment),
            return_final_states=want_state,
        )
        y, state = found if want_state else (found, None)
        return (y.flip(1) if reverse else y), state

    def fused(
        self,
        projected: Float[Tensor, "B L E"],
        layer: InnerLayer,
        out_proj: nn.Linear | None,
        segment: Segment | None,
    ) -> Float[Tensor, "B L D"] | None:
        from mamba_ssm.ops.triton.ssd_combined import mamba_split_conv1d_scan_combined

        channels, width = layer.conv_weight.shape
        if width not in CONVOLUTIONS or channels % 8:
            return None
        _refuse_float64(projected)
        return mamba_split_conv1d_scan_combined(
            projected,
            layer.conv_weight,
            layer.conv_bias,
            layer.dt_bias,
            layer.A,
            layer.D,
            layer.chunk_size,
            seq_idx=None if segment is None else runs_of(segment),
            dt_limit=layer.dt_limit,
            rmsnorm_weight=layer.norm_weight,
            rmsnorm_eps=layer.norm_eps,
            outproj_weight=None if out_proj is None else out_proj.weight,
            outproj_bias=None if out_proj is None else out_proj.bias,
            headdim=layer.head_dim if layer.D.dim() == 1 else None,
            ngroups=layer.n_groups,
            norm_before_gate=layer.norm_before_gate,
        )


def _refuse_float64(value: torch.Tensor) -> None:
    if value.dtype == torch.float64:
        raise UserError("kernel 'mamba_ssm': got float64, expected float32 or less; set kernel=torch")
