"""Protocols: how the rows of a text become the sequences that a model is scored on.

A protocol is a pure function of (rows, tokenizer, length): all rows in their order make one stream of tokens, which is
cut into chunks, and what is left at its very end is dropped and counted. Implementations that cut within each batch of
a parallel map drop a remainder per batch, and score other tokens on another number of CPUs. Ids that mark an end are
scored like all others and stand for no bytes. The folder is the registry; a command line writes `-` for `_`.
"""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from diffusion_lm.data.tokenizers.base import Tokenizer
from diffusion_lm.errors import UserError, unknown

PUBLISHED_LENGTH, PUBLISHED_TOKENIZER = 1024, "gpt2"


@dataclass(frozen=True)
class Text:
    """Rows of text in their order. unit: `line` where the rows are lines of one text, else each is a text by itself."""

    rows: tuple[str, ...]
    unit: str = "document"


@dataclass(frozen=True)
class Chunks:
    """tokens: [n, L]; text_bytes: bytes of text that each chunk stands for [n]; marks: ids that stand for none [n]."""

    tokens: np.ndarray
    text_bytes: np.ndarray
    marks: np.ndarray
    dropped_tokens: int
    dropped_bytes: int


class Protocol(ABC):
    """A way of cutting text. `boundary` says in words where ends are marked."""

    boundary: ClassVar[str]
    framed: ClassVar[bool] = False
    """Whether a chunk begins and ends with the end-of-text id."""
    published: ClassVar[bool] = True
    """Whether papers report numbers under it."""

    @abstractmethod
    def pieces(self, text: Text) -> Iterator[tuple[str, bool]]:
        """The texts to tokenise, in order, and whether an end-of-text id follows each."""

    def chunks(self, text: Text, tokenizer: Tokenizer, length: int) -> Chunks:
        """Sequences of `length` tokens. Raises `UserError` where the tokenizer or the length cannot serve."""
        self._check(tokenizer, length)
        end = np.array([tokenizer.eot_id])
        stream = [np.empty(0, dtype=np.int64)]
        for piece, ends in self.pieces(text):
            stream += [tokenizer.encode_ordinary(piece), *([end] if ends else [])]
        tokens = np.concatenate(stream)
        inner = length - 2 * self.framed
        rows = len(tokens) // inner
        kept, dropped = tokens[: rows * inner].reshape(rows, inner), tokens[rows * inner :]
        text_bytes = tokenizer.byte_counts(kept.ravel()).reshape(rows, inner).sum(1)
        if self.framed:
            frame = np.full((rows, 1), tokenizer.eot_id)
            kept = np.concatenate((frame, kept, frame), 1)
        marks = (kept == tokenizer.eot_id).sum(1)
        return Chunks(kept, text_bytes, marks, len(dropped), int(tokenizer.byte_counts(dropped).sum()))

    def comparison(self, tokenizer: str, length: int) -> str:
        """Whether numbers may stand beside published ones."""
        if not self.published:
            return "a protocol of this project: no published number is under it"
        if (length, tokenizer) == (PUBLISHED_LENGTH, PUBLISHED_TOKENIZER):
            return "may stand beside published numbers of this protocol"
        return (
            f"not comparable with published numbers: those are at length {PUBLISHED_LENGTH} with tokenizer "
            f"{PUBLISHED_TOKENIZER}, this is at length {length} with tokenizer {tokenizer}"
        )

    def _check(self, tokenizer: Tokenizer, length: int) -> None:
        if tokenizer.eot_id is None:
            raise UserError(
                f"--protocol {name_of(self)}: tokenizer '{tokenizer.name}' has no end-of-text id to mark ends with; "
                "expected one that has; evaluate on shards instead: --data SHARDS"
            )
        if length < 1 + 2 * self.framed:
            raise UserError(
                f"--protocol {name_of(self)}: a sequence of {length} tokens has no room for text between its two ends; "
                "expected at least 3; take another protocol"
            )


def name_of(protocol: Protocol) -> str:
    """As a command line writes it."""
    return type(protocol).__module__.rpartition(".")[2].replace("_", "-")


def names() -> list[str]:
    """The protocols there are: the files of this folder."""
    found = pkgutil.iter_modules([str(Path(__file__).parent)])
    return sorted(module.name.replace("_", "-") for module in found if module.name != "base")


def load_protocol(name: str) -> Protocol:
    """The protocol called `name`. Raises `UserError` naming the ones there are."""
    if name not in names():
        raise unknown("--protocol: no variant", name, names())
    module = importlib.import_module(f"{__package__}.{name.replace('-', '_')}")
    [variant] = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Protocol) and value.__module__ == module.__name__
    ]
    return variant()
