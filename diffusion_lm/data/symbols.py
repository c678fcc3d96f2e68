"""Numbers without text: `tokenizer: ids:N`, for sequences that no text stands behind (`python -m data_prep synth`)."""

import hashlib

import numpy as np

from diffusion_lm.data.tokenizers.base import EOT_TEXT, Tokenizer
from diffusion_lm.errors import UserError


class Symbols(Tokenizer):
    """Ids 0 .. N - 2 and end-of-text, N - 1. Text is the ids in decimal, with spaces between; other text is refused.
    Bits per byte mean nothing here: a symbol counts as one byte."""

    def __init__(self, name: str):
        size = name.removeprefix("ids:")
        if not size.isdecimal() or int(size) < 2:
            raise UserError(f"tokenizer: got '{name}', expected ids:N with N of 2 or more")
        self.vocab_size = int(size)
        self.eot_id = self.vocab_size - 1
        self.name = f"ids:{self.vocab_size}"

    def encode_ordinary(self, text: str) -> np.ndarray:
        """The ids [n] that `text` lists. Raises `UserError` for anything else."""
        words = text.split()
        if not all(word.isdecimal() and int(word) < self.eot_id for word in words):
            raise UserError(f"tokenizer {self.name}: got '{text[:40]}', expected numbers below {self.eot_id}")
        return np.array([int(word) for word in words], dtype=np.int64)

    def decode(self, ids: np.ndarray) -> str:
        """The ids in decimal."""
        return " ".join(map(self._word, np.asarray(ids).tolist()))

    def byte_counts(self, ids: np.ndarray) -> np.ndarray:
        """One for every id but end-of-text."""
        return (np.asarray(ids) != self.eot_id).astype(np.int64)

    @property
    def fingerprint(self) -> str:
        """Hash of the rule."""
        return hashlib.sha256(f"{self.name}: decimal numbers".encode()).hexdigest()[:16]

    def _word(self, number: int) -> str:
        if number == self.eot_id:
            return EOT_TEXT
        return str(number) if 0 <= number < self.vocab_size else "\ufffd"
