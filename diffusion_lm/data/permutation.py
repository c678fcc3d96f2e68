"""Permutations of 0 .. n - 1 that are functions of a key: a table where it fits, a Feistel network where it would not.

A network of four rounds over the two halves of a place's bits is a permutation of a power of four; a result that lies
outside 0 .. n - 1 goes through again until it lies inside (cycle walking), which keeps it a permutation. It takes no
memory, so that 4 trillion tokens can be in one global order.
"""

from collections.abc import Callable, Sequence

import numpy as np

LARGEST_TABLE = 2**26
ROUNDS = 4
_MIX = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)  # SplitMix64's


def permutation(n: int, key: Sequence[int], largest_table: int = LARGEST_TABLE) -> Callable[[np.ndarray], np.ndarray]:
    """A function from places [k] to places [k], one to one on 0 .. n - 1."""
    generator = np.random.default_rng(list(key))
    if n <= largest_table:
        table = generator.permutation(n)
        return lambda places: table[places]
    return Feistel(n, generator.integers(0, 2**63, ROUNDS).astype(np.uint64))


class Feistel:
    """The network, with one key per round."""

    def __init__(self, n: int, keys: np.ndarray):
        self.n = n
        self._keys = keys
        self._half = np.uint64(-(-(n - 1).bit_length() // 2))
        self._mask = (np.uint64(1) << self._half) - np.uint64(1)

    def __call__(self, places: np.ndarray) -> np.ndarray:
        found = self._rounds(places.astype(np.uint64))
        while (outside := found >= self.n).any():
            found[outside] = self._rounds(found[outside])
        return found.astype(np.int64)

    def _rounds(self, value: np.ndarray) -> np.ndarray:
        left, right = value >> self._half, value & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mixed(right ^ key) & self._mask)
        return (left << self._half) | right


def _mixed(value: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        value = (value ^ (value >> np.uint64(30))) * _MIX[0]
        value = (value ^ (value >> np.uint64(27))) * _MIX[1]
    return value ^ (value >> np.uint64(31))
