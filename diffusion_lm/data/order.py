"""The order of training: a pure function of (number of sequences, seed, position), the same for any number of devices,
reading processes and restarts."""

import numpy as np


class TrainingOrder:
    """A fresh permutation of all `n` sequences in each epoch; position p is in epoch ``p // n``.

    The current epoch's permutation is kept (8 bytes per sequence).
    """

    def __init__(self, n: int, seed: int):
        assert n > 0
        self.n = n
        self.seed = seed
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)

    def index_at(self, position: int) -> int:
        """The sequence that stands at `position` >= 0 of the order."""
        epoch, place = divmod(position, self.n)
        if epoch != self._epoch:
            self._permutation = np.random.default_rng([self.seed, epoch]).permutation(self.n)
            self._epoch = epoch
        return int(self._permutation[place])


def spread_evenly(count: int, n: int) -> np.ndarray:
    """`count` of the places 0 .. n - 1, at even distances, the first among them."""
    return np.arange(count) * n // count
