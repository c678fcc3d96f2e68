"""Kernels: the state-space scan of Mamba-2.

Per head, with state h of shape [P, N]:   h_i = exp(dt_i A) h_{i-1} + dt_i x_i B_i^T,    y_i = h_i C_i
(Dao and Gu, "Transformers are SSMs", arXiv 2405.21060, section 2). B and C are shared by the heads of a group. A kernel
names the packages and devices that it needs; asking for one that is missing is an error, never a substitution.
"""

from abc import ABC, abstractmethod
from dataclasses import Field, field
from importlib.util import find_spec
from typing import Any, ClassVar

import torch

from diffusion_lm.config import config_class, part_class, variants
from diffusion_lm.errors import UserError
from diffusion_lm.shapes import Float, Tensor


class ScanKernel(ABC):
    """One implementation of the scan."""

    packages: ClassVar[tuple[str, ...]] = ()
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    priority: ClassVar[int] = 0
    """`auto` takes the usable kernel of the highest priority."""

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

    @classmethod
    def missing(cls, device: str) -> str | None:
        """Why the kernel cannot run on `device` ('cpu' or 'cuda'), or None."""
        absent = [package for package in cls.packages if find_spec(package) is None]
        if absent:
            return f"package '{absent[0]}' is not installed"
        return None if device in cls.devices else f"it needs a {' or '.join(cls.devices)} device, got {device}"


def kernel_choice() -> Any:
    """A dataclass field that names a kernel; ``auto``, the default, is replaced when a run starts."""
    return field(default="auto", metadata={"kernel": True})


def is_kernel_choice(f: Field) -> bool:
    """Whether a dataclass field names a kernel."""
    return f.metadata.get("kernel", False)


def kernel_class(name: str) -> type[ScanKernel]:
    """The kernel class of file kernels/`name`.py."""
    return part_class(config_class("kernels", name)())


def choose_kernel(name: str, device: str) -> str:
    """`name` if it can run on `device`; for ``auto`` the best that can. Raises `UserError` naming what is missing."""
    if name != "auto":
        reason = kernel_class(name).missing(device)
        if reason:
            raise UserError(f"kernel '{name}': {reason}; install it, or set kernel=auto")
        return name
    usable = [k for k in variants("kernels") if kernel_class(k).missing(device) is None]
    return max(usable, key=lambda k: kernel_class(k).priority)


def check_groups(x: torch.Tensor, B: torch.Tensor) -> int:
    """Heads per group."""
    heads, groups = x.shape[2], B.shape[2]
    assert heads % groups == 0, f"{heads} heads do not split into {groups} groups"
    return heads // groups
