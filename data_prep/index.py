"""`python -m data_prep index`: what DCLM's tokenised shards lack so that they can be read at random: where each context
lies and its checksum, counts, facts. Everything is read and checked once; the shards themselves are not touched."""

import contextlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from data_prep.dclm_shard import Dialect, Indexed, index_shard
from data_prep.finish import dtype_of, entropy
from diffusion_lm.data.dclm import PARSERS
from diffusion_lm.data.info import MARKED, DatasetInfo, SplitInfo
from diffusion_lm.data.manifest import DATASET_FILE, MANIFEST_FILE, SPLITS, VERSION, corpus_hash, manifest_text, sealed
from diffusion_lm.data.tokenizers.base import FILE_NAME, Tokenizer, load_tokenizer, stored_name
from diffusion_lm.errors import UserError
from diffusion_lm.files import write_json, write_text

INDEX_FILE = "index.jsonl"
COUNTS = ("num_sequences", "num_chunks")
"""What DCLM's manifests call the number of contexts, now and before."""
SHOWN = 12
"""Problems that are named in an error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexSettings:
    """What a person knows of the shards, and wants of them."""

    folder: Path
    out: Path | None = None
    tokenizer: str = "gpt2"
    eot_id: int = 0
    pad_id: int = 50259
    vocab_size: int = 50257
    context: int = 2049
    length: int = 1024
    val_shards: int = 1
    processes: int = 1
    repair: bool = False

    def check(self) -> None:
        """Raise `UserError` for a number out of range."""
        low = {"length": 2, "context": 2, "vocab_size": 1, "processes": 1, "eot_id": 0, "pad_id": 0, "val_shards": 0}
        for name, least in low.items():
            if getattr(self, name) < least:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be {least} or more")
        if self.length > self.context:
            raise UserError(
                f"--length {self.length}: a context has {self.context} tokens; give {self.context} or less, or another "
                "--context"
            )


@dataclass(slots=True)
class Report:
    """What was found beside what was expected."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def index(settings: IndexSettings) -> tuple[DatasetInfo, list[str]]:
    """Write index, manifest and facts. Returns the facts and what to tell the person.

    Raises `UserError` with all that is wrong; with `repair` what is damaged or missing is left out, counted and told.
    """
    settings.check()
    out, tokenizer = settings.out or settings.folder, load_tokenizer(settings.tokenizer)
    if settings.vocab_size > tokenizer.vocab_size:
        raise UserError(
            f"--vocab-size {settings.vocab_size}: tokenizer '{settings.tokenizer}' has {tokenizer.vocab_size} ids; "
            "give the tokenizer that made the shards"
        )
    if (out / DATASET_FILE).exists():
        raise UserError(f"{out}: holds {DATASET_FILE} already; remove it to index the shards again, or give --out")
    report = Report()
    paths = _shards(settings, report)
    dialect = _dialect(settings)
    told = _told(settings.folder, report)
    with _removed_on_error(out / "index"):
        found = dict(zip(paths, _index_all(settings, dialect, paths, out)))
        for path, one in found.items():
            report.problems += [f"{path.name}: {problem}" for problem in one.problems]
            _count(told, path, one, report)
        _compare(told, paths, report)
        if report.problems and not settings.repair:
            shown = report.problems[:SHOWN] + ["..."] * (len(report.problems) > SHOWN)
            raise UserError(
                f"{settings.folder}: {len(report.problems)} problems: {'; '.join(shown)}; copy those shards again, or "
                "give --repair to leave out what is damaged and count what is there"
            )
        info = _write(settings, dialect, tokenizer, out, found, report)
    left_out = [f"left out: {problem}" for problem in report.problems]
    return info, [*_notes(settings, tokenizer, found), *report.notes, *left_out]


