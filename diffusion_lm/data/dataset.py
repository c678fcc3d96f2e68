"""Random access to the token sequences of a split, by memory-mapping its shards; every row is checked on every read."""

import hashlib
import mmap
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffusion_lm.data.crc import CRC_DTYPE, row_crcs
from diffusion_lm.data.files import Files, Wanted
from diffusion_lm.data.info import DatasetInfo
from diffusion_lm.data.manifest import ROWS_PER_RECORD, Shard, corpus_hash, read_manifest
from diffusion_lm.data.reader import Place
from diffusion_lm.data.shard_index import wrong_size
from diffusion_lm.data.shard_reader import ShardReader
from diffusion_lm.errors import UserError, unknown


@dataclass(slots=True)
class OpenShard:
    """windows [n, L]: the L stored ids that begin at each multiple of an id's size; crcs [m], None where there are
    none; problem: why nothing, or not all, can be read."""

    windows: np.ndarray
    crcs: np.ndarray | None
    problem: str | None


class ShardedTokens(ShardReader):
    """The sequences of one split of a dataset in this project's own format.

    Opening checks that every shard is there and has the manifest's size (with `on_damage` ``skip`` what is gone is left
    out); content is checked row by row as it is read, where there are checksums, and by `python -m data_prep verify`.
    A few shards are mapped at a time. Raises `UserError` for a folder that is no whole dataset, an unknown split, and a
    shard that is missing or cut.
    """

    def __init__(self, path: str | Path, split: str, on_damage: str = "error", files: Files | None = None):
        info = DatasetInfo.load(path)
        self._dtype = np.dtype(info.dtype)
        super().__init__(info, shards_of(info, split), split, on_damage, files)

    @staticmethod
    def _side_bytes(shard: Shard) -> int:
        return CRC_DTYPE.itemsize * shard.num_sequences

    def place(self, index: int) -> Place:
        """See the contract."""
        number = int(self.index.shards_of(np.array([index]))[0])
        return Place(self.index.names[number], *divmod(index - int(self.index.starts[number]), ROWS_PER_RECORD))

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
        """See the contract. Rows are gathered shard by shard, and checked in the same pass."""
        rows, damage = np.zeros((len(indices), self.info.length), np.int64), {}
        for number, at in self.index.by_shard(indices):
            shard = self._shard(number)
            within = indices[at] - self.index.starts[number]
            record, row = np.divmod(within, ROWS_PER_RECORD)
            first = self.index.offset(number, record) // self._dtype.itemsize + row * self.info.length
            there = first < len(shard.windows)
            stored = shard.windows[first[there]]
            rows[at[there]] = stored
            damage |= {int(place): shard.problem or "the shard is cut" for place in at[~there]}
            if shard.crcs is not None and there.any():
                wrong = row_crcs(stored) != shard.crcs[within[there]]
                damage |= {int(place): "its CRC-32 differs from the one written" for place in at[there][wrong]}
        return rows, damage

    def _lost(self, number: int) -> bool:
        return not len(self._shard(number).windows)

    def _lost_from(self, number: int, size: int) -> str:
        count = int(self.index.starts[number + 1] - self.index.starts[number])
        record, row = np.divmod(np.arange(count), ROWS_PER_RECORD)
        ends = self.index.offset(number, record) + (row + 1) * self.info.length * self._dtype.itemsize
        lost = np.flatnonzero(ends > size)
        return f"record {record[lost[0]]}, row {row[lost[0]]}" if len(lost) else ""

    def _map(self, number: int) -> OpenShard:
        wanted = self.index.wanted(number)
        nothing = np.empty((0, self.info.length), self._dtype)
        content = mapped(self.files.find(wanted[0]))
        if content is None:
            return OpenShard(nothing, None, "shard is missing")
        size = len(content)
        problem = None if size == wanted[0].bytes else wrong_size(size, wanted[0].bytes)
        crcs, wrong = self._checksums(number, wanted[1]) if len(wanted) == 2 else (None, None)
        step = self._dtype.itemsize
        count = size // step - self.info.length + 1
        if wrong or count < 1:
            return OpenShard(nothing, None, wrong or problem)
        windows = np.ndarray((count, self.info.length), self._dtype, content, strides=(step, step))
        return OpenShard(windows, crcs, problem)

    def _checksums(self, number: int, side: Wanted) -> tuple[np.ndarray | None, str | None]:
        """The checksums of a shard's sequences, or what is wrong with their file, whose hash is checked once."""
        content = mapped(self.files.find(side))
        if content is None or len(content) != side.bytes:
            return None, f"its checksums, {side.name}, are missing or cut"
        if number not in self._side_checked and hashlib.sha256(content).hexdigest() != side.sha256:
            return None, f"its checksums, {side.name}, are not those written"
        self._side_checked.add(number)
        return np.frombuffer(content, CRC_DTYPE), None


def shards_of(info: DatasetInfo, split: str) -> list[Shard]:
    """The shards of a split, in order. Raises `UserError` for an unknown split, or a manifest of another dataset."""
    if split not in info.splits:
        raise unknown("split", split, info.splits)
    shards = read_manifest(info.path, info.manifest)
    check_manifest(info, shards)
    return [shard for shard in shards if shard.split == split]


def check_manifest(info: DatasetInfo, shards: list[Shard]) -> None:
    """Raise `UserError` where the manifest, which has `shards`, is not the one that `info` was written with."""
    told, file = info.manifest_sha256, info.path / info.manifest
    same = not told or hashlib.sha256(file.read_bytes()).hexdigest() == told
    if not same or corpus_hash(info.content_facts(), shards) != info.corpus_hash:
        raise UserError(f"{info.path}: {info.manifest} and dataset.json do not belong together; make the shards again")


def mapped(path: Path) -> mmap.mmap | bytes | None:
    """A file's content, mapped; None where there is none."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        return mmap.mmap(handle, 0, access=mmap.ACCESS_READ) if os.fstat(handle).st_size else b""
    finally:
        os.close(handle)
