"""The cache of generation: what the blocks so far leave in every mixer, and the ways to use it.

`Denoising` lets a block look at a cache and leaves it as it is; `Committing` also takes the block in; `Prefilling`
makes the cache of many clean blocks at once, `Reading` that of texts whose blocks are single tokens. Each is a
`Context` that a trunk hands to its mixers, layer by layer, in place of that of whole texts. Nothing in a cache depends
on noise: blocks are taken in clean, at noise level 0.
"""

from dataclasses import dataclass, field

import torch

from diffusion_lm.blocks import fold, unfold
from diffusion_lm.mixers.base import Context, MixerCache, SequenceMixer
from diffusion_lm.shapes import Bool, Hidden, Int, Tensor


@dataclass(frozen=True)
class Cache:
    """layers: what each mixer of the trunk keeps, in order, none before the first token; length: tokens that every row
    has in it [B]."""

    layers: tuple[MixerCache, ...]
    length: Int[Tensor, "B"]

    @classmethod
    def empty(cls, rows: int, device: torch.device | str = "cpu") -> "Cache":
        """That of no tokens."""
        return cls((), torch.zeros(rows, dtype=torch.long, device=device))

    def of(self, mixer: SequenceMixer, layer: int, x: Hidden) -> MixerCache:
        """What that layer's mixer goes on from, for input like x."""
        return self.layers[layer] if self.layers else mixer.start(x)

    def nbytes(self) -> int:
        """Bytes in use."""
        return sum(layer.nbytes() for layer in self.layers)


@dataclass(frozen=True, kw_only=True)
class LayerContext(Context):
    """What one layer's mixer is called with: `mode` decides how, `layer` says which."""

    compiles = False
    mode: "CacheUse"
    layer: int

    def mix(self, mixer: SequenceMixer, x: Hidden) -> Hidden:
        return self.mode.mix_layer(mixer, x, self.layer)


@dataclass(frozen=True, kw_only=True)
class CacheUse(Context):
    """A context of which every layer has its own part."""

    compiles = False

    def prepared(self, mixer: SequenceMixer, x: Hidden) -> Context:
        return self

    def of_layer(self, layer: int) -> Context:
        return LayerContext(mode=self, layer=layer)

    def mix_layer(self, mixer: SequenceMixer, x: Hidden, layer: int) -> Hidden:
        """The mixer's output for that layer."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Denoising(CacheUse):
    """A block sees what is cached and itself."""

    cache: Cache

    def mix_layer(self, mixer: SequenceMixer, x: Hidden, layer: int) -> Hidden:
        return mixer.denoise(x, self.cache.of(mixer, layer, x))


@dataclass(frozen=True, kw_only=True)
class Committing(CacheUse):
    """The same for a clean block, which then belongs to the cache of the rows that are named (None: of all)."""

    cache: Cache
    rows: Bool[Tensor, "B"] | None = None
    left: list[MixerCache] = field(default_factory=list)

    def mix_layer(self, mixer: SequenceMixer, x: Hidden, layer: int) -> Hidden:
        y, cache = mixer.commit(x, self.cache.of(mixer, layer, x), self.rows)
        self.left.append(cache)
        return y

    def result(self, size: int) -> Cache:
        """The cache after a block of that many tokens."""
        grown = size if self.rows is None else size * self.rows.long()
        return Cache(tuple(self.left), self.cache.length + grown)


@dataclass(frozen=True, kw_only=True)
class Prefilling(CacheUse):
    """Clean blocks, as rows of their own, `count` per text; of each text the first `keep` are cached."""

    count: int
    keep: Int[Tensor, "B"]
    left: list[MixerCache] = field(default_factory=list)

    def mix_layer(self, mixer: SequenceMixer, x: Hidden, layer: int) -> Hidden:
        y, cache = mixer.prefill(x, self.count, self.keep)
        self.left.append(cache)
        return y

    def result(self, size: int) -> Cache:
        """The cache of the kept blocks."""
        return Cache(tuple(self.left), self.keep * size)


@dataclass(frozen=True, kw_only=True)
class Reading(CacheUse):
    """Whole texts of which every position is a block of its own; of each the first `keep` are cached."""

    keep: Int[Tensor, "B"]
    left: list[MixerCache] = field(default_factory=list)

    def mix_layer(self, mixer: SequenceMixer, x: Hidden, layer: int) -> Hidden:
        y, cache = mixer.prefill(fold(x, 1), x.shape[1], self.keep)
        self.left.append(cache)
        return unfold(y, x.shape[1])

    def result(self) -> Cache:
        """The cache of the kept positions."""
        return Cache(tuple(self.left), self.keep)
