"""mdlm-1022-noeos: rows follow one another unmarked, chunks of L - 2 tokens between two end-of-text ids.

What BD3-LM (arXiv 2503.09573) and Duo (arXiv 2506.10892) score: MDLM's chunks without its end of every row.
"""

from collections.abc import Iterator

from diffusion_lm.evaluation.protocols.base import Protocol, Text


class Mdlm1022Noeos(Protocol):
    """Chunk ends marked, row ends not."""

    boundary = "nothing between rows; each chunk begins and ends with end-of-text"
    framed = True

    def pieces(self, text: Text) -> Iterator[tuple[str, bool]]:
        yield from ((row, False) for row in text.rows)
