"""Tokenised documents on disk until their order is known: documents stream in, each split streams out, mixed.

Memory holds an index (some 200 bytes per document), the tokens lie in an unnamed file that vanishes with the process.
"""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data_prep.finish import dtype_of
from data_prep.splits import SplitOf, digest_of
from diffusion_lm.data.info import SplitInfo
from diffusion_lm.data.manifest import SPLITS
from diffusion_lm.data.tokenizers.base import Tokenizer

PACKING = "documents in the order of a hash of their text, each followed by eot_id, concatenated, cut into windows"

HELD_TOKENS = 2**18  # gathered before they are written and counted: counting costs as much as the vocabulary is large

Place = tuple[bytes, int, int]  # order key, first token, token after the last


class Spool:
    """Documents with their tokens; `split` and order are functions of a document's text (and of which copy it is)."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, split_of: SplitOf, splits: Sequence[str] = SPLITS):
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - lives as long as the spool
        self._tokenizer = tokenizer
        self._split_of = split_of
        self.splits = splits
        self.dtype = dtype_of(tokenizer.vocab_size)
        self._copies: Counter[bytes] = Counter()
        self._places: dict[str, list[Place]] = {split: [] for split in splits}
        self._text_bytes: Counter[str] = Counter()
        self._end = 0  # tokens added
        self._held: list[np.ndarray] = []
        self._held_tokens = 0
        self._token_counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, text: str) -> None:
        """Tokenise one document. Exact copies are kept and share a side."""
        raw = text.encode("utf-8", errors="replace")
        digest = digest_of(raw)
        split = self._split_of(text, digest)
        tokens = np.append(self._tokenizer.encode_ordinary(text), self._tokenizer.eot_id)
        self._places[split].append((_order_key(digest, self._copies[digest]), self._end, self._end + len(tokens)))
        self._copies[digest] += 1
        self._text_bytes[split] += len(raw)
        self._end += len(tokens)
        self._held.append(tokens)
        self._held_tokens += len(tokens)
        if self._held_tokens >= HELD_TOKENS:
            self._write()

    @property
    def token_counts(self) -> np.ndarray:
        """How often each id occurs, int64 [V], end-of-text included."""
        self._write()
        return self._token_counts

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
        self._write()
        self._file.flush()
        places = sorted(self._places[split])
        tokens = np.memmap(self._file, dtype=self.dtype, mode="r") if places else np.empty(0, self.dtype)
        for _, start, stop in places:
            yield tokens[start:stop]

    def _write(self) -> None:
        if self._held:
            tokens = np.concatenate(self._held)
            self._file.write(tokens.astype(self.dtype).tobytes())
            self._token_counts += np.bincount(tokens, minlength=len(self._token_counts))
            self._held, self._held_tokens = [], 0


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
