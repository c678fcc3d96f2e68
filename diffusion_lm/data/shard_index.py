"""Where every sequence of a split lies, in arrays: all that a reader keeps of the manifest."""

import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from diffusion_lm.data.files import Files, Wanted
from diffusion_lm.data.manifest import Shard
from diffusion_lm.errors import UserError

OPEN_SHARDS = 64
"""Shards that are mapped at a time: each takes two file descriptors."""
AGAIN = "make the shards again in an empty folder, or copy that file again"


class ShardIndex:
    """Names, sizes and offsets of a split's shards. starts [S + 1]: the split's sequence at which each shard begins."""

    def __init__(self, shards: list[Shard], side_bytes: list[int]):
        """side_bytes [S]: what each shard's side file has."""
        self._side_bytes = np.array(side_bytes, dtype=np.int64)
        self.names = [shard.shard for shard in shards]
        self._sha256 = [shard.sha256 for shard in shards]
        self._sides = [(shard.crc, shard.crc_sha256) for shard in shards]
        self.bytes = np.array([shard.bytes for shard in shards], dtype=np.int64)
        self.starts = _cumulative([shard.num_sequences for shard in shards])
        self._records = _cumulative([len(shard.offsets) for shard in shards])
        self._offsets = np.fromiter((at for shard in shards for at in shard.offsets), np.int64, int(self._records[-1]))

    def __len__(self) -> int:
        return int(self.starts[-1])

    def shards_of(self, indices: np.ndarray) -> np.ndarray:
        """The shard [n] that each of `indices` [n] lies in."""
        return np.searchsorted(self.starts, indices, side="right") - 1

    def by_shard(self, indices: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """(shard, places in `indices`) for every shard that is asked for, the places in the shard's own order."""
        order = np.argsort(indices, kind="stable")
        numbers = self.shards_of(indices[order])
        cuts = np.flatnonzero(np.diff(numbers)) + 1
        return [(int(numbers[at]), some) for at, some in zip([0, *cuts], np.split(order, cuts)) if len(some)]

    def wanted(self, number: int) -> list[Wanted]:
        """The files of a shard: itself and, where there is one, its side file."""
        side, sha256 = self._sides[number]
        shard = Wanted(self.names[number], int(self.bytes[number]), self._sha256[number])
        return [shard, Wanted(side, int(self._side_bytes[number]), sha256)] if side else [shard]

    def wanted_for(self, indices: Sequence[int]) -> list[Wanted]:
        """The files of the shards that `indices` lie in."""
        numbers = dict.fromkeys(self.shards_of(np.asarray(indices)).tolist())
        return [wanted for number in numbers for wanted in self.wanted(number)]

    def offset(self, number: int, records: np.ndarray) -> np.ndarray:
        """The byte at which the data of each of `records` [n] of a shard begins."""
        return self._offsets[self._records[number] + records]


class Recent:
    """A few open things by number, the longest unused given up first; never pickled."""

    def __init__(self, limit: int = OPEN_SHARDS):
        self._limit = limit
        self._held: OrderedDict[int, Any] = OrderedDict()

    def get(self, number: int, make: Callable[[int], Any]) -> Any:
        """The thing of that number, made when it is not held."""
        if number in self._held:
            self._held.move_to_end(number)
        else:
            self._held[number] = make(number)
            if len(self._held) > self._limit:
                self._held.popitem(last=False)
        return self._held[number]

    def drop(self, number: int) -> None:
        """Have it made anew when it is asked for again."""
        self._held.pop(number, None)

    def __len__(self) -> int:
        return len(self._held)

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return Recent, (self._limit,)


def check_sizes(files: Files, index: ShardIndex, lost_from: Callable[[int, int], str]) -> None:
    """Raise `UserError` when a shard is missing or has not the manifest's size. lost_from: the first place of a shard
    of which that many bytes are left that is not there whole, "" where all are."""
    for number in range(len(index.names)):
        shard = index.wanted(number)[0]
        path = files.find(shard)
        try:
            size = os.stat(path).st_size
        except OSError:
            raise UserError(f"{path}: shard is missing; {AGAIN}") from None
        if size != shard.bytes:
            lost = lost_from(number, size)
            told = f", cut at {lost}" if lost else ""
            raise UserError(f"{path}: {wrong_size(size, shard.bytes)}{told}; {AGAIN}")


def renew(files: Files, index: ShardIndex, indices: np.ndarray, held: Recent, checked: set[int]) -> bool:
    """Have copies of the shards that `indices` lie in checked, and fetched again; whether there are copies."""
    if not files.remote:
        return False
    for number in set(index.shards_of(indices).tolist()):
        for wanted in index.wanted(number):
            files.renew(wanted)
        held.drop(number)
        checked.discard(number)
    return True


def wrong_size(size: int, expected: int) -> str:
    """Told of a shard that is cut, or longer than it was."""
    return f"shard has {size} bytes, the manifest says {expected}"


def _cumulative(counts: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.array(counts, dtype=np.int64))]).astype(np.int64)
