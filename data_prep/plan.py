"""How a large text is cut into parts: what `tokenize` does is decided here, before any text is read.

A part is a group of input files that one process turns into shards of its own, whole or not at all. Parts follow from
the sources' file names alone, so processes and array tasks need no coordination, and which of them does a part, and
when, changes no byte. The plan lies in the dataset's folder as `parts/plan.json`; a command that asks for something
else is refused there. Input files that were repaired or removed since touch their own parts alone.
"""

import fnmatch
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

from data_prep.build import check_place, make_folder
from data_prep.splits import HOLDOUT
from data_prep.text_files import TextFiles
from diffusion_lm.data.manifest import DATASET_FILE, INCOMPLETE_FILE, PLAN_FILE, SPLITS
from diffusion_lm.data.tokenizers.base import Tokenizer
from diffusion_lm.errors import UserError
from diffusion_lm.files import write_text

PARTS_FOLDER = "parts"


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizeSettings:
    """What a person asks for. `hold_out`: patterns of paths, relative to their source, of files held out whole."""

    sources: list[str]
    out: Path
    tokenizer: str = "gpt2"
    length: int = 1024
    val_fraction: float = 0.001
    hold_out: list[str] = field(default_factory=list)
    records_per_shard: int = 1024
    files_per_part: int = 1

    def check(self) -> None:
        """Raise `UserError` for a number out of range."""
        for name, low in (("length", 2), ("records_per_shard", 1), ("files_per_part", 1)):
            if getattr(self, name) < low:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be {low} or more")
        if not 0 <= self.val_fraction < 1:
            raise UserError(f"--val-fraction {self.val_fraction}: must be in [0, 1)")


@dataclass(frozen=True, slots=True)
class Part:
    """files: (source, path, bytes) each; split: the one they all go to, "" for training and validation by hash."""

    number: int
    split: str
    files: list[tuple[str, str, int]]

    @property
    def name(self) -> str:
        """As it stands in the names of its files."""
        return f"{self.number:05d}"

    @property
    def splits(self) -> tuple[str, ...]:
        """Where its documents may go."""
        return (self.split,) if self.split else SPLITS

    @property
    def bytes(self) -> int:
        """Size of its files."""
        return sum(size for _, _, size in self.files)


@dataclass(frozen=True)
class Plan:
    """`facts` are what the shards depend on, beside the text itself; `notes`: what is not read of the sources."""

    out: Path
    facts: dict
    parts: list[Part]
    notes: dict[str, int] = field(default_factory=dict)

    @cached_property
    def id(self) -> str:
        """Stands for all of the plan but its place and notes."""
        return _short_hash({"facts": self.facts, "parts": [asdict(part) for part in self.parts]})

    def part_id(self, part: Part) -> str:
        """Stands for all that the shards of `part` depend on."""
        return _short_hash({"facts": self.facts, "part": asdict(part)})

    @property
    def folder(self) -> Path:
        """Where the parts' own files lie."""
        return self.out / PARTS_FOLDER

    def keep(self, say: Callable[[str], None]) -> "Plan":
        """Write the plan, or go on with the one that is there: returns the one that counts.

        Where files were repaired or removed since, the parts that had them change, under their old numbers. Raises
        `UserError` where the plan that is there is of something else, or there are new files.
        """
        if not (self.out / PLAN_FILE).exists():
            make_folder(self.out)
            (self.out / INCOMPLETE_FILE).touch()  # first, so that another task never finds files and no mark
            self._write()
            return self
        other = load_plan(self.out)
        plan = other.with_files_of(self)
        if changed := [part.name for part, was in zip(plan.parts, other.parts) if part != was]:
            say(f"input files changed since: {len(changed)} parts are made again, the first is {changed[0]}")
        if (changed or plan.notes != other.notes) and not (self.out / DATASET_FILE).exists():
            plan._write()
        return plan

    def check_same(self) -> None:
        """Raise `UserError` where a dataset of this plan's folder was made of something else."""
        other = load_plan(self.out)
        if other.with_files_of(self).parts != other.parts:
            raise self._other(f"{_content(other.parts)} (now: {_content(self.parts)})")

    def with_files_of(self, now: "Plan") -> "Plan":
        """This plan with the files as `now` found them: their sizes, and those that are gone left out."""
        names = [name for name in now.facts if self.facts.get(name) != now.facts[name]]
        if names:
            raise self._other(", ".join(f"{name}={self.facts.get(name)} (asked: {now.facts[name]})" for name in names))
        sizes = {file[:2]: file[2] for part in now.parts for file in part.files}
        parts = [
            replace(part, files=[(*file[:2], sizes.pop(file[:2])) for file in part.files if file[:2] in sizes])
            for part in self.parts
        ]
        if sizes:
            raise self._other(
                f"{_content(self.parts)} (now also {len(sizes)} others, the first is {next(iter(sizes))[1]})"
            )
        return replace(self, parts=parts, notes=now.notes)

    def _other(self, differences: str) -> UserError:
        return UserError(
            f"{self.out}: holds parts made with {differences}; nothing written: give another --out, or remove that "
            "folder first"
        )

    def _write(self) -> None:
        content = {"facts": self.facts, "parts": [asdict(part) for part in self.parts], "notes": self.notes}
        write_text(self.out / PLAN_FILE, json.dumps(content, indent=1) + "\n")


