"""Attention of a text's noisy blocks beside its clean ones, by scaled_dot_product_attention, chunk after chunk.

The three parts of BD3-LM's mask (Arriola et al., arXiv 2503.09573, section 3.1): a noisy block sees itself and the
clean blocks before it, a clean block itself and the clean blocks before it. Of the 4 L^2 pairs of [clean; noisy] that
is little more than L^2: queries go by chunks of whole blocks, each over the clean keys up to its own end, so that masks
are only needed among a chunk's own blocks, and not at all where a chunk is one block.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from diffusion_lm.attention_kernels.base import BlockPattern
from diffusion_lm.shapes import Bool, Float, Tensor

CHUNKS, LEAST_CHUNK = 8, 64
"""A text has at most that many chunks, none but the last shorter than that: on CPU the fastest of those tried."""
ALIGNED = 16
"""CUDA's kernels copy masks whose rows do not begin at a multiple of that."""

Mask = Tensor | None
"""What is added to the scores of a chunk's queries, 0 or -inf [1, 1, C, T]; None where all keys are seen."""


@dataclass(frozen=True)
class Chunks:
    """sizes: positions of each chunk; clean, noisy: their masks. Keys come with the chunk's own first."""

    pattern: BlockPattern
    sizes: tuple[int, ...]
    clean: tuple[Mask, ...]
    noisy: tuple[Mask, ...]

    @classmethod
    def of(cls, pattern: BlockPattern, device: torch.device, dtype: torch.dtype) -> "Chunks":
        """The chunks of texts of that pattern."""
        wanted = max(LEAST_CHUNK, -(-pattern.length // CHUNKS))
        size = min(pattern.length, -(-wanted // pattern.size) * pattern.size)
        whole, rest = divmod(pattern.length, size)
        masks = _masks(pattern, size, pattern.length - size, device, dtype)
        pairs = [[_cut(mask, number * size, pattern.length - size) for mask in masks] for number in range(whole)]
        if rest:
            pairs.append(_masks(pattern, rest, pattern.length - rest, device, dtype))
        return cls(pattern, (size,) * whole + (rest,) * bool(rest), *zip(*pairs, strict=True))


def _masks(
    pattern: BlockPattern, size: int, before: int, device: torch.device, dtype: torch.dtype
) -> tuple[Mask, Mask]:
    """Of a chunk with that many clean positions before it: over its own clean keys and those; and over its own noisy
    keys, its own clean ones unless it is one block, and those."""
    place = torch.arange(size, device=device)
    block = place // pattern.size
    own, earlier = block.unsqueeze(1) == block, block.unsqueeze(1) > block
    if pattern.causal:
        own = own & (place.unsqueeze(1) >= place)
    if size > pattern.size:
        noisy = _added(torch.cat((own, earlier), 1), before, dtype)
        return None if pattern.is_causal() else _added(own | earlier, before, dtype), noisy
    return None, _added(own, before, dtype) if pattern.causal and size > 1 else None


def _added(own: Bool[Tensor, "C c"], before: int, dtype: torch.dtype) -> Float[Tensor, "1 1 C T"]:
    width = own.shape[1] + before
    added = torch.zeros(len(own), -(-width // ALIGNED) * ALIGNED, dtype=dtype, device=own.device)
    added[:, : own.shape[1]].masked_fill_(~own, -torch.inf)
    return added[None, None, :, :width]


def _cut(mask: Mask, before: int, most: int) -> Mask:
    """The mask of a chunk with fewer positions before it than `most`."""
    return None if mask is None else mask[..., : mask.shape[-1] - most + before]


def attend(
    q: Float[Tensor, "B C H P"],
    k: Float[Tensor, "B T K P"],
    v: Float[Tensor, "B T K P"],
    mask: Float[Tensor, "#B 1 C T"] | Bool[Tensor, "#B 1 C T"] | None = None,
    causal: bool = False,
) -> Float[Tensor, "B C H P"]:
    """Softmax attention over all keys or those that the mask shows; positions come before heads."""
    if mask is not None and mask.is_floating_point():
        mask = mask.to(q.dtype)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=grouped).transpose(1, 2)


def over_clean(
    q: Float[Tensor, "B L H P"], k: Float[Tensor, "B L K P"], v: Float[Tensor, "B L K P"], chunks: Chunks
) -> Float[Tensor, "B L H P"]:
    """Clean blocks over themselves and those before them."""
    if chunks.pattern.is_causal():
        return attend(q, k, v, causal=True)
    queries, keys, values = (x.split(chunks.sizes, 1) for x in (q, k, v))
    found = []
    for number, (query, mask) in enumerate(zip(queries, chunks.clean, strict=True)):
        seen = (torch.cat((x[number], *x[:number]), 1) for x in (keys, values))
        found.append(attend(query, *seen, mask))
    return torch.cat(found, 1)


def over_noisy(
    q: Float[Tensor, "B L H P"],
    noisy: tuple[Float[Tensor, "B L K P"], Float[Tensor, "B L K P"]],
    clean: tuple[Float[Tensor, "B L K P"], Float[Tensor, "B L K P"]],
    chunks: Chunks,
) -> Float[Tensor, "B L H P"]:
    """Noisy blocks over themselves and the clean ones before them. noisy, clean: the halves' keys and values."""
    halves = [(x.split(chunks.sizes, 1), y.split(chunks.sizes, 1)) for x, y in zip(noisy, clean, strict=True)]
    found = []
    for number, query in enumerate(q.split(chunks.sizes, 1)):
        among = 0 if query.shape[1] == chunks.pattern.size else 1
        seen = (torch.cat((x[number], *y[number : number + among], *y[:number]), 1) for x, y in halves)
        found.append(attend(query, *seen, chunks.noisy[number]))
    return torch.cat(found, 1)


def over_both(
    q: Float[Tensor, "B2 L H P"], k: Float[Tensor, "B2 L K P"], v: Float[Tensor, "B2 L K P"], chunks: Chunks
) -> Float[Tensor, "B2 L H P"]:
    """Clean texts, then their noisy blocks in the same order."""
    if chunks.pattern.count == 1:  # a noisy text that is one block sees itself, as the clean one does
        return attend(q, k, v, causal=chunks.pattern.causal)
    (q, noisy_q), (k, noisy_k), (v, noisy_v) = (x.chunk(2) for x in (q, k, v))
    noisy = over_noisy(noisy_q, (noisy_k, noisy_v), (k, v), chunks)
    return torch.cat((over_clean(q, k, v, chunks), noisy))
