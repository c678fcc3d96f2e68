"""`python -m data_prep verify`: are the shards what the manifest says? Every byte is hashed again; where a hash differs
the tar is walked, header by header, and each sequence's CRC-32 compared, to name what is damaged."""

import hashlib
import io
import mmap
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_prep.tar import Member, members
from diffusion_lm.data.crc import CRC_DTYPE, row_crcs
from diffusion_lm.data.dclm import MEMBERS
from diffusion_lm.data.info import DatasetInfo
from diffusion_lm.data.manifest import Shard, corpus_hash, read_manifest
from diffusion_lm.errors import UserError

SHOWN = 5
"""Places that are named in a shard."""


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
    if corpus_hash(info.content_facts(), shards) != info.corpus_hash:
        raise UserError(f"{folder}: {info.manifest} and dataset.json do not belong together; make the dataset again")
    return f"{folder}: all {len(shards)} shards are what the manifest says; corpus hash {info.corpus_hash}"


def _problem(folder: Path, root: Path, info: DatasetInfo, shard: Shard) -> str | None:
    path = root / shard.shard
    if not path.is_file():
        return "missing"
    size = path.stat().st_size
    if size != shard.bytes:
        return f"{size} bytes, expected {shard.bytes}"
    with path.open("rb") as stream:
        content = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    side = (folder / shard.crc).read_bytes() if shard.crc and (folder / shard.crc).is_file() else b""
    if shard.crc and hashlib.sha256(side).hexdigest() != shard.crc_sha256:
        return f"{shard.crc} is missing" if not side else f"{shard.crc} differs"
    places = CHECKS[info.format](content, info, shard, side)
    told = ": " + "; ".join(places[:SHOWN]) + ("; ..." if len(places) > SHOWN else "") if places else ""
    if hashlib.sha256(content).hexdigest() != shard.sha256:
        return f"content differs{told}"
    return f"not what the manifest tells{told}" if told else None


def _records(content: memoryview, info: DatasetInfo, shard: Shard, side: bytes) -> list[str]:
    """What is wrong with a shard of this project's format: headers, arrays, places, counts, checksums."""
    problems: list[str] = []
    crcs, sequences, offsets = np.frombuffer(side, CRC_DTYPE), 0, []
    for number, member in enumerate(members(content, problems)):
        try:
            rows, offset = _rows(content, member, info)
        except ValueError as error:
            problems.append(f"record {number}: {error}")
            continue
        if shard.crc:
            wrong = np.flatnonzero(row_crcs(rows) != crcs[sequences : sequences + len(rows)]) if len(rows) else []
            problems += [f"record {number}, row {row}" for row in wrong]
        sequences += len(rows)
        offsets.append(offset)
    if not problems and (sequences, offsets) != (shard.num_sequences, shard.offsets):
        problems.append(f"{sequences} sequences in {len(offsets)} records, expected {shard.num_sequences} in "
                        f"{shard.records}, or elsewhere in the file")  # fmt: skip
    return problems


def _rows(content: memoryview, member: Member, info: DatasetInfo) -> tuple[np.ndarray, int]:
    """A record's rows [n, L] as they are stored, and the byte at which they begin."""
    data = content[member.start : member.start + member.size]
    stream = io.BytesIO(data[:256])
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("is no array of the expected version")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    fits = len(data) - stream.tell() == shape[0] * info.length * dtype.itemsize
    if dtype != np.dtype(info.dtype) or fortran or shape[1:] != (info.length,) or not fits:
        raise ValueError(f"is an array of {dtype} of shape {shape}, expected {info.dtype} of [n, {info.length}]")
    return np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape), member.start + stream.tell()


def _contexts(content: memoryview, info: DatasetInfo, shard: Shard, side: bytes) -> list[str]:
    """What is wrong with a shard of DCLM's: headers, unless they were known to be, and the contexts that are used."""
    problems: list[str] = []
    for _ in members(content, problems):
        pass
    if info.dialect["left_out"]:
        problems.clear()
    for member in np.frombuffer(side, MEMBERS):
        start = int(member["start"])
        if zlib.crc32(content[start : start + int(member["size"])]) != member["crc"]:
            problems.append(f"member {member['record']}")
    return problems


CHECKS: dict[str, Callable[[memoryview, DatasetInfo, Shard, bytes], list[str]]] = {
    "records": _records,
    "dclm": _contexts,
}
"""By the format that `dataset.json` tells."""
