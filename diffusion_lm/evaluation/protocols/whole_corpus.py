"""whole-corpus: documents as the training shards hold them, each followed by end-of-text; lines of one text stay one.

Rows that are lines of a running text (PTB, WikiText) are joined by line ends into one document. Chunks carry no marks
of their own.
"""

from collections.abc import Iterator

from diffusion_lm.evaluation.protocols.base import Protocol, Text


class WholeCorpus(Protocol):
    """One end-of-text id per document."""

    boundary = "end-of-text after each document; rows that are lines are joined by line ends; chunks carry no marks"
    published = False

    def pieces(self, text: Text) -> Iterator[tuple[str, bool]]:
        if text.unit != "line":
            yield from ((row, True) for row in text.rows)
            return
        for place, row in enumerate(text.rows, 1):
            yield row if row.endswith("\n") else row + "\n", place == len(text.rows)
