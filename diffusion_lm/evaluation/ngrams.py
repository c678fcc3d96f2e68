"""Do samples look like the text? The share of their token 3-grams that are common in the training text.

A crude measure, and one that a copy of a single sentence would pass; it tells noise from text, which is what a run of
minutes needs to know. It is read beside the same share for a sampler that draws tokens by their frequencies alone, and
for the validation text itself. "Common" means `COMMON` occurrences: that a 3-gram occurs at all says little, of the
default corpus (1.6 MB of bytes) 58 % of a unigram sampler's 3-grams do, and 99 % of real text's.
"""

from dataclasses import dataclass

import numpy as np

from diffusion_lm.data.info import TokenDataConfig
from diffusion_lm.data.open import open_tokens

ORDER = 3
COMMON = 50


@dataclass(frozen=True)
class NgramShares:
    """Shares in [0, 1] of 3-grams that occur at least so often in the training text."""

    samples: float
    unigram_sampler: float
    validation_text: float


def ngram_shares(samples: np.ndarray, data: TokenDataConfig, seed: int, occurrences: int = COMMON) -> NgramShares:
    """The shares for sampled tokens [n, L], for as many tokens drawn by their frequencies, and for validation text."""
    text, held_out = (_all_tokens(data, split) for split in ("train", "val"))
    codes, counts = np.unique(_codes(text.reshape(1, -1)), return_counts=True)
    common = codes[counts >= occurrences]
    frequencies = np.bincount(text.ravel()) / text.size
    drawn = np.random.default_rng(seed).choice(len(frequencies), size=samples.shape, p=frequencies)
    return NgramShares(*(float(np.isin(_codes(rows), common).mean()) for rows in (samples, drawn, held_out)))


def _all_tokens(data: TokenDataConfig, split: str) -> np.ndarray:
    tokens = open_tokens(data, split)
    return tokens.read(np.arange(len(tokens))).rows


def _codes(rows: np.ndarray) -> np.ndarray:
    """One integer per 3-gram of ids below 2^20."""
    width = rows.shape[1] - ORDER + 1
    a, b, c = (rows[:, k : k + width].astype(np.int64) for k in range(ORDER))
    return (a << 40) + (b << 20) + c
