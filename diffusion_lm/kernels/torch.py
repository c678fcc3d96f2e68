"""torch: the chunked scan in plain PyTorch, for any device.

Backwards, the same code runs on mirrored masks: nothing is flipped. Under torch.compile the scan is one operator, so
that one graph serves every length and nothing of it is traced.
"""

from dataclasses import dataclass

import torch

from diffusion_lm.kernels.base import ScanKernel, check_groups, of_one_position, runs_of, with_skip
from diffusion_lm.layers.block_scan import scan_blocks
from diffusion_lm.layers.chunked_scan import ChunkedScan, opaque_scan
from diffusion_lm.layers.scan_layout import Plan
from diffusion_lm.precision import wide
from diffusion_lm.shapes import Float, Segment, Tensor


@dataclass(kw_only=True, slots=True)
class TorchConfig:
    """Nothing to set."""


class Torch(ScanKernel):
    """Matrix products per chunk, a recurrence over chunks."""

    reverses = True

    def __init__(self, config: TorchConfig | None = None) -> None:
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
        if (found := of_one_position(x, dt, A, B, C, D, initial_state, want_state)) is not None:
            return found
        runs, inputs = None if segment is None else runs_of(segment), (x, wide(dt), wide(A), B, C)
        if torch.compiler.is_compiling():
            if initial_state is None:
                initial_state = inputs[1].new_zeros(x.shape[0], x.shape[2], x.shape[3], B.shape[3])
            y, state, _ = opaque_scan(*inputs, wide(initial_state), runs, chunk_size, reverse)
        else:
            plan = Plan(min(chunk_size, x.shape[1]), reverse, want_state)
            with torch.autocast(x.device.type, enabled=False):
                y, state = ChunkedScan.apply(*inputs, initial_state, runs, plan)
        return with_skip(y, x, D), state if want_state else None

    def over_blocks(
        self,
        x: Float[Tensor, "T S H P"],
        dt: Float[Tensor, "T S H"],
        A: Float[Tensor, "H"],
        B: Float[Tensor, "T S G N"],
        C: Float[Tensor, "T S G N"],
        *,
        count: int,
        chunk_size: int,
        D: Float[Tensor, "H"] | Float[Tensor, "H P"] | None = None,
    ) -> Float[Tensor, "T S H P"]:
        check_groups(x, B)
        return with_skip(scan_blocks(x, dt, A, B, C, count, chunk_size), x, D)
