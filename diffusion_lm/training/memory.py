"""The most memory that a training process held, in bytes."""

import resource
import sys
from pathlib import Path

import torch


def peak_memory() -> int:
    """On a GPU what PyTorch's allocator held there at most, on the first device; without one the process's largest
    resident size."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_reserved()
    return _largest_resident()


def _largest_resident() -> int:
    """The kernel's high-water mark of this program: `getrusage` may tell that of the process that started it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
