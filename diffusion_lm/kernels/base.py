"""Kernels: the state-space scan of Mamba-2.

Per head, with state h of shape [P, N]:   h_i = exp(dt_i A) h_{i-1} + dt_i x_i B_i^T,    y_i = h_i C_i
(Dao and Gu, "Transformers are SSMs", arXiv 2405.21060, section 2). B and C are shared by the heads of a group. A kernel
names the packages and devices that it needs; asking for one that is missing is an error, never a substitution.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch

from diffusion_lm.backends import Backend, backend_choice, backend_class, choose_backend
from diffusion_lm.shapes import Float, Tensor


class ScanKernel(Backend, ABC):
    """One implementation of the scan."""

    @abstractmethod
    def scan(
        self,
        x: Float[Tensor, "B L H P"],
        dt: Float[Tensor, "B L H"],
        A: Float[Tensor, "H"],
        B: Float[Tensor, "B L G N"],
        C: Float[Tensor, "B L G N"],
        chunk_size: int,
    ) -> Float[Tensor, "B L H P"]:
        """y for every position, in the dtype of x. `dt` is already positive, `A` negative."""


def kernel_choice() -> Any:
    """A dataclass field that names a kernel; ``auto``, the default, is replaced when a run starts."""
    return backend_choice("kernels")


def kernel_class(name: str) -> type[ScanKernel]:
    """The kernel class of file kernels/`name`.py."""
    return backend_class("kernels", name)


def choose_kernel(name: str, device: str) -> str:
    """`name` if it can run on `device`; for ``auto`` the best that can. Raises `UserError` naming what is missing."""
    return choose_backend("kernels", name, device)


def check_groups(x: torch.Tensor, B: torch.Tensor) -> int:
    """Heads per group."""
    heads, groups = x.shape[2], B.shape[2]
    assert heads % groups == 0, f"{heads} heads do not split into {groups} groups"
    return heads // groups
