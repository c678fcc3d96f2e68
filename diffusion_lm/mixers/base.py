"""Sequence mixers: layers that move information between positions.

A mixer is bidirectional unless its config says `causal`, and looks at nothing outside its own document where the
context tells documents apart.

Block mode (`blocks.py`, `cache.py`). A block sees the blocks before it and itself, whole where the mixer is
bidirectional; of the blocks before it only what their clean form left in a `MixerCache`. A mixer says how a block goes
on from a cache (`start`, `resume`); the rest has a default that goes block by block, which a faster form must equal.
Configs predict the mixer's parameters and floating-point operations, so that arms can be
sized without being built.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from diffusion_lm.blocks import fold, unfold
from diffusion_lm.config import name_of
from diffusion_lm.shapes import Bool, Hidden, Int, Segment, Tensor


@dataclass(frozen=True)
class Context:
    """What the mixers of a trunk know beside their input; made once per call of the network.

    segment: the document of each position [B, L], ids of neighbouring documents differ and 0 is padding; positions of
    different segments do not see each other. None: the row is one document.
    """

    segment: Segment | None = None
    shared: Mapping[Any, Any] = field(default_factory=dict)
    """What mixers have prepared for themselves and others like them, from the length and the segments, by a key of
    theirs; for other segments make a new context."""

    compiles: ClassVar[bool] = True
    """Whether a trunk's compiled blocks can be called with it."""

    def prepared(self, mixer: "SequenceMixer", x: Hidden) -> "Context":
        """The context with what that mixer wants to have made once per call of the network."""
        return mixer.prepare(x, self)

    def mix(self, mixer: "SequenceMixer", x: Hidden) -> Hidden:
        """The mixer's output, computed as the rows' meaning wants it."""
        return mixer(x, self)

    def of_layer(self, layer: int) -> "Context":
        """What that block of the trunk is called with."""
        return self

    def flipped(self) -> "Context":
        """That of the row from its end to its start."""
        return self if self.segment is None else Context(self.segment.flip(1))


ONE_DOCUMENT = Context()
"""Nothing but the input."""


@dataclass(frozen=True)
class BlockContext(Context):
    """Rows are blocks: first the clean ones of all texts [R, S, D], then as many noisy ones. count: blocks per text."""

    count: int = 1

    def prepared(self, mixer: "SequenceMixer", x: Hidden) -> Context:
        return mixer.prepare_blocks(x, self)

    def mix(self, mixer: "SequenceMixer", x: Hidden) -> Hidden:
        return mixer.over_blocks(x, self.count, self)


class MixerCache(ABC):
    """What the clean blocks so far leave, in one mixer, for the block that follows. Never changed in place where that
    could be seen from outside."""

    @abstractmethod
    def where(self, rows: Bool[Tensor, "B"], other: "MixerCache") -> "MixerCache":
        """These rows of this cache, the others of `other`, which is this one's predecessor."""

    @abstractmethod
    def repeated(self, times: int) -> "MixerCache":
        """Every row that many times, one copy after the other."""

    @abstractmethod
    def nbytes(self) -> int:
        """Bytes in use."""


@dataclass(frozen=True)
class StateCache(MixerCache):
    """A cache of tensors whose size does not depend on how much text they stand for, rows first."""

    state: tuple[Tensor, ...]

    def where(self, rows: Bool[Tensor, "B"], other: "StateCache") -> "StateCache":
        pairs = zip(self.state, other.state, strict=True)
        return StateCache(tuple(torch.where(rows.view(-1, *(1,) * (a.dim() - 1)), a, b) for a, b in pairs))

    def repeated(self, times: int) -> "StateCache":
        return StateCache(tuple(value.repeat(times, *(1,) * (value.dim() - 1)) for value in self.state))

    def nbytes(self) -> int:
        return sum(value.nbytes for value in self.state)


