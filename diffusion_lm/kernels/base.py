"""Kernels: the state-space scan of Mamba-2.

Per head, with state h of shape [P, N]:   h_i = exp(dt_i A) h_{i-1} + dt_i x_i B_i^T,    y_i = h_i C_i
(Dao and Gu, "Transformers are SSMs", arXiv 2405.21060, section 2). B and C are shared by the heads of a group. A kernel
names the packages and devices that it needs; asking for one that is missing is an error, never a substitution.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from diffusion_lm.backends import Backend, backend_choice, backend_class, choose_backend
from diffusion_lm.layers.block_scan import SHORT, scan_blocks
from diffusion_lm.layers.block_states import states_at_starts
from diffusion_lm.layers.single_step import lone_position, single_step
from diffusion_lm.shapes import Float, Segment, Tensor


@dataclass(frozen=True, kw_only=True)
class InnerLayer:
    """Weights and options of what a Mamba-2 layer does between its input projection and its output: a kernel that
    serves all of it at once takes them from here."""

    conv_weight: Float[Tensor, "K W"]
    conv_bias: Float[Tensor, "K"] | None
    dt_bias: Float[Tensor, "H"]
    dt_limit: tuple[float, float]
    A: Float[Tensor, "H"]
    D: Float[Tensor, "H"] | Float[Tensor, "H P"]
    norm_weight: Float[Tensor, "I"] | None
    norm_eps: float
    norm_before_gate: bool
    n_groups: int
    head_dim: int
    chunk_size: int


class ScanKernel(Backend, ABC):
    """One implementation of the scan."""

    reverses: ClassVar[bool] = False
    """Whether a scan backwards costs no flipped copies of its inputs."""

    @abstractmethod
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
        """y + D x for every position, in the dtype of x, and the state after the last one (None unless wanted).

        `dt` is already positive, `A` negative. The state starts afresh where `segment` changes; an initial state
        belongs to the segment of the first position. `reverse` runs from the last position to the first, and first
        and last change places.
        """

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
        """y + D x of clean blocks and, behind them, of noisy ones, `count` to a text: each block starts from the state
        that the clean blocks before it leave.

        Where blocks are short the states at their starts would be many times the text, and the scan is
        `layers/block_scan.py`'s.
        """
        if x.shape[1] <= SHORT:
            return with_skip(scan_blocks(x, dt, A, B, C, count, chunk_size), x, D)
        first = states_at_starts(*(v.chunk(2)[0] for v in (x, dt)), A, B.chunk(2)[0], count)
        initial = torch.cat((first, first))
        return self.scan(x, dt, A, B, C, chunk_size=chunk_size, D=D, initial_state=initial)[0]

    def fused(
        self,
        projected: Float[Tensor, "B L E"],
        layer: InnerLayer,
        out_proj: nn.Linear | None,
        segment: Segment | None,
    ) -> Float[Tensor, "B L D"] | None:
        """Convolution, scan, gated norm and, if given, output projection of z, x, B, C, dt side by side; None where
        the kernel has no such path for these sizes."""
        return None


def kernel_choice() -> Any:
    """A dataclass field that names a kernel; ``auto``, the default, is replaced when a run starts."""
    return backend_choice("kernels")


def kernel_class(name: str) -> type[ScanKernel]:
    """The kernel class of file kernels/`name`.py."""
    return backend_class("kernels", name)


def choose_kernel(name: str, device: str) -> str:
    """`name` if it can run on `device`; for ``auto`` the best that can. Raises `UserError` naming what is missing."""
    return choose_backend("kernels", name, device)


def with_skip(
    y: Float[Tensor, "B L H P"], x: Float[Tensor, "B L H P"], D: Float[Tensor, "H"] | Float[Tensor, "H P"] | None
) -> Float[Tensor, "B L H P"]:
    """y + D x"""
    if D is None:
        return y
    return torch.addcmul(y, x, D.to(x.dtype) if D.dim() == 2 else D.to(x.dtype).unsqueeze(-1))


def of_one_position(
    x: Float[Tensor, "B 1 H P"] | Float[Tensor, "B L H P"],
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    initial_state: Tensor | None,
    want_state: bool,
) -> tuple[Float[Tensor, "B 1 H P"], Float[Tensor, "B H P N"] | None] | None:
    """What `scan` gives for rows of one position, by no kernel at all; None for longer rows, and where gradients go
    through a state."""
    if x.shape[1] != 1:
        return None
    if initial_state is None and not want_state:
        return with_skip(lone_position(x, dt, A, B, C), x, D), None
    if torch.is_grad_enabled():
        return None
    y, state = single_step(x, dt, A, B, C, initial_state)
    return with_skip(y, x, D), state if want_state else None


def runs_of(segment: Segment) -> Segment:
    """Documents numbered 0, 1, ... along the row, so that the id of an earlier one never comes back."""
    changes = segment[:, 1:] != segment[:, :-1]
    return F.pad(changes.cumsum(1), (1, 0)).to(torch.int32)


def check_groups(x: torch.Tensor, B: torch.Tensor) -> int:
    """Heads per group."""
    heads, groups = x.shape[2], B.shape[2]
    assert heads % groups == 0, f"{heads} heads do not split into {groups} groups"
    return heads // groups
