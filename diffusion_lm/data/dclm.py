"""DCLM's own tokenised shards, read as they are: tars with one compressed list of ids per context.

Both dialects (tokshuf-rs and Ray) write contexts of 2,049 ids: an input and its shifted target. `python -m data_prep
index` found where each member lies and checked all of it; here a member is unpacked when one of its windows is asked
for. A context gives as many windows of L as it holds, the rest is dropped; what end-of-text was written as becomes the
tokenizer's own.
"""

import hashlib
import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffusion_lm.data.dataset import mapped, shards_of
from diffusion_lm.data.files import Files
from diffusion_lm.data.info import DatasetInfo
from diffusion_lm.data.manifest import Shard
from diffusion_lm.data.reader import Place
from diffusion_lm.data.shard_reader import ShardReader

MEMBERS = np.dtype([("start", "<u8"), ("size", "<u4"), ("crc", "<u4"), ("first", "<u4"), ("record", "<u4")])
"""A context in a shard's index: where its data lie, their CRC-32, the number of its first window, its own number."""
GZIP = 31
"""zlib's window bits for a gzip header."""


@dataclass(slots=True)
class OpenContexts:
    """content: the shard's bytes; members [m]: its index; problem: why nothing can be read."""

    content: memoryview
    members: np.ndarray
    problem: str | None


class DclmTokens(ShardReader):
    """The windows of one split. Those of a context stand side by side, and are unpacked together when read together."""

    def __init__(self, path: str | Path, split: str, on_damage: str = "error", files: Files | None = None):
        info = DatasetInfo.load(path)
        self._suffix, self._written = info.dialect["suffix"], info.dialect["eot_id"]
        super().__init__(info, shards_of(info, split), split, on_damage, files)

    @staticmethod
    def _side_bytes(shard: Shard) -> int:
        return MEMBERS.itemsize * shard.records

    def place(self, index: int) -> Place:
        """See the contract; the row is the window in its context."""
        number = int(self.index.shards_of(np.array([index]))[0])
        members = self._shard(number).members
        within = index - int(self.index.starts[number])
        if not len(members):
            return Place(self.index.names[number], 0, within)
        member = members[np.searchsorted(members["first"], within, side="right") - 1]
        return Place(self.index.names[number], int(member["record"]), within - int(member["first"]))

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
        """See the contract."""
        length = self.info.length
        rows, damage = np.zeros((len(indices), length), np.int64), {}
        for number, at in self.index.by_shard(indices):
            shard = self._shard(number)
            if shard.problem:
                damage |= {int(place): shard.problem for place in at}
                continue
            within = indices[at] - self.index.starts[number]
            contexts = np.searchsorted(shard.members["first"], within, side="right") - 1
            held, ids = -1, np.empty(0)
            windows = within - shard.members["first"][contexts]
            for place, context, window in zip(at.tolist(), contexts.tolist(), windows.tolist()):
                if context != held:
                    held, ids = context, self._context(shard, context)
                if ids is None:
                    damage[place] = "its CRC-32 differs from the one indexed"
                else:
                    rows[place] = ids[window * length : (window + 1) * length]
        return rows, damage

    def _lost(self, number: int) -> bool:
        return bool(self._shard(number).problem)

    def _lost_from(self, number: int, size: int) -> str:
        side = mapped(self.files.find(self.index.wanted(number)[1])) or b""
        members = np.frombuffer(side, MEMBERS, len(side) // MEMBERS.itemsize)
        lost = np.flatnonzero(members["start"] + members["size"] > size)
        return f"record {members['record'][lost[0]]}" if len(lost) else ""

    def _context(self, shard: OpenContexts, number: int) -> np.ndarray | None:
        member = shard.members[number]
        start, size = int(member["start"]), int(member["size"])
        data = shard.content[start : start + size]
        if len(data) != size or zlib.crc32(data) != member["crc"]:
            return None
        ids = PARSERS[self._suffix](data)
        if self._written != self.info.eot_id:
            ids[ids == self._written] = self.info.eot_id
        return ids

    def _map(self, number: int) -> OpenContexts:
        shard, side = self.index.wanted(number)
        content, index = mapped(self.files.find(shard)), mapped(self.files.find(side))
        problem = "shard is missing" if content is None else None
        if index is None or len(index) != side.bytes:
            problem = f"its index, {side.name}, is missing or cut"
        if problem:
            return OpenContexts(memoryview(b""), np.empty(0, MEMBERS), problem)
        if number not in self._side_checked and hashlib.sha256(index).hexdigest() != side.sha256:
            return OpenContexts(memoryview(b""), np.empty(0, MEMBERS), f"its index, {side.name}, is not as written")
        self._side_checked.add(number)
        return OpenContexts(memoryview(content), np.frombuffer(index, MEMBERS), None)


def _text(data: bytes) -> np.ndarray:
    """Ids of a JSON list, or of Python's way to write one. Raises `ValueError` for anything else."""
    text = bytes(data).strip()
    if not (text.startswith(b"[") and text.endswith(b"]")):
        raise ValueError("is no list")
    ids = np.fromstring(text[1:-1], dtype=np.int64, sep=",")
    if len(ids) != text.count(b",") + 1:
        raise ValueError("is no list of whole numbers")
    return ids


def _npy(data: bytes) -> np.ndarray:
    ids = np.load(io.BytesIO(data), allow_pickle=False)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"is an array of {ids.dtype} with {ids.ndim} axes, not one of ids")
    return ids.astype(np.int64)


def _unpacked(parse: Callable[[bytes], np.ndarray]) -> Callable[[bytes], np.ndarray]:
    return lambda data: parse(zlib.decompress(data, GZIP))


PARSERS: dict[str, Callable[[bytes], np.ndarray]] = {
    "json.gz": _unpacked(_text),
    "json": _text,
    "txt.gz": _unpacked(_text),
    "txt": _text,
    "npy": _npy,
}
"""Ids [n] int64 of a member's bytes, by the end of its name. They raise `ValueError` or `zlib.error`."""
