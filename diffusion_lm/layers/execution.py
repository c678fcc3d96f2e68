"""How the blocks of a trunk are run: as they are, compiled, or with activations computed again in the backward pass.

Blocks are compiled one by one (`Module.compile`, in place: no parameter changes its name). Blocks of one kind share
their code, so that the time to compile does not grow with depth. In training the shapes are fixed and the code is made
for them. Without gradients rows and lengths vary (validation's last batch, samples, rows that are shown an estimate of
the model's own): there both are declared dynamic before the first of them is seen, and one piece of code serves all.

Recomputation (Chen et al., arXiv 1604.06174) keeps a block's inputs alone. Nothing in a block is random, so no state of
a generator has to be kept with them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffusion_lm.shapes import Hidden


@dataclass(frozen=True)
class Execution:
    """Calls a block."""

    compiled: bool = False
    """The blocks are compiled."""
    recompute: bool = False
    """A block's activations are not kept for the backward pass."""

    def __call__(self, block: nn.Module, x: Hidden, *rest: Any) -> Hidden:
        if self.compiled and not all(getattr(value, "compiles", True) for value in rest):
            return block.forward(x, *rest)  # as written: what a call collects has no place in a graph
        if not torch.is_grad_enabled():
            if self.compiled:
                _declare_dynamic(x, *rest)
            return block(x, *rest)
        if self.recompute:
            return checkpoint(block, x, *rest, use_reentrant=False, preserve_rng_state=False)
        return block(x, *rest)


def _declare_dynamic(x: Hidden, *rest: Any) -> None:
    """Tell the compiler that the rows and lengths of x, and whatever else has them, are not always these."""
    rows, length = x.shape[:2]
    for tensor in _tensors(x, *rest):
        for dim, size in enumerate(tensor.shape):
            if size == length or (size == rows and dim == 0):
                torch._dynamo.maybe_mark_dynamic(tensor, dim)


def _tensors(*values: Any) -> Iterator[Tensor]:
    """The tensors among the values and inside them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif is_dataclass(value):
            yield from _tensors(*(getattr(value, f.name) for f in fields(value)))
        elif isinstance(value, Mapping):
            yield from _tensors(*value.values())
        elif isinstance(value, tuple | list):
            yield from _tensors(*value)
