"""sdpa: PyTorch's scaled_dot_product_attention, which takes the fastest kernel of the device that serves the call.

Without documents and blocks that is a flash kernel (on CPU too; on Hopper cuDNN's or flash), and no mask exists. Other
patterns need a mask of L x L, made once per call of the network in the form that the kernels add to the scores. Blocks
beside their clean text go chunk by chunk (layers/block_attention.py).
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from diffusion_lm.attention_kernels.base import AttentionKernel, BlockPattern, Pattern
from diffusion_lm.layers.block_attention import Chunks, over_both
from diffusion_lm.shapes import Float, Tensor


@dataclass(kw_only=True, slots=True)
class SdpaConfig:
    """Nothing to set."""


@dataclass(frozen=True)
class Mask:
    """causal: the kernel's own causal pattern. added: 0 where a position is seen, else -inf; None without a mask."""

    causal: bool
    added: Float[Tensor, "b 1 L L"] | None = None


class Sdpa(AttentionKernel):
    """scaled_dot_product_attention."""

    priority = 1

    def __init__(self, config: SdpaConfig | None = None) -> None:
        self.config = config

    @classmethod
    def block_refusal(cls) -> str | None:
        return None

    def prepare(self, pattern: Pattern, length: int, device: torch.device, dtype: torch.dtype) -> Mask:
        if pattern.document is None and not pattern.block_size:
            return Mask(pattern.causal)
        seen = pattern.mask(length, device)
        return Mask(False, torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, -torch.inf))

    def attend(
        self, q: Float[Tensor, "B L H P"], k: Float[Tensor, "B L K P"], v: Float[Tensor, "B L K P"], prepared: Mask
    ) -> Float[Tensor, "B L H P"]:
        added = None if prepared.added is None else prepared.added.to(q.dtype)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        grouped = q.shape[1] != k.shape[1]
        y = F.scaled_dot_product_attention(q, k, v, added, is_causal=prepared.causal, enable_gqa=grouped)
        return y.transpose(1, 2)

    def prepare_blocks(self, pattern: BlockPattern, device: torch.device, dtype: torch.dtype) -> Chunks:
        return Chunks.of(pattern, device, dtype)

    def attend_blocks(
        self, q: Float[Tensor, "B2 L H P"], k: Float[Tensor, "B2 L K P"], v: Float[Tensor, "B2 L K P"], prepared: Chunks
    ) -> Float[Tensor, "B2 L H P"]:
        return over_both(q, k, v, prepared)
