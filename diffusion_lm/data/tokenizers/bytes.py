"""UTF-8 bytes as tokens: ids 0 .. 255 are the byte's value, 256 is the end of a text. Needs no vocabulary file."""

import hashlib

import numpy as np

from diffusion_lm.data.tokenizers.base import EOT_TEXT, Tokenizer

NO_TEXT = 0xFF  # occurs in no UTF-8 text, so that it decodes to U+FFFD


class Bytes(Tokenizer):
    """257 ids: the 256 bytes and end-of-text."""

    name = "bytes"
    vocab_size = 257
    eot_id = 256

    def encode_ordinary(self, text: str) -> np.ndarray:
        """Bytes [n] of `text` as int64. A lone surrogate, which UTF-8 cannot write, becomes ``?``."""
        return np.frombuffer(text.encode("utf-8", errors="replace"), dtype=np.uint8).astype(np.int64)

    def decode(self, ids: np.ndarray) -> str:
        """Text of `ids` [n]; see the contract."""
        ids = np.asarray(ids)
        plain = np.where((ids >= 0) & (ids < 256), ids, NO_TEXT).astype(np.uint8)
        ends = np.flatnonzero(ids == self.eot_id)
        starts = np.concatenate([[0], ends + 1])
        stops = np.concatenate([ends, [len(ids)]])
        return EOT_TEXT.join(plain[a:b].tobytes().decode("utf-8", errors="replace") for a, b in zip(starts, stops))

    def byte_counts(self, ids: np.ndarray) -> np.ndarray:
        """One for every id but end-of-text."""
        return (np.asarray(ids) != self.eot_id).astype(np.int64)

    @property
    def fingerprint(self) -> str:
        """Hash of the rule: there is no vocabulary that could differ."""
        return hashlib.sha256(b"utf-8 bytes are ids 0..255; 256 is end of text").hexdigest()[:16]
