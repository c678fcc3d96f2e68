"""`python -m data_prep merge`: the parts of a large text become one dataset, when all of them are there."""

import fcntl
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from data_prep.finish import write_dataset
from data_prep.parts import PartRecord, read_part, token_counts
from data_prep.plan import Plan, load_plan
from data_prep.splits import HOLDOUT, NORMALISED_RULE
from data_prep.spool import PACKING
from diffusion_lm.data.info import DatasetInfo, SplitInfo
from diffusion_lm.data.manifest import INCOMPLETE_FILE, SPLITS
from diffusion_lm.data.tokenizers.base import FILE_NAME, Tokenizer, load_tokenizer
from diffusion_lm.errors import UserError

PARTS_RULE = f"{PACKING}; in each part on its own"


def merge(out: Path, tokenizer_name: str | None = None) -> DatasetInfo:
    """Write `manifest.jsonl` and `dataset.json` of the parts in `out`. May be repeated, and done by several at once:
    the result is the same. Raises `UserError` where a part is missing, or there is no window of text."""
    plan = load_plan(out)
    tokenizer_name = tokenizer_name or plan.facts["tokenizer"]
    if tokenizer_name == FILE_NAME and not Path(tokenizer_name).is_file():
        raise UserError(f"{out}: its parts were made with a {FILE_NAME}; give --tokenizer PATH/{FILE_NAME}")
    tokenizer = load_tokenizer(tokenizer_name)
    if tokenizer.fingerprint != plan.facts["tokenizer_fingerprint"]:
        raise UserError(f"--tokenizer {tokenizer_name}: not the one of the parts in {out}, {plan.facts['tokenizer']}")
    records = [read_part(plan, part) for part in plan.parts]
    if missing := [part.name for part, record in zip(plan.parts, records) if record is None]:
        raise UserError(
            f"{out}: {len(missing)} of {len(records)} parts are not there yet, the first is {missing[0]}; make them: "
            "the same python -m data_prep tokenize again"
        )
    splits = _sum_splits(plan, records)
    _check_enough(plan, records, splits)
    _write(plan, records, splits, tokenizer)
    with held(plan.folder, alone=True) as alone:
        if alone:  # what is being written by another process is not left over
            left = [path for name in splits for path in out.glob(f".{name}-*.tmp")]
            for path in [*left, *plan.folder.glob(".part-*.tmp")]:
                path.unlink(missing_ok=True)
    (out / INCOMPLETE_FILE).unlink(missing_ok=True)
    return DatasetInfo.load(out)


@contextmanager
def held(folder: Path, *, alone: bool = False) -> Iterator[bool]:
    """Hold `folder` beside others that write to it, or `alone`: whether that was to be had, at once."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        got = True
    except OSError:  # held by others, or a file system that cannot lock
        got = False
    try:
        yield got
    finally:
        os.close(handle)


def notes_of(records: list[PartRecord]) -> dict[str, int]:
    """What was skipped in all parts together, and how often."""
    total: Counter[str] = Counter()
    for record in records:
        total.update(record.notes)
    return dict(sorted(total.items()))


def _sum_splits(plan: Plan, records: list[PartRecord]) -> dict[str, SplitInfo]:
    names = [*SPLITS, HOLDOUT] if any(part.split for part in plan.parts) else SPLITS
    of = {name: [record.splits[name] for record in records if name in record.splits] for name in names}
    fields = SplitInfo.__dataclass_fields__
    return {name: SplitInfo(**{f: sum(getattr(s, f) for s in some) for f in fields}) for name, some in of.items()}


def _check_enough(plan: Plan, records: list[PartRecord], splits: dict[str, SplitInfo]) -> None:
    said = "".join(f"; {count} {what}" for what, count in {**plan.notes, **notes_of(records)}.items())
    if not sum(split.documents for split in splits.values()):
        raise UserError(f"--source {' '.join(plan.facts['sources'])}: no text in it{said}")
    for name, split in splits.items():
        if not split.sequences and (name != "val" or plan.facts["val_fraction"]):
            raise UserError(
                f"{plan.out}: the {name} split has {split.documents} documents and {split.tokens} tokens, not one "
                f"window of {plan.facts['length']} in any part{said}; give more text, more --files-per-part, or a "
                "smaller --length"
            )


def _write(plan: Plan, records: list[PartRecord], splits: dict[str, SplitInfo], tokenizer: Tokenizer) -> None:
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    for part in plan.parts:
        counts += token_counts(plan, part)
    facts = {"files": sum(len(part.files) for part in plan.parts), "file_bytes": sum(part.bytes for part in plan.parts)}
    kept = ("length", "val_fraction", "records_per_shard")
    write_dataset(
        plan.out,
        [shard for name in splits for record in records for shard in record.shards if shard.split == name],
        tokenizer=tokenizer,
        splits=splits,
        token_counts=counts,
        source=" + ".join(plan.facts["sources"]),
        sources=plan.facts["sources"],
        source_facts={**facts, **plan.notes, **notes_of(records), "plan": plan.id},
        packing=PARTS_RULE,
        split_rule=NORMALISED_RULE,
        duplicate_documents=sum(record.duplicates for record in records),
        parts=len(plan.parts),
        **{name: plan.facts[name] for name in kept},
    )
