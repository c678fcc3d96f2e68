"""What a tokenizer is, and the folder as the registry: the tokenizer `bytes` is the file `bytes.py` beside this one.

Two more kinds have no name of their own here: `PATH/tokenizer.json`, a file, and `ids:N`, numbers without text.
"""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path

import numpy as np

from diffusion_lm.errors import unknown

EOT_TEXT = "<|endoftext|>"
NO_TEXT = b"\xff"  # occurs in no UTF-8 text, so that it decodes to U+FFFD
FILE_NAME = "tokenizer.json"
"""What a dataset calls a tokenizer that was read from a file; it keeps a copy under this name."""


class Tokenizer(ABC):
    """Text to ids and back. Ids 0 .. vocab_size - 1; one of them, `eot_id`, only ever marks the end of a document.

    Mask and padding ids are the model's, not the tokenizer's: they are never stored in shards and lie at or above
    `vocab_size`. This module and its siblings import no torch: `data_prep` uses them. Sizes, ids and fingerprint are
    known without the vocabulary's file, which is read when text is first encoded or decoded.
    """

    name: str
    vocab_size: int  # counts the end-of-text id
    eot_id: int

    def prepare(self) -> None:  # noqa: B027 - most have nothing to read
        """Read what encoding and decoding need. Raises `UserError` where it is missing or damaged."""

    @abstractmethod
    def encode_ordinary(self, text: str) -> np.ndarray:
        """Ids [n] of `text`, int64. Text that spells a special token is ordinary text; `eot_id` never comes out."""

    @abstractmethod
    def decode(self, ids: np.ndarray) -> str:
        """Text of `ids` [n]; inverse of `encode_ordinary`. `eot_id` reads ``<|endoftext|>``; ids that stand for no
        text (a cut character, a mask) read U+FFFD."""

    @abstractmethod
    def byte_counts(self, ids: np.ndarray) -> np.ndarray:
        """Bytes of UTF-8 text that each of `ids` [n] stands for, int64 [n]; 0 for `eot_id`. Over a text's ids they
        add up to the text's bytes."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Equal for two tokenizers only when they give equal ids for every text."""


class PieceTokenizer(Tokenizer):
    """A tokenizer whose every id stands for a fixed string of bytes: a text's bytes are its ids' strings in a row."""

    @property
    @abstractmethod
    def pieces(self) -> list[bytes]:
        """The bytes [vocab_size] of each id; nothing for `eot_id` and for ids that are not used."""

    def decode(self, ids: np.ndarray) -> str:
        """Text of `ids` [n]; see the contract."""
        return b"".join(map(self._bytes_of, np.asarray(ids).tolist())).decode("utf-8", errors="replace")

    def byte_counts(self, ids: np.ndarray) -> np.ndarray:
        """Lengths of the ids' strings; 0 for ids outside the vocabulary."""
        ids = np.asarray(ids)
        inside = (ids >= 0) & (ids < self.vocab_size)
        return np.where(inside, self._lengths[np.where(inside, ids, 0)], 0)

    @cached_property
    def _lengths(self) -> np.ndarray:
        return np.array([len(piece) for piece in self.pieces], dtype=np.int64)

    def _bytes_of(self, number: int) -> bytes:
        if number == self.eot_id:
            return EOT_TEXT.encode()
        return (0 <= number < self.vocab_size and self.pieces[number]) or NO_TEXT


def names() -> list[str]:
    """The tokenizers that have a name: the files of this folder."""
    return sorted(m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]) if m.name != "base")


def is_known(name: str) -> bool:
    """Whether `load_tokenizer` takes `name`."""
    return name in names() or name.endswith(".json") or name.startswith("ids:")


def vocabulary_size(name: str) -> int:
    """Number of ids of the tokenizer called `name`, end-of-text included. Raises `UserError` where it is not known."""
    return load_tokenizer(name).vocab_size


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer called `name`, or of the file `name`. Raises `UserError` naming those there are."""
    if name.endswith(".json"):
        from diffusion_lm.data.tokenizer_file import TokenizerFile

        return TokenizerFile(Path(name))
    if name.startswith("ids:"):
        from diffusion_lm.data.symbols import Symbols

        return Symbols(name)
    if name not in names():
        raise unknown("tokenizer: no variant", name, [*names(), "ids:N", f"path/{FILE_NAME}"])
    module = importlib.import_module(f"{__package__}.{name}")
    [variant] = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Tokenizer) and value.__module__ == module.__name__
    ]
    return variant()


def stored_name(name: str) -> str:
    """What a dataset made with the tokenizer called `name` calls it."""
    return FILE_NAME if name.endswith(".json") else name


def dataset_tokenizer(folder: Path, name: str) -> Tokenizer:
    """The tokenizer that the dataset in `folder` calls `name`: its own copy where it was read from a file."""
    return load_tokenizer(str(folder / name) if name == FILE_NAME else name)
