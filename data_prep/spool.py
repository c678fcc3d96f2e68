"""Tokenised documents on disk until their order is known: documents stream in, each split streams out, mixed.

Memory holds an index (some 200 bytes per document), the tokens lie in an unnamed file that vanishes with the process.
"""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from diffusion_lm.data.info import SplitInfo
from diffusion_lm.data.manifest import DTYPE, SPLITS
from diffusion_lm.data.tokenizers.base import Tokenizer

SPLIT_RULE = "blake2b-128 of the document's UTF-8 text: first 8 bytes mod 10000 < val_fraction * 10000 is validation"
PACKING = "documents in the order of a hash of their text, each followed by eot_id, concatenated, cut into windows"

Place = tuple[bytes, int, int]  # order key, first token, token after the last


class Spool:
    """Documents with their tokens; `split` and order are functions of a document's text (and of which copy it is)."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, val_fraction: float):
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - lives as long as the spool
        self._tokenizer = tokenizer
        self._threshold = round(val_fraction * 10_000)
        self._copies: Counter[bytes] = Counter()
        self._places: dict[str, list[Place]] = {split: [] for split in SPLITS}
        self._text_bytes: Counter[str] = Counter()
        self._end = 0  # tokens written
        self.token_counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, text: str) -> None:
        """Tokenise one document. Exact copies are kept and share a side."""
        raw = text.encode("utf-8", errors="replace")
        digest = hashlib.blake2b(raw, digest_size=16).digest()
        split = "val" if is_validation(digest, self._threshold) else "train"
        tokens = np.append(self._tokenizer.encode_ordinary(text), self._tokenizer.eot_id)
        self._file.write(tokens.astype(DTYPE).tobytes())
        self._places[split].append((_order_key(digest, self._copies[digest]), self._end, self._end + len(tokens)))
        self._copies[digest] += 1
        self._text_bytes[split] += len(raw)
        self._end += len(tokens)
        self.token_counts += np.bincount(tokens, minlength=len(self.token_counts))

    @property
    def duplicates(self) -> int:
        """Documents that are an exact copy of an earlier one."""
        return self._copies.total() - len(self._copies)

    def info(self, split: str, length: int) -> SplitInfo:
        """Counts of a split when it is cut into windows of `length`."""
        tokens = sum(stop - start for _, start, stop in self._places[split])
        return SplitInfo(
            documents=len(self._places[split]),
            tokens=tokens,
            text_bytes=self._text_bytes[split],
            sequences=tokens // length,
            dropped_tokens=tokens % length,
        )

    def documents(self, split: str) -> Iterator[np.ndarray]:
        """The tokens [n] of each document of `split`, end-of-text last, in an order that mixes the source's."""
        self._file.flush()
        tokens = np.memmap(self._file, dtype=DTYPE, mode="r")
        for _, start, stop in sorted(self._places[split]):
            yield tokens[start:stop]


def is_validation(digest: bytes, threshold: int) -> bool:
    """`SPLIT_RULE`, with `threshold` = val_fraction * 10000."""
    return int.from_bytes(digest[:8], "big") % 10_000 < threshold


def pack(documents: Iterator[np.ndarray], length: int, rows: int) -> Iterator[np.ndarray]:
    """Concatenate and cut: arrays [rows, length], the last with fewer rows; what fills no window is dropped."""
    held: list[np.ndarray] = []
    count = 0
    for tokens in documents:
        held.append(tokens)
        count += len(tokens)
        if count >= rows * length:
            flat = np.concatenate(held)
            whole = count - count % (rows * length)
            yield from flat[:whole].reshape(-1, rows, length)
            held, count = [flat[whole:]], count - whole
    if whole := count - count % length:
        yield np.concatenate(held)[:whole].reshape(-1, length)


def _order_key(digest: bytes, copy: int) -> bytes:
    # copies of a text must not stand side by side, so which copy it is enters the key
    return hashlib.blake2b(digest + copy.to_bytes(8, "big"), digest_size=16, person=b"document order").digest()
