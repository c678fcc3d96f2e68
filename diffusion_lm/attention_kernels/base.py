"""Attention kernels: softmax(q k^T / sqrt(P) + pattern) v, the pattern being which positions see which.

Position i sees j of its own document where, with i and j counted from the document's start,

    full: always      causal: j <= i      block-causal: floor(j / N) <= floor(i / N).

A kernel turns the pattern into what it works with (a mask, the documents' places) once per call of the network, before
the layers, and refuses patterns that it cannot do when the config is read. Kernels are for whole texts, in training and
outside it; a block that goes on from a cache is served by sdpa whatever the kernel, for its keys are no square.
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


@dataclass(frozen=True)
class BlockPattern:
    """Which positions see which in block mode, in texts of `count` blocks of `size`, a clean half and a noisy one.

    A clean position sees the clean ones of its own block and of those before it; a noisy one the noisy ones of its own
    block and the clean ones of those before it. causal: of its own block the earlier positions and itself alone.
    """

    count: int
    size: int
    causal: bool = False

    @property
    def length(self) -> int:
        """Positions of a text."""
        return self.count * self.size

    def is_causal(self) -> bool:
        """Whether the clean half is plainly causal."""
        return self.causal or self.size == 1


class AttentionKernel(Backend, ABC):
    """One implementation of attention. `pattern` is what the layers of a call share: `prepare`'s answer."""

    @classmethod
    def refusal(cls, causal: bool, block_size: int) -> str | None:
        """Why it cannot do that pattern, or None."""
        return None

    @classmethod
    def block_refusal(cls) -> str | None:
        """Why it cannot train on noisy blocks beside clean ones, or None, where it has the two methods for them."""
        return "it cannot train on noisy blocks beside clean ones; set kernel=sdpa or flex"

    @abstractmethod
    def prepare(self, pattern: Pattern, length: int, device: torch.device, dtype: torch.dtype) -> Any:
        """What `attend` needs of the pattern. dtype: of the products."""

    @abstractmethod
    def attend(
        self, q: Float[Tensor, "B L H P"], k: Float[Tensor, "B L K P"], v: Float[Tensor, "B L K P"], prepared: Any
    ) -> Float[Tensor, "B L H P"]:
        """Attention of every head; K divides H, and H / K neighbouring heads share keys and values."""

    def prepare_blocks(self, pattern: BlockPattern, device: torch.device, dtype: torch.dtype) -> Any:
        """What `attend_blocks` needs of the pattern."""
        raise NotImplementedError(self.block_refusal())

    def attend_blocks(
        self, q: Float[Tensor, "B2 L H P"], k: Float[Tensor, "B2 L K P"], v: Float[Tensor, "B2 L K P"], prepared: Any
    ) -> Float[Tensor, "B2 L H P"]:
        """As `attend`, for clean texts, followed by as many noisy ones."""
        raise NotImplementedError(self.block_refusal())
