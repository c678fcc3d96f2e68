"""`python -m data_prep shard`: from documents to a complete dataset folder, or to nothing under a final name."""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.finish import write_dataset
from data_prep.shards import write_shards
from data_prep.sources import Source, open_source
from data_prep.splits import SPLIT_RULE, ByHash
from data_prep.spool import PACKING, Spool, pack
from diffusion_lm.data.info import DatasetInfo, tokenize_command
from diffusion_lm.data.manifest import (
    DATASET_FILE,
    INCOMPLETE_FILE,
    MANIFEST_FILE,
    PLAN_FILE,
    ROWS_PER_RECORD,
    SPLITS,
)
from diffusion_lm.data.tokenizers.base import Tokenizer, load_tokenizer, stored_name
from diffusion_lm.errors import UserError

LEFTOVERS = ["train-*.tar", "val-*.tar", "*.tar.crc32", MANIFEST_FILE, ".*.tmp"]  # of a process that was killed


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a person asks for."""

    source: str = "python-docs"
    out: Path = Path("shards/python_docs")
    tokenizer: str = "bytes"
    length: int = 128
    val_fraction: float = 0.05
    records_per_shard: int = 1024

    def check(self) -> None:
        """Raise `UserError` for a number out of range."""
        for name, low in (("length", 2), ("records_per_shard", 1)):
            if getattr(self, name) < low:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be {low} or more")
        if not 0 <= self.val_fraction < 1:
            raise UserError(f"--val-fraction {self.val_fraction}: must be in [0, 1)")


def shard(settings: Settings) -> tuple[DatasetInfo, list[str]]:
    """Make the dataset, unless it is there. Returns its facts and what to tell the person.

    Raises `UserError`, with nothing written, when an argument or the source is bad, when the folder holds another
    dataset or other files, or when another process is writing to it.
    """
    settings.check()
    tokenizer = load_tokenizer(settings.tokenizer)
    source = open_source(settings.source)
    check_place(settings.out, source.name)
    check_no_parts(settings.out)
    if info := _existing(settings, source):
        return info, [f"{settings.out} already holds this dataset; nothing written"]
    with Spool(nearest_folder(settings.out), tokenizer, ByHash(settings.val_fraction)) as spool:
        empty = 0
        for text in source.documents():
            if text.strip():
                spool.add(text)
            else:
                empty += 1
        notes = [f"{count} {what}" for what, count in source.notes.items()]
        notes += [f"{empty} documents without text skipped"] if empty else []
        _check_enough(settings, spool, notes)
        with being_written(settings.out):
            if not _existing(settings, source):  # another process may have made it while this one read the source
                _write(settings, source, tokenizer, spool)
    if spool.duplicates:
        notes.append(f"{spool.duplicates} documents are exact copies of others (kept, on the same side of the split)")
    return DatasetInfo.load(settings.out), notes


def check_place(out: Path, source: str) -> None:
    """Raise `UserError` where `out` is no place for a dataset of the text in `source`."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file, expected a folder")
    if out.resolve().is_relative_to(source):
        raise UserError(f"--out {out}: lies inside --source {source}; shards need a folder of their own")
    ours = (DATASET_FILE, INCOMPLETE_FILE, PLAN_FILE)
    if out.is_dir() and any(out.iterdir()) and not any((out / name).exists() for name in ours):
        raise UserError(f"--out {out}: holds other files and no dataset; give a new or empty folder")


def check_no_parts(out: Path) -> None:
    """Raise `UserError` where `out` has what `tokenize` made: this command would remove it."""
    if (out / PLAN_FILE).exists():
        raise UserError(
            f"--out {out}: holds parts that tokenize made; nothing written: give another --out, or go on with them: "
            f"{tokenize_command(out)}"
        )


def _existing(settings: Settings, source: Source) -> DatasetInfo | None:
    if not (settings.out / DATASET_FILE).exists():
        return None
    info = DatasetInfo.load(settings.out)
    names = ("tokenizer", "length", "val_fraction", "records_per_shard")
    asked = {"source": source.name, **{name: getattr(settings, name) for name in names}}
    asked["tokenizer"] = stored_name(settings.tokenizer)
    made = {name: getattr(info, name) for name in asked}
    if made == asked and not source.unchanged(info.source_facts):
        asked, made = source.facts(), info.source_facts
    differences = [f"{name}={made.get(name)} (asked: {asked[name]})" for name in asked if made.get(name) != asked[name]]
    if differences:
        raise UserError(
            f"{settings.out}: holds a dataset made with {', '.join(differences)}; nothing written: "
            "give another --out, or remove that folder first"
        )
    return info


def nearest_folder(path: Path) -> Path:
    """The first of `path` and its parents that exists: on the disk of the shards, with nothing created."""
    folder = next(folder for folder in (path.absolute(), *path.absolute().parents) if os.path.lexists(folder))
    if not folder.is_dir():
        raise UserError(f"--out {path}: cannot be made (Not a directory): {folder} is a file; give another place")
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"--out {path}: {folder} is not writable ({error.strerror}); give another place") from None
    return folder


def make_folder(out: Path) -> None:
    """Make the folder `out`, or raise `UserError`."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be made ({error.strerror}); give another place") from None


def _check_enough(settings: Settings, spool: Spool, notes: list[str]) -> None:
    counts = {split: spool.info(split, settings.length) for split in SPLITS}
    if not sum(count.documents for count in counts.values()):
        raise UserError(f"--source '{settings.source}': no text in it" + "".join(f"; {note}" for note in notes))
    needed = SPLITS if settings.val_fraction else ("train",)
    for split in needed:
        if not counts[split].sequences:
            raise UserError(
                f"--source '{settings.source}': the {split} split has {counts[split].documents} documents and "
                f"{counts[split].tokens} tokens, not one window of {settings.length}; give more text, a smaller "
                f"--length or another --val-fraction (now {settings.val_fraction})"
            )


@contextlib.contextmanager
def being_written(out: Path) -> Iterator[None]:
    """Hold the folder for this process, with what an earlier one left removed; a mark says that it is not whole."""
    make_folder(out)
    mark = out / INCOMPLETE_FILE
    with mark.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--out {out}: another process is writing to it; wait for that one") from None
        check_no_parts(out)  # `tokenize` may have begun since
        if not (out / DATASET_FILE).exists():
            for pattern in LEFTOVERS:
                for path in out.glob(pattern):
                    path.unlink()
        yield
        mark.unlink(missing_ok=True)


def _write(settings: Settings, source: Source, tokenizer: Tokenizer, spool: Spool) -> None:
    shards = []
    for split in SPLITS:
        records = pack(spool.documents(split), settings.length, ROWS_PER_RECORD)
        shards += write_shards(
            settings.out, split, records, settings.records_per_shard, eot_id=tokenizer.eot_id, dtype=spool.dtype
        )
    write_dataset(
        settings.out,
        shards,
        tokenizer=tokenizer,
        splits={split: spool.info(split, settings.length) for split in SPLITS},
        token_counts=spool.token_counts,
        source=source.name,
        source_facts=source.facts(),
        length=settings.length,
        packing=PACKING,
        split_rule=SPLIT_RULE,
        val_fraction=settings.val_fraction,
        records_per_shard=settings.records_per_shard,
        duplicate_documents=spool.duplicates,
    )