@contextlib.contextmanager
def _removed_on_error(folder: Path) -> Iterator[None]:
    """Make `folder`, unless it is there; what is refused leaves none behind."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if made:
            shutil.rmtree(made[-1])
        raise


def _count(told: dict[str, int] | None, path: Path, one: Indexed, report: Report) -> None:
    """Compare a shard's whole contexts with the manifest's, so that what damage took is counted too."""
    whole, expected = one.contexts - one.unread, None if told is None else told.get(path.stem)
    if expected is None:
        if one.problems:
            lost = f"{one.unread} that are damaged, and any" if one.unread else "any"
            report.problems.append(f"{path.name}: {whole} contexts are whole; {lost} behind a cut are not counted")
    elif whole != expected:
        gone = f", {expected - whole} are gone" if whole < expected else ""
        report.problems.append(f"{path.name}: has {whole} contexts, the manifest says {expected}{gone}")


def _shards(settings: IndexSettings, report: Report) -> list[Path]:
    if not settings.folder.is_dir():
        raise UserError(f"{settings.folder}: no such folder; expected one with DCLM's tokenised .tar shards")
    paths = sorted(settings.folder.glob("*.tar"))
    if not paths:
        raise UserError(f"{settings.folder}: no .tar in it; expected DCLM's tokenised shards")
    if settings.val_shards >= len(paths):
        raise UserError(
            f"--val-shards {settings.val_shards}: there are {len(paths)} shards, and training needs one; give fewer"
        )
    return paths


def _dialect(settings: IndexSettings) -> Dialect:
    return Dialect(
        context=settings.context, length=settings.length, eot_id=settings.eot_id, pad_id=settings.pad_id,
        vocab_size=settings.vocab_size, suffixes=tuple(PARSERS),
    )  # fmt: skip


def _told(folder: Path, report: Report) -> dict[str, int] | None:
    """Contexts by shard as DCLM's manifest tells them; the last line counts whether or not a line end follows it."""
    path = folder / MANIFEST_FILE
    if not path.is_file():
        report.notes.append(f"no {MANIFEST_FILE}: shards and contexts were counted")
        return None
    told = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            count = next(entry[name] for name in COUNTS if name in entry)
            told[entry["shard"].removesuffix(".tar")] = int(count)
        except (ValueError, TypeError, KeyError, AttributeError, StopIteration):
            report.problems.append(f"{MANIFEST_FILE}, line {number}: no shard and {' or '.join(COUNTS)} in it")
    return told


def _compare(told: dict[str, int] | None, paths: list[Path], report: Report) -> None:
    if told is None:
        return
    there = {path.stem for path in paths}
    missing = [name for name in told if name not in there]
    report.problems += [f"{name}.tar: is missing, the manifest has it: {told[name]} contexts" for name in missing]
    report.problems += [f"{name}.tar: is not in the manifest" for name in sorted(there - told.keys())]