def make_plan(settings: TokenizeSettings, tokenizer: Tokenizer) -> Plan:
    """The plan of what `settings` ask for. Raises `UserError` for a source without text, or a place that is taken."""
    settings.check()
    sources = [TextFiles(Path(source)) for source in settings.sources if _exists(source)]
    for source in sources:
        check_place(settings.out, source.name)
    _check_no_shards(settings.out)
    files, notes = _files(sources)
    held = {file for pattern in settings.hold_out for file in _matching(files, pattern)}
    kinds = {"": [file for file in files if file not in held], HOLDOUT: [file for file in files if file in held]}
    if not kinds[""]:
        raise UserError(
            f"--hold-out {' '.join(settings.hold_out)}: holds out all {len(files)} files; leave some to train on"
        )
    parts = []
    for split, group in kinds.items():
        for start in range(0, len(group), settings.files_per_part):
            parts.append(Part(len(parts), split, group[start : start + settings.files_per_part]))
    facts = {
        "sources": [source.name for source in sources],
        "tokenizer": tokenizer.name,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "length": settings.length,
        "val_fraction": settings.val_fraction,
        "hold_out": settings.hold_out,
        "records_per_shard": settings.records_per_shard,
        "files_per_part": settings.files_per_part,
    }
    return Plan(settings.out, facts, parts, notes)


def load_plan(out: Path) -> Plan:
    """The plan that lies in `out`. Raises `UserError` where there is none."""
    path = out / PLAN_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        parts = [
            Part(part["number"], part["split"], [tuple(file) for file in part["files"]]) for part in content["parts"]
        ]
        return Plan(out, content["facts"], parts, content.get("notes", {}))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; make parts first: python -m data_prep tokenize") from None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: not a plan ({error!r}); remove {out} and tokenize again") from None


def _check_no_shards(out: Path) -> None:
    """A folder that another command has begun stays that command's."""
    if not (out / PLAN_FILE).exists() and not (out / DATASET_FILE).exists() and any(out.glob("*.tar")):
        raise UserError(f"--out {out}: holds shards that another command has begun; give another, or remove it first")


def _files(sources: list[TextFiles]) -> tuple[list[tuple[str, str, int]], dict[str, int]]:
    """Source, path and bytes of every file, each once however it is named, and what is left out."""
    notes: Counter[str] = Counter()
    found: dict[str, tuple[str, str, int]] = {}
    for source in sources:
        notes.update(source.notes)
        for path in source.files:
            name = path.relative_to(source.path).as_posix() if path != source.path else path.name
            place = os.path.realpath(path)
            if place in found:
                notes["files named again by a source or a link, read once"] += 1
            else:
                found[place] = (source.name, name, path.stat().st_size)
    return list(found.values()), dict(sorted(notes.items()))


def _short_hash(value: dict) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _exists(source: str) -> bool:
    if not source or not Path(source).exists():
        raise UserError(f"--source '{source}': no such file or folder; expected a path of text files")
    return True


def _matching(files: list[tuple[str, str, int]], pattern: str) -> list[tuple[str, str, int]]:
    found = [file for file in files if fnmatch.fnmatchcase(file[1], pattern)]
    if not found:
        raise UserError(f"--hold-out '{pattern}': matches none of the {len(files)} files; the first is {files[0][1]}")
    return found


def _content(parts: list[Part]) -> str:
    return f"{sum(len(part.files) for part in parts)} files of {sum(part.bytes for part in parts)} bytes"
