"""sedd-1024: end-of-text after every row, the stream cut into plain chunks.

SEDD (arXiv 2310.16834), its zero-shot sets. Rows are what the data set calls rows: lines of WikiText, sentences of PTB.
Empty rows are rows.
"""

from collections.abc import Iterator

from diffusion_lm.evaluation.protocols.base import Protocol, Text


class Sedd1024(Protocol):
    """Row ends marked, chunk ends not."""

    boundary = "end-of-text after each row; chunks carry no marks"

    def pieces(self, text: Text) -> Iterator[tuple[str, bool]]:
        yield from ((row, True) for row in text.rows)
