"""flex: PyTorch's flex_attention (arXiv 2412.05496), compiled, for CUDA: blocks that nobody sees are left out.

It serves every pattern. On CPU it has no backward pass, so it is not offered there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from diffusion_lm.attention_kernels.base import AttentionKernel, BlockPattern, Pattern
from diffusion_lm.shapes import Float, Tensor


@dataclass(kw_only=True, slots=True)
class FlexConfig:
    """Nothing to set."""


@cache
def compiled() -> Callable[..., Tensor]:
    """flex_attention as it is meant to be used: uncompiled it holds all scores. Made when first needed."""
    return torch.compile(flex_attention)


@lru_cache(maxsize=8)
def three_parts(pattern: BlockPattern, device: torch.device) -> BlockMask:
    """The block pattern over rows of 2 L positions, clean text and noisy. There are few of them, so they are kept."""
    size, length = pattern.size, pattern.length
    reach = 1 if pattern.causal else size  # inside a block every position is of one reach, or each of its own
    with torch.inference_mode(False):  # the first to ask may be validation, and training is to use it too
        return create_block_mask(
            lambda b, h, i, j: (
                ((j < length) & (j // size < i % length // size))
                | (
                    ((i < length) == (j < length))
                    & (j % length // size == i % length // size)
                    & (j % length // reach <= i % length // reach)
                )
            ),
            *(None, None, 2 * length, 2 * length, device),
        )


class Flex(AttentionKernel):
    """flex_attention with a block mask."""

    devices = ("cuda",)

    def __init__(self, config: FlexConfig | None = None) -> None:
        self.config = config

    @classmethod
    def block_refusal(cls) -> str | None:
        return None

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

    def prepare_blocks(self, pattern: BlockPattern, device: torch.device, dtype: torch.dtype) -> BlockMask:
        return three_parts(pattern, device)

    def attend_blocks(
        self,
        q: Float[Tensor, "B2 L H P"],
        k: Float[Tensor, "B2 L K P"],
        v: Float[Tensor, "B2 L K P"],
        prepared: BlockMask,
    ) -> Float[Tensor, "B2 L H P"]:
        y = self.attend(*(torch.cat(x.chunk(2), 1) for x in (q, k, v)), prepared)
        return torch.cat(y.chunk(2, 1))
