"""The order of training: a pure function of (sizes of the shards, seed, position), the same for any number of devices,
reading processes and restarts. Position p is the p-th sequence that training sees."""

from abc import ABC, abstractmethod

import numpy as np

from diffusion_lm.data.permutation import permutation
from diffusion_lm.data.shard_index import Recent


class Order(ABC):
    """Which sequence stands at each position, for ever."""

    n: int

    @abstractmethod
    def indices_at(self, positions: np.ndarray) -> np.ndarray:
        """The sequences [k] that stand at `positions` [k] >= 0."""

    def index_at(self, position: int) -> int:
        """The sequence that stands at `position`."""
        return int(self.indices_at(np.array([position]))[0])

    def soon(self, position: int) -> list[int]:
        """A sequence of each shard that is wanted next, when few are wanted at a time."""
        return []


class TrainingOrder(Order):
    """A fresh permutation of all `n` sequences in each epoch; position p is in epoch ``p // n``."""

    def __init__(self, n: int, seed: int):
        assert n > 0
        self.n = n
        self.seed = seed
        self._epochs = Recent(2)

    def indices_at(self, positions: np.ndarray) -> np.ndarray:
        """See the contract. Two epochs' permutations are kept."""
        epochs, places = np.divmod(positions, self.n)
        found = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            found[here] = self._epochs.get(int(epoch), self._permutation)(places[here])
        return found

    def _permutation(self, epoch: int):
        return permutation(self.n, [self.seed, epoch])


class BlockOrder(Order):
    """Shards in a fresh order in each epoch, taken `block_shards` at a time: a block's sequences are mixed with one
    another, so that few shards are wanted at a time. `starts` [S + 1]: the sequence at which each shard begins."""

    def __init__(self, starts: np.ndarray, block_shards: int, seed: int):
        assert starts[-1] > 0
        self.n = int(starts[-1])
        self.seed = seed
        self.block_shards = block_shards
        self._starts = np.asarray(starts)
        self._epochs = Recent(2)
        self._blocks = Recent(4)

    def indices_at(self, positions: np.ndarray) -> np.ndarray:
        """See the contract."""
        found = np.empty_like(positions)
        numbers = self._numbers(positions)
        for number in np.unique(numbers):
            here = numbers == number
            first, indices = self._blocks.get(int(number), self._block)
            found[here] = indices[positions[here] - first]
        return found

    def soon(self, position: int) -> list[int]:
        """The first sequence of every shard of the block at `position`, then of the next."""
        number = int(self._numbers(np.array([position]))[0])
        shards = [int(shard) for block in (number, number + 1) for shard in self._shards(block)]
        return [int(self._starts[shard]) for shard in dict.fromkeys(shards)]

    @property
    def _per_epoch(self) -> int:
        return -(-(len(self._starts) - 1) // self.block_shards)

    def _numbers(self, positions: np.ndarray) -> np.ndarray:
        """The block, counted over all epochs, that each position lies in."""
        epochs, places = np.divmod(positions, self.n)
        numbers = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            _, ends = self._epochs.get(int(epoch), self._epoch)
            numbers[here] = epoch * self._per_epoch + np.searchsorted(ends, places[here], side="right")
        return numbers

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards in this epoch's order, and the place at which each of their blocks ends."""
        shards = np.random.default_rng([self.seed, epoch]).permutation(len(self._starts) - 1)
        sizes = np.diff(self._starts)[shards]
        return shards, np.cumsum(np.add.reduceat(sizes, np.arange(0, len(sizes), self.block_shards)))

    def _shards(self, number: int) -> np.ndarray:
        epoch, block = divmod(number, self._per_epoch)
        shards, _ = self._epochs.get(epoch, self._epoch)
        return shards[block * self.block_shards : (block + 1) * self.block_shards]

    def _block(self, number: int) -> tuple[int, np.ndarray]:
        """The position at which a block begins, and its sequences in order."""
        epoch, block = divmod(number, self._per_epoch)
        _, ends = self._epochs.get(epoch, self._epoch)
        inside = [np.arange(self._starts[shard], self._starts[shard + 1]) for shard in self._shards(number)]
        mixed = np.random.default_rng([self.seed, epoch, block]).permutation(np.concatenate(inside))
        return epoch * self.n + (int(ends[block - 1]) if block else 0), mixed


def spread_evenly(count: int, n: int) -> np.ndarray:
    """`count` of the places 0 .. n - 1, at even distances, the first among them."""
    return np.arange(count) * n // count
