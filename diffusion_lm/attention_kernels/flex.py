"""flex: PyTorch's flex_attention (arXiv 2412.05496), compiled, for CUDA: blocks that nobody sees are left out.

It serves every pattern. On CPU it has no backward pass, so it is not offered there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from diffusion_lm.attention_kernels.base import AttentionKernel, Pattern
from diffusion_lm.shapes import Float, Tensor


@dataclass(kw_only=True, slots=True)
class FlexConfig:
    """Nothing to set."""


@cache
def compiled() -> Callable[..., Tensor]:
    """flex_attention as it is meant to be used: uncompiled it holds all scores. Made when first needed."""
    return torch.compile(flex_attention)


class Flex(AttentionKernel):
    """flex_attention with a block mask."""

    devices = ("cuda",)

    def __init__(self, config: FlexConfig | None = None) -> None:
        self.config = config

    def prepare(self, pattern: Pattern, length: int, device: torch.device, dtype: torch.dtype) -> BlockMask | None:
        document = pattern.document
        if document is None and not pattern.causal:
            return None
        rank, size = pattern.rank(length, device), (None, length, length, device)
        if document is None:
            return create_block_mask(lambda b, h, i, j: rank[0, j] <= rank[0, i], None, *size)
        rank = rank.expand_as(document)
        return create_block_mask(
            lambda b, h, i, j: (document[b, i] == document[b, j]) & (rank[b, j] <= rank[b, i]), len(document), *size
        )

    def attend(
        self,
        q: Float[Tensor, "B L H P"],
        k: Float[Tensor, "B L K P"],
        v: Float[Tensor, "B L K P"],
        prepared: BlockMask | None,
    ) -> Float[Tensor, "B L H P"]:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        grouped = q.shape[1] != k.shape[1]
        attention = flex_attention if torch.compiler.is_compiling() else compiled()
        return attention(q, k, v, block_mask=prepared, enable_gqa=grouped).transpose(1, 2)
