"""`python -m data_prep verify`: are the shards what the manifest says? Every byte is hashed again; where a hash differs
the tar is walked, header by header, and each sequence's CRC-32 compared, to name what is damaged."""

import hashlib
import mmap
import zlib
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_prep.tar import BLOCK, BadTar, Member, members
from diffusion_lm.data.crc import CRC_DTYPE, row_crcs
from diffusion_lm.data.dataset import check_manifest
from diffusion_lm.data.dclm import MEMBERS
from diffusion_lm.data.info import DatasetInfo
from diffusion_lm.data.manifest import ROWS_PER_RECORD, Shard, read_manifest
from diffusion_lm.data.tokenizers.base import dataset_tokenizer
from diffusion_lm.errors import UserError

SHOWN = 5
"""Places that are named in a shard."""
MAGIC = b"\x93NUMPY\x01\x00"


def verify(folder: Path) -> str:
    """Check every shard. Returns what to tell the person; raises `UserError` naming each shard that differs."""
    info = DatasetInfo.load(folder)
    shards = read_manifest(folder, info.manifest)
    root = folder / info.root
    wrong = [f"{shard.shard} ({problem})" for shard in shards if (problem := _problem(folder, root, info, shard))]
    listed = {shard.shard for shard in shards}
    wrong += [f"{path.name} (not in the manifest)" for path in sorted(root.glob("*.tar")) if path.name not in listed]
    if wrong:
        found = f"{len(wrong)} wrong among {len(shards)} shards: {', '.join(wrong)}"
        raise UserError(f"{folder}: {found}; make the dataset again")
    check_manifest(info, shards)
    # datasets from before that hash may lack the file beside the tokenizer's that names its end of text
    if info.facts_sha256 and dataset_tokenizer(folder, info.tokenizer).fingerprint != info.tokenizer_fingerprint:
        raise UserError(
            f"{folder}: its tokenizer {info.tokenizer} is not the one of fingerprint {info.tokenizer_fingerprint} that "
            "dataset.json names; copy that file again, or make the dataset again"
        )
    return f"{folder}: all {len(shards)} shards are what the manifest says; corpus hash {info.corpus_hash}"


def _problem(folder: Path, root: Path, info: DatasetInfo, shard: Shard) -> str | None:
    path = root / shard.shard
    if not path.is_file():
        return "missing"
    size = path.stat().st_size
    with path.open("rb") as stream:
        content = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if size else b"")
    side = (folder / shard.crc).read_bytes() if shard.crc and (folder / shard.crc).is_file() else b""
    if shard.crc and hashlib.sha256(side).hexdigest() != shard.crc_sha256:
        return f"{shard.crc} is missing" if not side else f"{shard.crc} differs"
    whole = size == shard.bytes and hashlib.sha256(content).hexdigest() == shard.sha256
    places = CHECKS[info.format](content, info, shard, side)
    told = ": " + "; ".join(places[:SHOWN]) + ("; ..." if len(places) > SHOWN else "") if places else ""
    if size != shard.bytes:
        return f"{size} bytes, expected {shard.bytes}{told}"
    if not whole:
        return f"content differs{told}"
    return f"not what the manifest tells{told}" if told else None


def _records(content: memoryview, info: DatasetInfo, shard: Shard, side: bytes) -> list[str]:
    """What is wrong with a shard of this project's format: headers, arrays, places, counts, checksums. Records are
    told apart by the manifest's places, so that one whose header is lost renames no other."""
    damage: list[BadTar] = []
    found = list(members(content, damage))
    starts = [_rows_begin(content, member, info) for member in found]
    problems = [(bad.at, _where(shard, bad.at), bad.what) for bad in damage]
    for member, start in zip(found, starts):
        end = member.start + member.size
        if start is None:
            problems.append((member.start, _where(shard, member.start), "the header of its array is not as written"))
        elif any(content[end : end + -end % BLOCK]):
            problems.append((end, _where(shard, member.start), "what fills its last block is not zero"))
    if not problems and (starts, shard.records) != (shard.offsets, len(found)):
        return [f"{len(found)} records, expected {shard.records}, or elsewhere in the file"]
    problems += _wrong_rows(content, info, shard, np.frombuffer(side, CRC_DTYPE))
    return [f"{place}: {what}" if what else place for _, place, what in sorted(problems)]


def _where(shard: Shard, at: int) -> str:
    """The record whose header, tar's or array's, has byte `at`."""
    record = bisect_right(shard.offsets, at)
    return f"record {record}" if record < len(shard.offsets) else f"byte {at:,}, after the last record"


def _rows_begin(content: memoryview, member: Member, info: DatasetInfo) -> int | None:
    """The byte at which a record's rows begin; None where its header is not one of an array [n, L] of its size."""
    data = content[member.start : member.start + member.size]
    length = 10 + int.from_bytes(data[8:10], "little")
    rows, rest = divmod(member.size - length, info.length * np.dtype(info.dtype).itemsize)
    told = f"{{'descr': '{info.dtype}', 'fortran_order': False, 'shape': ({rows}, {info.length}), }}"
    written = bytes(data[:8]) == MAGIC and bytes(data[10:length]) == told.ljust(length - 11).encode() + b"\n"
    return member.start + length if written and not rest else None


def _wrong_rows(
    content: memoryview, info: DatasetInfo, shard: Shard, crcs: np.ndarray
) -> list[tuple[int, str, str]]:
    """(byte, place, "") of each row whose checksum differs, and of the first that a cut file has not."""
    width, problems, first = info.length * np.dtype(info.dtype).itemsize, [], 0
    for record, start in enumerate(shard.offsets):
        rows = min(ROWS_PER_RECORD, shard.num_sequences - first)
        there = max(0, min(rows, (len(content) - start) // width))
        stored = np.frombuffer(content[start : start + there * width], np.uint8).reshape(there, width)
        wrong = np.flatnonzero(row_crcs(stored) != crcs[first : first + there]) if shard.crc and there else ()
        problems += [(start + row * width, f"record {record}, row {row}", "") for row in wrong]
        if there < rows:
            gone = f"it and the {shard.num_sequences - first - there - 1} rows after it are cut off"
            return [*problems, (start + there * width, f"record {record}, row {there}", gone)]
        first += rows
    return problems


def _contexts(content: memoryview, info: DatasetInfo, shard: Shard, side: bytes) -> list[str]:
    """What is wrong with a shard of DCLM's: headers, unless they were known to be, and the contexts that are used."""
    damage: list[BadTar] = []
    for _ in members(content, damage):
        pass
    problems = [] if info.dialect["left_out"] else [str(bad) for bad in damage]
    for member in np.frombuffer(side, MEMBERS):
        data = content[int(member["start"]) : int(member["start"]) + int(member["size"])]
        if zlib.crc32(data) != member["crc"]:
            problems.append(f"member {member['record']}")
    return problems


CHECKS: dict[str, Callable[[memoryview, DatasetInfo, Shard, bytes], list[str]]] = {
    "records": _records,
    "dclm": _contexts,
}
"""By the format that `dataset.json` tells."""
