"""The last step of making a dataset: `manifest.jsonl`, then `dataset.json`, whose presence means that all is there."""

import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np

from diffusion_lm.data.info import DatasetInfo, SplitInfo
from diffusion_lm.data.manifest import (
    DATASET_FILE,
    MANIFEST_FILE,
    VERSION,
    Shard,
    corpus_hash,
    manifest_text,
    sealed,
)
from diffusion_lm.data.tokenizers.base import FILE_NAME, Tokenizer
from diffusion_lm.files import write_json, write_text


def dtype_of(vocab_size: int) -> str:
    """How ids are stored: two bytes each where they fit."""
    return "<u2" if vocab_size <= 2**16 else "<u4"


def write_dataset(
    out: Path,
    shards: Sequence[Shard],
    *,
    tokenizer: Tokenizer,
    splits: dict[str, SplitInfo],
    token_counts: np.ndarray,
    **facts: object,
) -> None:
    """Declare `shards`, which lie in `out`, a dataset. `token_counts` [V] are of all its text; `facts` are the other
    fields of `DatasetInfo`. A tokenizer that was read from a file is copied beside the shards."""
    if tokenizer.name == FILE_NAME:
        tokenizer.copy_to(out)
    tokens, text_bytes = (sum(getattr(info, name) for info in splits.values()) for name in ("tokens", "text_bytes"))
    info = DatasetInfo(
        path=out,
        name=out.resolve().name,
        version=VERSION,
        tokenizer=tokenizer.name,
        tokenizer_fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        eot_id=tokenizer.eot_id,
        dtype=dtype_of(tokenizer.vocab_size),
        splits=splits,
        unigram_entropy=entropy(token_counts),
        bytes_per_token=text_bytes / tokens,
        corpus_hash="",
        code_version=code_version(),
        **facts,
    )
    written = asdict(info)
    del written["path"]
    written["corpus_hash"] = corpus_hash(info.content_facts(), shards)
    write_text(out / MANIFEST_FILE, manifest_text(shards))
    write_json(out / DATASET_FILE, sealed(written, manifest_text(shards)))


def entropy(counts: np.ndarray) -> float:
    """Entropy in nats of the distribution with these counts [V]."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def code_version() -> str:
    """The package's version, and the commit where it runs from a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return version("diffusion-lm")
    return f"{version('diffusion-lm')} {done.stdout.strip()}".strip()
