"""flash_attn: the flash-attn package (Dao, arXiv 2307.08691), for CUDA, in bfloat16 or float16.

Packed documents are sequences of their own length to it (``flash_attn_varlen_func``): nothing is computed between two
documents. Counting them waits for the device once per call of the network.
"""

from dataclasses import dataclass

import torch

from diffusion_lm.attention_kernels.base import AttentionKernel, Pattern
from diffusion_lm.errors import UserError
from diffusion_lm.layers.documents import begins
from diffusion_lm.shapes import Float, Int, Tensor


@dataclass(kw_only=True, slots=True)
class FlashAttnConfig:
    """Nothing to set."""


@dataclass(frozen=True)
class Documents:
    """boundaries: where the documents of all rows, one after the other, begin, and the end; None: rows are whole.

    longest: a length that no document exceeds.
    """

    causal: bool
    boundaries: Int[Tensor, "n"] | None = None
    longest: int = 0


class FlashAttn(AttentionKernel):
    """``flash_attn_func``, and ``flash_attn_varlen_func`` for documents."""

    packages = ("flash_attn",)
    devices = ("cuda",)

    def __init__(self, config: FlashAttnConfig | None = None) -> None:
        self.config = config

    @classmethod
    def refusal(cls, causal: bool, block_size: int) -> str | None:
        return "it has no block-causal pattern; set kernel=sdpa or flex" if block_size else None

    def prepare(self, pattern: Pattern, length: int, device: torch.device, dtype: torch.dtype) -> Documents:
        if dtype not in (torch.bfloat16, torch.float16):
            raise UserError(
                f"kernel 'flash_attn': got {str(dtype).removeprefix('torch.')}, it computes in bfloat16 and float16; "
                "set training.precision=bfloat16, or kernel=sdpa"
            )
        if pattern.document is None:
            return Documents(pattern.causal)
        first = begins(pattern.document).flatten().nonzero().squeeze(1)
        boundaries = torch.nn.functional.pad(first, (0, 1), value=pattern.document.numel()).int()
        return Documents(pattern.causal, boundaries, length)

    def attend(
        self, q: Float[Tensor, "B L H P"], k: Float[Tensor, "B L K P"], v: Float[Tensor, "B L K P"], prepared: Documents
    ) -> Float[Tensor, "B L H P"]:
        from flash_attn import flash_attn_func, flash_attn_varlen_func

        if prepared.boundaries is None:
            return flash_attn_func(q, k, v, causal=prepared.causal)
        places = (prepared.boundaries, prepared.boundaries, prepared.longest, prepared.longest)
        y = flash_attn_varlen_func(*(x.flatten(0, 1) for x in (q, k, v)), *places, causal=prepared.causal)
        return y.unflatten(0, q.shape[:2])
