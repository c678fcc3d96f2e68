"""What a tokenizer is, and the folder as the registry: the tokenizer `bytes` is the file `bytes.py` beside this one."""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np

from diffusion_lm.errors import unknown

EOT_TEXT = "<|endoftext|>"
PUBLISHED = {"gpt2": 50257}
"""Ids of published vocabularies that no file of this folder reads: enough to size a model, not to read text."""


class Tokenizer(ABC):
    """Text to ids and back. Ids 0 .. vocab_size - 1; one of them, `eot_id`, only ever marks the end of a document.

    Mask and padding ids are the model's, not the tokenizer's: they are never stored in shards and lie at or above
    `vocab_size`. This module and its siblings import no torch: `data_prep` uses them.
    """

    name: str
    vocab_size: int  # counts the end-of-text id
    eot_id: int

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


def names() -> list[str]:
    """The tokenizers there are: the files of this folder."""
    return sorted(m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]) if m.name != "base")


def vocabulary_size(name: str) -> int:
    """Number of ids of the tokenizer called `name`, end-of-text included. Raises `UserError` where it is not known."""
    known = [*names(), *PUBLISHED]
    if name not in known:
        raise unknown("tokenizer: no variant", name, known)
    return load_tokenizer(name).vocab_size if name in names() else PUBLISHED[name]


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer called `name`. Raises `UserError` naming the ones there are."""
    if name not in names():
        raise unknown("tokenizer: no variant", name, names())
    module = importlib.import_module(f"{__package__}.{name}")
    [variant] = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Tokenizer) and value.__module__ == module.__name__
    ]
    return variant()