class SequenceMixer(nn.Module, ABC):
    """y = mixer(x), of the shape of x."""

    def __init__(self, config: Any, d_model: int) -> None:
        super().__init__()
        self.config = config
        self.d_model = d_model

    def prepare(self, x: Hidden, context: Context) -> Context:
        """The context with what does not depend on x's values and is alike in many layers (tables, masks), made once
        before the first of them; `forward` also works without."""
        return context

    @abstractmethod
    def forward(self, x: Hidden, context: Context = ONE_DOCUMENT) -> Hidden:
        """Mix over the positions of a segment. [B, L, D] -> [B, L, D]"""

    def backwards(self, x: Hidden, context: Context = ONE_DOCUMENT) -> Hidden:
        """The mixer run from the last position to the first."""
        return self(x.flip(1), context.flipped()).flip(1)

    @abstractmethod
    def start(self, x: Hidden) -> MixerCache:
        """The cache of no blocks, for the rows of x, on its device."""

    @abstractmethod
    def resume(self, x: Hidden, cache: MixerCache) -> tuple[Hidden, MixerCache]:
        """Outputs for a block that follows what is cached [B, S, D], and the cache after it."""

    def denoise(self, x: Hidden, cache: MixerCache) -> Hidden:
        """Outputs for a block; the cache stays as it is."""
        return self.resume(x, cache)[0]

    def commit(
        self, x: Hidden, cache: MixerCache, rows: Bool[Tensor, "B"] | None = None
    ) -> tuple[Hidden, MixerCache]:
        """Outputs for a clean block, and the cache that has it in the rows that are named (None: in all)."""
        y, after = self.resume(x, cache)
        return y, after if rows is None else after.where(rows, cache)

    def prefill(self, x: Hidden, count: int, keep: Int[Tensor, "N"]) -> tuple[Hidden, MixerCache]:
        """Outputs for `count` clean blocks per text, as rows [R, S, D], and the cache of the first `keep` of each; the
        outputs of the blocks after those mean nothing."""
        blocks, outputs = unfold(x, count).split(x.shape[1], 1), []
        cache = self.start(blocks[0])
        for number, block in enumerate(blocks):
            y, cache = self.commit(block, cache, keep > number)
            outputs.append(y)
        return fold(torch.cat(outputs, 1), x.shape[1]), cache

    def over_blocks(self, x: Hidden, count: int, context: Context = ONE_DOCUMENT) -> Hidden:
        """The training form: outputs for clean blocks and for noisy ones, of which each sees the clean ones before it.

        x: clean rows, then noisy rows, `count` blocks per text. [2 R, S, D] -> [2 R, S, D]
        """
        clean, noisy = (unfold(half, count).split(x.shape[1], 1) for half in x.chunk(2))
        cache, outputs = self.start(clean[0]), ([], [])
        for block, corrupted in zip(clean, noisy, strict=True):
            outputs[1].append(self.denoise(corrupted, cache))
            y, cache = self.commit(block, cache)
            outputs[0].append(y)
        return torch.cat([fold(torch.cat(half, 1), x.shape[1]) for half in outputs])

    def prepare_blocks(self, x: Hidden, context: BlockContext) -> Context:
        """As `prepare`, for `over_blocks`."""
        return context


def check_sizes(config: Any, *names: str) -> None:
    """Refuse sizes below 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name}: got {getattr(config, name)}, expected at least 1")


class MixerConfig:
    """What every mixer's config can say without building the mixer."""

    __slots__ = ()

    @property
    def exact_cache(self) -> bool:
        """Whether what a block sees of the blocks before it is what `commit` left of them. A trunk with a mixer of
        which that is not true goes block by block over whole texts in training; its cache is an approximation."""
        return True

    def approximation(self) -> str:
        """What makes the cache an approximation, where it is one."""
        return f"mixer {name_of(self)}"

    def of_blocks(self) -> tuple[str, ...]:
        """Keys that nothing reads outside block mode."""
        return ()

    def block_refusal(self) -> str | None:
        """Why it cannot be used in block mode, or None."""
        return None

    def is_causal(self) -> bool:
        """Whether an output depends on earlier positions only."""
        raise NotImplementedError

    def family(self) -> str:
        """What it is built of: ``attention`` or ``mamba``. A denoiser's name promises one or both."""
        raise NotImplementedError

    def projections(self, d_model: int) -> int | None:
        """Parameters of the projections into and out of the mixer, where it can be run between them (`in_proj`, `mix`,
        `mix_on`, `mix_prefill`, `mix_blocks`, `out_proj`); None where it cannot."""
        return None

    def projection_flops(self, d_model: int) -> tuple[int, int]:
        """Operations per position of the projection in and of that out."""
        raise NotImplementedError

    def parameters(self, d_model: int) -> int:
        """Number of parameters."""
        raise NotImplementedError

    def flops_per_token(self, d_model: int, length: int) -> int:
        """Floating-point operations of a forward pass per position: matrix products, a multiply-add being two."""
        raise NotImplementedError

    def block_flops_per_token(self, d_model: int, length: int, block_size: int) -> int:
        """Of `over_blocks`, clean and noisy blocks together, per position of the text: two passes over it at most.
        A trunk that goes block by block (`exact_cache`) does not call it, and its config counts that itself."""
        return 2 * self.flops_per_token(d_model, length)