def _index_all(settings: IndexSettings, dialect: Dialect, paths: list[Path], out: Path) -> Iterator[Indexed]:
    jobs = [(path, out / "index" / f"{path.stem}.members", dialect) for path in paths]
    if settings.processes == 1:
        yield from (index_shard(*job) for job in jobs)
        return
    with ProcessPoolExecutor(settings.processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(index_shard, *zip(*jobs))


def _write(
    settings: IndexSettings, dialect: Dialect, tokenizer: Tokenizer, out: Path, found: dict[Path, Indexed],
    report: Report,
) -> DatasetInfo:  # fmt: skip
    suffixes = sorted({one.suffix for one in found.values() if one.suffix})
    if len(suffixes) != 1:
        raise UserError(f"{settings.folder}: members end in {', '.join(suffixes) or 'nothing'}; expected one kind")
    held_out = set(list(found)[len(found) - settings.val_shards :]) if settings.val_shards else set()
    sides = {split: {p: one for p, one in found.items() if (p in held_out) == (split == "val")} for split in SPLITS}
    shards = [one.shard(path.name, split) for split, side in sides.items() for path, one in side.items()]
    ids = np.arange(settings.vocab_size)
    bytes_per_id = np.where(ids == settings.eot_id, 0, tokenizer.byte_counts(ids)).astype(np.int64)
    splits = {split: _counts(list(side.values()), bytes_per_id, settings) for split, side in sides.items()}
    facts = {"suffix": suffixes[0], "eot_id": dialect.eot_id, "pad_id": dialect.pad_id, "context": dialect.context}
    facts |= {"vocab_size": dialect.vocab_size, "left_out": report.problems}
    info = _info(settings, tokenizer, out, found, splits, facts)
    info = replace(info, corpus_hash=corpus_hash(info.content_facts(), shards))
    told = asdict(info)
    del told["path"]
    if tokenizer.name == FILE_NAME:
        tokenizer.copy_to(out)
    write_text(out / INDEX_FILE, manifest_text(shards))
    write_json(out / DATASET_FILE, sealed(told, manifest_text(shards)))
    return info


def _info(
    settings: IndexSettings, tokenizer: Tokenizer, out: Path, found: dict[Path, Indexed],
    splits: dict[str, SplitInfo], dialect: dict,
) -> DatasetInfo:  # fmt: skip
    tokens, text_bytes = (sum(getattr(counts, name) for counts in splits.values()) for name in ("tokens", "text_bytes"))
    folder = settings.folder.resolve()
    return DatasetInfo(
        path=out,
        name=folder.name,
        version=VERSION,
        source=str(folder),
        source_facts={"shards": len(found), "contexts": sum(one.contexts for one in found.values())},
        tokenizer=stored_name(settings.tokenizer),
        tokenizer_fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        eot_id=tokenizer.eot_id,
        length=settings.length,
        dtype=dtype_of(tokenizer.vocab_size),
        packing=(
            f"DCLM contexts of {settings.context} ids: documents, {MARKED} (written {settings.eot_id}), run across "
            f"contexts; padding (written {settings.pad_id}) cut from their ends; each cut into windows from its start"
        ),
        split_rule=f"the last {settings.val_shards} shards by name are validation; pieces of a document lie anywhere",
        val_fraction=settings.val_shards / len(found),
        records_per_shard=max(len(one.members) for one in found.values()),
        splits=splits,
        duplicate_documents=0,
        unigram_entropy=entropy(sum(one.histogram for one in found.values())),
        bytes_per_token=text_bytes / max(tokens, 1),
        corpus_hash="",
        format="dclm",
        manifest=INDEX_FILE,
        root="" if out.resolve() == folder else str(folder),
        dialect=dialect,
    )


def _counts(found: list[Indexed], bytes_per_id: np.ndarray, settings: IndexSettings) -> SplitInfo:
    histogram = sum((one.histogram for one in found), np.zeros(settings.vocab_size + 1, np.int64))
    tokens, sequences = int(histogram.sum()), sum(one.windows for one in found)
    return SplitInfo(
        documents=sum(one.documents for one in found),
        tokens=tokens,
        text_bytes=int((histogram[: len(bytes_per_id)] * bytes_per_id).sum()),
        sequences=sequences,
        dropped_tokens=tokens - sequences * settings.length,
    )


def _notes(settings: IndexSettings, tokenizer: Tokenizer, found: dict[Path, Indexed]) -> list[str]:
    total: Counter[str] = Counter()
    for one in found.values():
        total.update(one.left)
    each, rest = divmod(settings.context, settings.length)
    notes = [f"contexts of {settings.context} = {each} windows of {settings.length} + {rest} tokens dropped"]
    notes += [f"{count:,} {what}" for what, count in sorted(total.items())]
    if settings.eot_id != tokenizer.eot_id and settings.eot_id < settings.vocab_size:
        text = tokenizer.decode(np.array([settings.eot_id]))
        notes.append(
            f"id {settings.eot_id} is both end of text, as written, and {text!r} of the tokenizer: all read as "
            f"{tokenizer.eot_id}, end of text"
        )
    return notes

