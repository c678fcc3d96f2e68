"""A dataset for a person's eyes."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffusion_lm.data.info import DatasetInfo, TokenDataConfig
from diffusion_lm.data.open import open_tokens
from diffusion_lm.data.order import spread_evenly
from diffusion_lm.data.reader import TokenReader
from diffusion_lm.data.tokenizers.base import Tokenizer, dataset_tokenizer
from diffusion_lm.errors import UserError

LOOKED_AT = 4096
"""Sequences from which frequencies and lengths are read, side by side, so that documents are whole."""
MOST_FREQUENT = 8


@dataclass(frozen=True, slots=True)
class Sample:
    """Of side-by-side sequences: counts [V] of the ids, lengths of the documents that begin and end among them."""

    sequences: int
    counts: np.ndarray
    lengths: np.ndarray


def summary(info: DatasetInfo) -> str:
    """Facts, one per line."""
    source = ", ".join(f"{name} {value}" for name, value in info.source_facts.items())
    lines = [
        f"dataset     {info.path}  (version {info.version})",
        f"source      {info.source}  ({source})",
        f"tokenizer   {info.tokenizer}, {info.vocab_size} ids, end of text = {info.eot_id}",
        f"sequences   of {info.length} tokens",
    ]
    for split, counts in info.splits.items():
        lines.append(
            f"{split:<11} {counts.documents:,} documents, {counts.text_bytes:,} bytes, {counts.tokens:,} tokens, "
            f"{counts.sequences:,} sequences, {counts.dropped_tokens} tokens dropped"
        )
    floor = "" if info.entropy_rate is None else f"; entropy rate {info.entropy_rate:.4f} nats per token"
    return "\n".join([
        *lines,
        f"entropy     unigram {info.unigram_entropy:.4f} nats per token, log V {math.log(info.vocab_size):.4f}; "
        f"{info.bytes_per_token:.4f} bytes per token{floor}",
        f"hash        {info.corpus_hash}",
    ])  # fmt: skip


def show(folder: Path | str, split: str, windows: int) -> None:
    """Print the facts, what a part of `split` is made of, and `windows` sequences as text. Raises `UserError`."""
    if windows < 0:
        raise UserError(f"--windows {windows}: must be 0 or more")
    tokens = open_tokens(TokenDataConfig(path=str(folder)), split)
    print(summary(tokens.info))
    tokenizer = dataset_tokenizer(tokens.info.path, tokens.info.tokenizer)
    if len(tokens):
        print("\n".join(_lines(look_at(tokens, tokenizer.eot_id), tokenizer)))
    for index in spread_evenly(min(windows, len(tokens)), len(tokens)).tolist():
        print(f"\n{split} sequence {index} ({tokens.place(index)}):\n{tokenizer.decode(tokens[index])}")


def look_at(tokens: TokenReader, eot_id: int, most: int = LOOKED_AT) -> Sample:
    """Count over the first `most` sequences of a split."""
    stream = tokens.read(np.arange(min(most, len(tokens)))).rows.reshape(-1)
    ends = np.flatnonzero(stream == eot_id)
    lengths = np.diff(np.concatenate([[-1], ends])) - 1  # without the end of text
    return Sample(len(stream) // tokens.info.length, np.bincount(stream), lengths)


def _lines(sample: Sample, tokenizer: Tokenizer) -> list[str]:
    total = sample.counts.sum()
    often = np.argsort(-sample.counts, kind="stable")[:MOST_FREQUENT]
    texts = [tokenizer.decode(often[place : place + 1]) for place in range(len(often))]
    shown = ", ".join(f"{text!r} {sample.counts[i] / total:.1%}" for text, i in zip(texts, often))
    used = int((sample.counts > 0).sum())
    lines = [f"frequent    {shown} of {total:,} tokens; {used:,} of {tokenizer.vocab_size:,} ids occur"]
    if len(sample.lengths):
        low, median, high = np.quantile(sample.lengths, [0.1, 0.5, 0.9])
        lines.append(
            f"documents   {len(sample.lengths):,} end in {sample.sequences:,} sequences, "
            f"{len(sample.lengths) / sample.sequences:.2f} a sequence; tokens: mean {sample.lengths.mean():.0f}, 10 % "
            f"{low:.0f}, median {median:.0f}, 90 % {high:.0f}, most {sample.lengths.max():,}"
        )
    return lines
