"""What a denoiser sees: one frozen dataclass. A new need is a new field, not a new signature."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from diffusion_lm.blocks import Blocks
from diffusion_lm.mixers.base import BlockContext, Context
from diffusion_lm.shapes import Bool, Float, Given, Hidden, Int, Positions, Rows, Segment, State, Tensor, Times, Tokens


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What rows are part of. segment: the document of each position [B, L], 0 for padding, where packed documents are
    not to see each other; None where a row is one text. blocks: the clean texts that the rows are blocks of (training).
    """

    segment: Segment | None = None
    blocks: Blocks | None = None

    def surroundings(self) -> dict[str, Any]:
        """The same, for another batch of these rows."""
        return {"segment": self.segment, "blocks": self.blocks}


@dataclass(frozen=True)
class Noisy(Surroundings):
    """A corrupted batch.

    x: ids [B, L] or embedded tokens [B, L, D]. noise_level: [B, N], one number in [0, 1] per row (N = 1) or per block
    of L / N positions. given: clean positions that are not to be predicted [B, L], whose noise level is 0; None when
    nothing is given. self_condition: an earlier estimate of x_0 [B, L, D] (Gaussian); None where there is none yet.
    answer: x_0 itself [B, L, D], which a prompt encoder is shown in training where prompts leak (DIMBA's literal form);
    a denoiser gets it embedded as the text is. None otherwise. cache: what has become of the blocks before this one
    (generation). Of segment, blocks and cache there is one at most.
    """

    x: State
    noise_level: Float[Tensor, "B N"]
    given: Given | None = None
    self_condition: Hidden | None = None
    answer: Float[Tensor, "B L C"] | None = None
    cache: Context | None = None


def context_of(noisy: Noisy) -> Context:
    """How a trunk's mixers are called for it."""
    if noisy.cache is not None:
        return noisy.cache
    return Context(noisy.segment) if noisy.blocks is None else BlockContext(count=noisy.blocks.count)


@dataclass(frozen=True)
class Batch(Surroundings):
    """A batch of text. tokens: [B, L]; position: [B], the rows' places in the training order, keys of their noise."""

    tokens: Tokens
    position: Positions

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on another device."""
        return _moved(self, device)


@dataclass(frozen=True)
class Corrupted(Surroundings):
    """A batch of text with the noise that training draws for it on the host.

    x_t: corrupted ids [B, L]; t: times [B, 1]; weight: 1 / density of t [B, 1]; given: clean positions [B, L] or None.
    rows: flat places b L + i of the positions that are scored [R], R a multiple of `ROWS`, filled up with -1.
    count: what the loss of a row is divided by, the mean over its global batch of the positions that count [B].
    """

    tokens: Tokens
    x_t: Tokens
    t: Times
    weight: Times
    given: Given | None
    rows: Int[Tensor, "R"]
    count: Rows

    def to(self, device: torch.device | str) -> "Corrupted":
        """The batch on another device."""
        return _moved(self, device)


def _moved(batch: Any, device: torch.device | str) -> Any:
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return replace(batch, **{name: value.to(device) for name, value in values.items() if value is not None})


ROWS = 256
"""Scored rows are filled up to a multiple of this, so that few shapes occur."""


def scored_rows(scored: Bool[Tensor, "B L"], count: int | None = None) -> Int[Tensor, "R"]:
    """Flat places of the True entries, filled up with -1 to a multiple of `ROWS` (at least one of them).

    count: how many there are, if that is known; counting them would wait for the device.
    """
    count = int(scored.sum()) if count is None else count
    size = max(ROWS, -(-count // ROWS) * ROWS)
    return torch.nonzero_static(scored.flatten(), size=size, fill_value=-1).squeeze(1)
