"""`python -m data_prep synth`: shards of sequences whose entropy is known, ids without text.

`entropy_rate` in dataset.json is the floor of every likelihood in nats per token, `entropy` of the source. The
tokenizer is `ids:N`; its last id, end-of-text, never occurs.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_prep.build import being_written, check_no_parts, check_place, nearest_folder
from data_prep.finish import dtype_of, write_dataset
from data_prep.sequences import SequenceSource
from data_prep.shards import write_shards
from diffusion_lm.data.info import DatasetInfo, SplitInfo
from diffusion_lm.data.manifest import DATASET_FILE, ROWS_PER_RECORD, SPLITS
from diffusion_lm.data.symbols import Symbols
from diffusion_lm.errors import UserError

PACKING = "every window is a sequence of its own"
SPLIT_RULE = "drawn apart: blocks of 64 rows from (seed, split, block)"


def synth(
    kind: str, source: SequenceSource, out: Path, *, seed: int, sequences: dict[str, int], records_per_shard: int = 1024
) -> DatasetInfo:
    """Write `sequences[split]` rows of each split, unless they are there. Raises `UserError` for bad numbers, or a
    place that is taken."""
    for split, count in sequences.items():
        if count < 1:
            raise UserError(f"--{split} {count}: must be 1 or more sequences")
    check_place(out, f"synth:{kind}")
    check_no_parts(out)
    facts = {**source.facts(), "seed": seed}
    splits = {split: _info(sequences[split], source.length) for split in SPLITS}
    if (out / DATASET_FILE).exists():
        return _existing(out, (f"synth:{kind}", facts, splits, source.length, records_per_shard))
    nearest_folder(out)
    tokenizer = Symbols(f"ids:{source.symbols + 1}")
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    shards = []
    with being_written(out):
        for number, split in enumerate(SPLITS):
            blocks = _blocks(source, [seed, number], sequences[split], counts)
            dtype = dtype_of(tokenizer.vocab_size)
            shards += write_shards(out, split, blocks, records_per_shard, eot_id=tokenizer.eot_id, dtype=dtype)
        write_dataset(
            out,
            shards,
            tokenizer=tokenizer,
            splits=splits,
            token_counts=counts,
            source=f"synth:{kind}",
            source_facts=facts,
            length=source.length,
            packing=PACKING,
            split_rule=SPLIT_RULE,
            val_fraction=sequences["val"] / sum(sequences.values()),
            records_per_shard=records_per_shard,
            duplicate_documents=0,
            entropy_rate=source.entropy,
        )
    return DatasetInfo.load(out)


def _existing(out: Path, asked: tuple) -> DatasetInfo:
    """The dataset that is there. asked: source, its facts, splits, length, records per shard."""
    info = DatasetInfo.load(out)
    if asked != (info.source, info.source_facts, info.splits, info.length, info.records_per_shard):
        raise UserError(
            f"--out {out}: holds another dataset already; nothing written: give another, or remove that folder"
        )
    return info


def _blocks(source: SequenceSource, key: list[int], count: int, counts: np.ndarray) -> Iterator[np.ndarray]:
    for block in range(-(-count // ROWS_PER_RECORD)):
        rows = source.rows(np.random.default_rng([*key, block]), ROWS_PER_RECORD)
        rows = rows[: count - block * ROWS_PER_RECORD]
        counts += np.bincount(rows.reshape(-1), minlength=len(counts))
        yield rows


def _info(sequences: int, length: int) -> SplitInfo:
    tokens = sequences * length
    return SplitInfo(documents=sequences, tokens=tokens, text_bytes=tokens, sequences=sequences, dropped_tokens=0)
