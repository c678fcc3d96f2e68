"""Backends: implementations of one operation side by side, a file each, chosen by a config field or by the device.

A backend names the packages and devices that it needs; asking for one that is missing is an error, never a
substitution. `kernels/` (the scan) and `attention_kernels/` are the folders of backends.
"""

from dataclasses import Field, field
from importlib.util import find_spec
from typing import Any, ClassVar

from diffusion_lm.config import config_class, part_class, variants
from diffusion_lm.errors import UserError


class Backend:
    """One implementation of a folder's operation, which an abstract class in its base.py says."""

    packages: ClassVar[tuple[str, ...]] = ()
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    priority: ClassVar[int] = 0
    """`auto` takes the usable backend of the highest priority."""

    @classmethod
    def missing(cls, device: str) -> str | None:
        """Why it cannot run on `device` ('cpu' or 'cuda'), or None."""
        absent = [package for package in cls.packages if find_spec(package) is None]
        if absent:
            return f"package '{absent[0]}' is not installed"
        return None if device in cls.devices else f"it needs a {' or '.join(cls.devices)} device, got {device}"


def backend_choice(folder: str) -> Any:
    """A dataclass field that names a file of `folder`; ``auto``, the default, is replaced when a run starts."""
    return field(default="auto", metadata={"backends": folder})


def backend_folder(f: Field) -> str | None:
    """The folder that a dataclass field names a file of, None for other fields."""
    return f.metadata.get("backends")


def backend_class(folder: str, name: str) -> type[Any]:
    """The class of file `folder`/`name`.py."""
    return part_class(config_class(folder, name)())


def choose_backend(folder: str, name: str, device: str) -> str:
    """`name` if it can run on `device`; for ``auto`` the best that can. Raises `UserError` naming what is missing."""
    if name != "auto":
        reason = backend_class(folder, name).missing(device)
        if reason:
            raise UserError(f"kernel '{name}': {reason}; install it, or set kernel=auto")
        return name
    usable = [k for k in variants(folder) if backend_class(folder, k).missing(device) is None]
    return max(usable, key=lambda k: backend_class(folder, k).priority)
