"""One part of a large text into shards of its own, and the record that says that they are all there."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import zstandard

from data_prep.plan import Part, Plan
from data_prep.shards import write_shards
from data_prep.splits import ByHash, held_out
from data_prep.spool import Spool, pack
from data_prep.text_files import TextFiles, UnreadableFile
from diffusion_lm.data.info import SplitInfo
from diffusion_lm.data.manifest import ROWS_PER_RECORD, Shard
from diffusion_lm.data.tokenizers.base import Tokenizer
from diffusion_lm.errors import UserError
from diffusion_lm.files import atomic_path, write_json


@dataclass(frozen=True, kw_only=True, slots=True)
class PartRecord:
    """`part-NNNNN.json`, written after the shards: what came of a part. plan: `Plan.part_id` when it was made; notes:
    what was skipped, and how often."""

    plan: str
    shards: list[Shard]
    splits: dict[str, SplitInfo]
    duplicates: int
    notes: dict[str, int]


def write_part(plan: Plan, part: Part, tokenizer: Tokenizer, *, skip_bad_files: bool = False) -> PartRecord:
    """Tokenise the files of `part`. Same files, same bytes. A file that is cut or damaged is an `UnreadableFile`, or,
    by choice, left out whole and told in the notes: what stands before the damage may be damaged too."""
    bad: dict[Path, str] = {}
    while True:
        try:
            return _write_part(plan, part, tokenizer, bad)
        except UnreadableFile as error:
            if not skip_bad_files:
                raise
            bad[error.path] = f"files left out, not readable to their end: {error.path} ({error.why})"


def _write_part(plan: Plan, part: Part, tokenizer: Tokenizer, bad: dict[Path, str]) -> PartRecord:
    split_of = held_out if part.split else ByHash(plan.facts["val_fraction"], normalise=True)
    length, shards = plan.facts["length"], []
    with Spool(plan.out, tokenizer, split_of, part.splits) as spool:
        notes = _add_all(part, spool, bad) | dict.fromkeys(bad.values(), 1)
        for split in part.splits:
            shards += write_shards(
                plan.out,
                split,
                pack(spool.documents(split), length, ROWS_PER_RECORD),
                plan.facts["records_per_shard"],
                eot_id=tokenizer.eot_id,
                dtype=spool.dtype,
                part=part.name,
            )
        splits = {split: spool.info(split, length) for split in part.splits}
        made_of = plan.part_id(part)
        record = PartRecord(plan=made_of, shards=shards, splits=splits, duplicates=spool.duplicates, notes=notes)
        with atomic_path(_counts_file(plan, part)) as temporary:
            temporary.write_bytes(zstandard.compress(spool.token_counts.astype("<i8").tobytes()))
    kept = {name for shard in shards for name in (shard.shard, shard.crc)}
    for path in [path for split in part.splits for path in plan.out.glob(f"{split}-{part.name}-*")]:
        if path.name not in kept:
            path.unlink(missing_ok=True)  # of the part as it was before its files changed
    write_json(_record_file(plan, part), asdict(record))
    return record


def read_part(plan: Plan, part: Part) -> PartRecord | None:
    """What came of `part`; None where it is not there, is of other files, or a shard is missing or cut."""
    try:
        found = json.loads(_record_file(plan, part).read_text(encoding="utf-8"))
        found["shards"] = [Shard(**shard) for shard in found["shards"]]
        found["splits"] = {split: SplitInfo(**counts) for split, counts in found["splits"].items()}
        record = PartRecord(**found)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    whole = all(
        _size(plan.out / shard.shard) == shard.bytes and (plan.out / shard.crc).is_file() for shard in record.shards
    )
    return record if whole and record.plan == plan.part_id(part) and _counts_file(plan, part).is_file() else None


def token_counts(plan: Plan, part: Part) -> np.ndarray:
    """How often each id occurs in a part that is there, int64 [V]."""
    return np.frombuffer(zstandard.decompress(_counts_file(plan, part).read_bytes()), dtype="<i8")


def _add_all(part: Part, spool: Spool, bad: dict[Path, str]) -> dict[str, int]:
    notes: dict[str, int] = {}
    for source, name, size in part.files:
        path = Path(source) / name if Path(source).is_dir() else Path(source)
        if path in bad:
            continue
        if _size(path) != size:
            raise UserError(f"{path}: has {_size(path)} bytes, the plan says {size}; run the same command again")
        texts = TextFiles(path)
        for text in texts.read(path):
            if text.strip():
                spool.add(text)
            else:
                texts.notes["documents without text skipped"] += 1
        for what, count in texts.notes.items():
            notes[what] = notes.get(what, 0) + count
    return notes


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _record_file(plan: Plan, part: Part) -> Path:
    return plan.folder / f"part-{part.name}.json"


def _counts_file(plan: Plan, part: Part) -> Path:
    return plan.folder / f"part-{part.name}.counts.zst"
