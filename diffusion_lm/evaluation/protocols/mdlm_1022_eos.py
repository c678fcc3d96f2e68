"""mdlm-1022-eos: end-of-text after every row, chunks of L - 2 tokens between two end-of-text ids.

MDLM (arXiv 2406.07524), its zero-shot sets. GPT-2's vocabulary has one special id, which serves as begin and as end.
Both are scored, though they are always the same: at L = 1024 they are worth about 0.006 nats per token.
"""

from collections.abc import Iterator

from diffusion_lm.evaluation.protocols.base import Protocol, Text


class Mdlm1022Eos(Protocol):
    """Row ends and chunk ends marked."""

    boundary = "end-of-text after each row; each chunk begins and ends with end-of-text"
    framed = True

    def pieces(self, text: Text) -> Iterator[tuple[str, bool]]:
        yield from ((row, True) for row in text.rows)
