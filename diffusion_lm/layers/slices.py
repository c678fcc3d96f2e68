"""Work on positions in slices that stay in a CPU's cache, where no gradient is asked for.

A chain of element-wise operations over a long text goes through memory once per operation; over a few hundred positions
it goes through memory once. With gradients every operation keeps its own result, and compiled code fuses them: there
all positions are worked on together.
"""

import torch

from diffusion_lm.shapes import Float, Tensor

AT_ONCE = 256
"""Positions of all rows together in a slice."""


def slices(x: Float[Tensor, "B L D"]) -> list[slice]:
    """Places along the length to work on one after the other."""
    length = x.shape[1]
    if x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return [slice(0, length)]
    step = max(1, AT_ONCE // max(1, len(x)))
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]
