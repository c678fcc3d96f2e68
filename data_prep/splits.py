"""On which side of training and validation a document stands: a function of its text, so that copies are together.

Decided before packing. It holds out exact copies (of the normalised text, where it is normalised) and no others: about
80 % of DCLM's documents have near-copies, which only a hold-out of whole files keeps apart.
"""

import hashlib
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

SPLIT_RULE = "blake2b-128 of the document's UTF-8 text: first 8 bytes mod 10000 < val_fraction * 10000 is validation"
NORMALISED_RULE = (
    "blake2b-128 of the document's text as UTF-8, in Unicode's form NFKC, case folded, runs of white space as one "
    "space, none at its ends: first 8 bytes mod 10000 < val_fraction * 10000 is validation"
)
HOLDOUT = "holdout"
"""The split of files that are held out whole."""

SplitOf = Callable[[str, bytes], str]  # a document's text and the digest of its UTF-8 bytes -> its split


def digest_of(raw: bytes) -> bytes:
    """What stands for a text."""
    return hashlib.blake2b(raw, digest_size=16).digest()


def normalised(text: str) -> str:
    """`text` without the differences that make no other document."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


@dataclass(frozen=True, slots=True)
class ByHash:
    """`SPLIT_RULE`, or `NORMALISED_RULE`, for a share of the documents in [0, 1)."""

    val_fraction: float
    normalise: bool = False

    def __call__(self, text: str, digest: bytes) -> str:
        if self.normalise:
            digest = digest_of(normalised(text).encode("utf-8", errors="replace"))
        return "val" if int.from_bytes(digest[:8], "big") % 10_000 < round(self.val_fraction * 10_000) else "train"


def held_out(text: str, digest: bytes) -> str:
    """Every document of a file that is held out whole."""
    return HOLDOUT
