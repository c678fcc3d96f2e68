"""One of DCLM's tokenised shards: its members checked, its contexts counted, its index written."""

import hashlib
import mmap
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_prep.tar import BadTar, Member, members
from diffusion_lm.data.dclm import MEMBERS, PARSERS
from diffusion_lm.data.manifest import Shard
from diffusion_lm.files import atomic_path

ALL_PAD = "contexts of padding alone dropped"
PAD_TAIL = "tokens of padding cut from the ends of contexts"
SHORT = "contexts dropped for holding less than a window"


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialect:
    """How ids were written; `suffixes` that a member may have."""

    context: int
    length: int
    eot_id: int
    pad_id: int
    vocab_size: int
    suffixes: tuple[str, ...]


@dataclass(slots=True)
class Indexed:
    """What a shard holds. histogram [V + 1]: kept tokens by id, the last of those that mark ends outside the
    vocabulary; left: tokens and contexts that were left out, by why; unread: contexts that are damaged."""

    bytes: int
    sha256: str
    members: np.ndarray
    histogram: np.ndarray
    side: str
    side_sha256: str = ""
    suffix: str = ""
    contexts: int = 0
    unread: int = 0
    windows: int = 0
    documents: int = 0
    left: Counter = field(default_factory=Counter)
    reasons: Counter = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def shard(self, name: str, split: str) -> Shard:
        """Its line of the manifest."""
        return Shard(
            shard=name,
            split=split,
            num_sequences=self.windows,
            records=len(self.members),
            bytes=self.bytes,
            sha256=self.sha256,
            offsets=[],
            tokens=int(self.histogram.sum()),
            documents=self.documents,
            crc=self.side,
            crc_sha256=self.side_sha256,
        )


def index_shard(path: Path, side: Path, dialect: Dialect) -> Indexed:
    """Read a shard through and write its index to `side`. Damage is noted, and what is whole is indexed."""
    found = Indexed(0, "", np.empty(0, MEMBERS), np.zeros(dialect.vocab_size + 1, np.int64), f"index/{side.name}")
    rows: list[tuple[int, int, int, int, int]] = []
    if path.stat().st_size:
        with path.open("rb") as stream:
            content = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        found.bytes, found.sha256 = len(content), hashlib.sha256(content).hexdigest()
        damage: list[BadTar] = []
        for number, member in enumerate(members(content, damage)):
            _add(found, rows, member, number, content, dialect)
        more = sum(found.reasons.values()) - len(found.reasons)
        found.problems += [f"{more} more members for the same reasons"] if more else []
        found.problems += map(str, damage)
    else:
        found.problems.append("the file is empty")
    found.members = np.array(rows, MEMBERS)
    with atomic_path(side) as temporary:
        found.members.tofile(temporary)
    found.side_sha256 = hashlib.sha256(found.members).hexdigest()
    return found


def _add(found: Indexed, rows: list, member: Member, number: int, content: memoryview, dialect: Dialect) -> None:
    data = content[member.start : member.start + member.size]
    found.contexts += 1
    try:
        ids = _ids(member, data, dialect)
        found.suffix = found.suffix or member.suffix
        if member.suffix != found.suffix:
            raise ValueError(f"ends in .{member.suffix}, others in .{found.suffix}")
    except (ValueError, zlib.error) as error:
        _leave(found, f"member {number} ({member.name}): ", str(error))
        return
    kept = ids[: text_end(ids, dialect.eot_id, dialect.pad_id)]
    wrong = kept[((kept < 0) | (kept >= dialect.vocab_size)) & (kept != dialect.eot_id)]
    if len(wrong):
        why = f"id {wrong[0]} outside the vocabulary of {dialect.vocab_size}"
        _leave(found, f"member {number} ({member.name}): ", why)
        return
    windows = len(kept) // dialect.length
    if not len(kept):
        found.left[ALL_PAD] += 1
        return
    found.left[PAD_TAIL] += len(ids) - len(kept)
    found.histogram += np.bincount(np.minimum(kept, dialect.vocab_size), minlength=dialect.vocab_size + 1)
    found.documents += int((kept == dialect.eot_id).sum())
    if not windows:
        found.left[SHORT] += 1
        return
    rows.append((member.start, member.size, zlib.crc32(data), found.windows, number))
    found.windows += windows


def _leave(found: Indexed, place: str, why: str) -> None:
    """Leave a context out. Of many for the same reason, as with a wrong --context, the first is named."""
    found.unread += 1
    found.reasons[why] += 1
    if found.reasons[why] == 1:
        found.problems.append(place + why)


def _ids(member: Member, data: memoryview, dialect: Dialect) -> np.ndarray:
    if member.suffix not in dialect.suffixes:
        raise ValueError(f"ends in .{member.suffix}, expected .{', .'.join(dialect.suffixes)}")
    ids = PARSERS[member.suffix](data)
    if len(ids) != dialect.context:
        raise ValueError(f"has {len(ids)} ids, expected contexts of {dialect.context} (--context)")
    return ids


def text_end(ids: np.ndarray, eot_id: int, pad_id: int) -> int:
    """Where the padding begins: the last run of `pad_id`, if an end of text stands before it or nothing does.

    By place and not by value: the id that pads may stand for text too (GPT-NeoX's 50256 is a run of spaces).
    """
    text = np.flatnonzero(ids != pad_id)
    end = int(text[-1]) + 1 if len(text) else 0
    return end if not end or ids[end - 1] == eot_id else len(ids)

