"""Sequence mixers: layers that move information between positions.

A mixer is bidirectional unless its config says `causal`, and looks at nothing outside its own document where the
context tells documents apart. Configs predict the mixer's parameters and floating-point operations, so that arms can be
sized without being built.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from diffusion_lm.shapes import Hidden, Segment


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

    def flipped(self) -> "Context":
        """That of the row from its end to its start."""
        return self if self.segment is None else Context(self.segment.flip(1))


ONE_DOCUMENT = Context()
"""Nothing but the input."""


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


def check_sizes(config: Any, *names: str) -> None:
    """Refuse sizes below 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name}: got {getattr(config, name)}, expected at least 1")


class MixerConfig:
    """What every mixer's config can say without building the mixer."""

    __slots__ = ()

    def is_causal(self) -> bool:
        """Whether an output depends on earlier positions only."""
        raise NotImplementedError

    def family(self) -> str:
        """What it is built of: ``attention`` or ``mamba``. A denoiser's name promises one or both."""
        raise NotImplementedError

    def projections(self, d_model: int) -> int | None:
        """Parameters of the projections into and out of the mixer, where it can be run between them (`in_proj`, `mix`,
        `out_proj`); None where it cannot."""
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
