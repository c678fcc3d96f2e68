"""A dataset for a person's eyes."""

import math
from pathlib import Path

from diffusion_lm.data.dataset import ShardedTokens
from diffusion_lm.data.info import DatasetInfo
from diffusion_lm.data.tokenizers.base import dataset_tokenizer
from diffusion_lm.errors import UserError


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
    return "\n".join([
        *lines,
        f"entropy     unigram {info.unigram_entropy:.4f} nats per token, log V {math.log(info.vocab_size):.4f}; "
        f"{info.bytes_per_token:.4f} bytes per token",
        f"hash        {info.corpus_hash}",
    ])  # fmt: skip


def show(folder: Path, split: str, windows: int) -> None:
    """Print the facts and `windows` sequences of `split`, evenly spread, as text. Raises `UserError`."""
    tokens = ShardedTokens(folder, split)
    if windows < 0:
        raise UserError(f"--windows {windows}: must be 0 or more")
    tokenizer = dataset_tokenizer(tokens.info.path, tokens.info.tokenizer)
    print(summary(tokens.info))
    windows = min(windows, len(tokens))
    for number in range(windows):
        index = number * len(tokens) // windows
        print(f"\n{split} sequence {index}:\n{tokenizer.decode(tokens[index])}")
