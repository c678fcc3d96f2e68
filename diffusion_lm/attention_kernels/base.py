"""Attention kernels: softmax(q k^T / sqrt(P) + pattern) v, the pattern being which positions see which.

Position i sees j of its own document where, with i and j counted from the document's start,

    full: always      causal: j <= i      block-causal: floor(j / N) <= floor(i / N).

A kernel turns the pattern into what it works with (a mask, the documents' places) once per call of the network, before
the layers, and refuses patterns that it cannot do when the config is read.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch

from diffusion_lm.backends import Backend
from diffusion_lm.layers.documents import documents, starts
from diffusion_lm.shapes import Bool, Float, Int, Segment, Tensor


@dataclass(frozen=True)
class Pattern:
    """Which positions see which. causal: earlier ones alone; block_size: blocks of N see themselves whole (0: none).

    document: an id of its own per document of a row [B, L], padding being one too; None where rows are one document.
    """

    causal: bool
    block_size: int
    document: Int[Tensor, "B L"] | None = None

    @classmethod
    def of(cls, causal: bool, block_size: int, segment: Segment | None) -> "Pattern":
        """A pattern over the segments of a batch, of which only neighbouring ones need to differ."""
        return cls(causal, block_size, None if segment is None else documents(segment))

    def rank(self, length: int, device: torch.device) -> Int[Tensor, "b L"]:
        """A number per position: i sees j of its own document where rank_j <= rank_i. b is 1 where rows are alike."""
        place = torch.arange(length, device=device).unsqueeze(0)
        if not self.causal:
            return torch.zeros_like(place)
        if not self.block_size:
            return place
        return (place - (0 if self.document is None else starts(self.document))) // self.block_size

    def mask(self, length: int, device: torch.device) -> Bool[Tensor, "b 1 L L"]:
        """True where the row's position sees the column's."""
        rank = self.rank(length, device)
        seen = rank.unsqueeze(1) <= rank.unsqueeze(2)
        if self.document is not None:
            seen = seen & (self.document.unsqueeze(2) == self.document.unsqueeze(1))
        return seen.unsqueeze(1)


class AttentionKernel(Backend, ABC):
    """One implementation of attention. `pattern` is what the layers of a call share: `prepare`'s answer."""

    @classmethod
    def refusal(cls, causal: bool, block_size: int) -> str | None:
        """Why it cannot do that pattern, or None."""
        return None

    @abstractmethod
    def prepare(self, pattern: Pattern, length: int, device: torch.device, dtype: torch.dtype) -> Any:
        """What `attend` needs of the pattern. dtype: of the products."""

    @abstractmethod
    def attend(
        self, q: Float[Tensor, "B L H P"], k: Float[Tensor, "B L K P"], v: Float[Tensor, "B L K P"], prepared: Any
    ) -> Float[Tensor, "B L H P"]:
        """Attention of every head; K divides H, and H / K neighbouring heads share keys and values."""
