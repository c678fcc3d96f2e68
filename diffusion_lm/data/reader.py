"""What a reader of token sequences is, and what becomes of a sequence that is damaged.

Readers differ in where the tokens lie; that a row is checked on every read, and what replaces one that fails, is said
here once, so that a batch depends on (stored bytes, indices) alone, whatever process reads it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from diffusion_lm.data.info import DatasetInfo
from diffusion_lm.errors import RunError

HELP = (
    "`python -m data_prep verify` lists all damage; copy that shard again, or set data.on_damage=skip to go on without "
    "the sequence"
)


class DamagedData(RunError):
    """Stored tokens that are not what was written."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sequence lies: row `row` of record `record` of a shard."""

    shard: str
    record: int
    row: int

    def __str__(self) -> str:
        return f"{self.shard}, record {self.record}, row {self.row}"


@dataclass(slots=True)
class Found:
    """rows [n, L] int64; skipped: {index that was left out: why}."""

    rows: np.ndarray
    skipped: dict[int, str] = field(default_factory=dict)


class TokenReader(ABC):
    """The sequences of one split: ``reader[i] -> int64 [L]``, ``len(reader)``, ``reader.read(indices)``; picklable.

    With `on_damage` ``error`` a damaged sequence raises `DamagedData`, which names shard, record and row. With ``skip``
    it is left out and its place is taken by the next whole sequence of the split (the first follows the last): batches
    keep their size, every other sequence keeps its place, and the replacement is seen once more.
    """

    info: DatasetInfo
    split: str
    on_damage: str

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def place(self, index: int) -> Place:
        """Where sequence `index` lies."""

    @abstractmethod
    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
        """Rows [n, L] int64 for `indices` [n], and why for every place in `indices` whose row is damaged."""

    def after(self, index: int) -> int:
        """The sequence to try when `index` is damaged."""
        return (index + 1) % len(self)

    def renew(self, indices: np.ndarray) -> bool:
        """Told that `indices` are damaged. Whether what they are read from was a copy, and was checked and fetched
        again: then they are worth another try."""
        return False

    @abstractmethod
    def prefetch(self, indices: Sequence[int]) -> None:
        """Told ahead which shards are wanted soon, by one sequence of each."""

    def read(self, indices: Sequence[int] | np.ndarray) -> Found:
        """The sequences `indices` [n]. Raises `IndexError` outside the split, `DamagedData` where they are damaged."""
        indices = np.asarray(indices, dtype=np.int64)
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"sequences {indices.min()} to {indices.max()} of {len(self)}")
        rows, damage = self.gather(indices)
        if damage and self.renew(indices[list(damage)]):
            rows, damage = self.gather(indices)
        if damage and self.on_damage == "error":
            at, why = min(damage.items())
            raise DamagedData(f"{self._name(int(indices[at]))}: {why}; {HELP}")
        for at in damage:
            rows[at] = self._instead_of(int(indices[at]))
        return Found(rows, {int(indices[at]): f"{self._name(int(indices[at]))}: {why}" for at, why in damage.items()})

    def __getitem__(self, index: int) -> np.ndarray:
        return self.read([index]).rows[0]

    def _instead_of(self, index: int) -> np.ndarray:
        other, gone = self.after(index), 0
        while (distance := (other - index) % len(self)) > gone:  # else it has come around
            rows, damage = self.gather(np.array([other]))
            if not damage:
                return rows[0]
            other, gone = self.after(other), distance
        raise DamagedData(f"{self.info.path}: no {self.split} sequence is whole; make the shards again")

    def _name(self, index: int) -> str:
        return f"{self.info.path}: {self.place(index)} ({self.split} sequence {index})"
