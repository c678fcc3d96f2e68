"""Several sources with weights: readers end to end, and an order that draws from them in exact proportions."""

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from diffusion_lm.data.info import DatasetInfo
from diffusion_lm.data.order import Order
from diffusion_lm.data.reader import Place, TokenReader
from diffusion_lm.data.shard_index import Recent

SHORTEST_PERIOD, LONGEST_PERIOD = 256, 10_000


class ConcatTokens(TokenReader):
    """The sequences of several readers of one split, end to end."""

    def __init__(self, readers: Sequence[TokenReader], info: DatasetInfo):
        self.readers, self.info = list(readers), info
        self.split, self.on_damage = readers[0].split, readers[0].on_damage
        self.starts = np.cumsum([0, *(len(reader) for reader in readers)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def place(self, index: int) -> Place:
        """See the contract; the shard carries its source's folder."""
        number, reader = self._reader(index)
        place = reader.place(index - int(self.starts[number]))
        return replace(place, shard=f"{reader.info.path}/{place.shard}")

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
        """See the contract."""
        rows, damage = np.zeros((len(indices), self.info.length), np.int64), {}
        numbers = self._numbers(indices)
        for number in np.unique(numbers):
            at = np.flatnonzero(numbers == number)
            rows[at], wrong = self.readers[number].gather(indices[at] - self.starts[number])
            damage |= {int(at[place]): why for place, why in wrong.items()}
        return rows, damage

    def after(self, index: int) -> int:
        """The next of the same source, so that proportions stay."""
        number, reader = self._reader(index)
        return int(self.starts[number]) + reader.after(index - int(self.starts[number]))

    def renew(self, indices: np.ndarray) -> bool:
        """See the contract."""
        numbers = self._numbers(indices)
        some = [(self.readers[n], indices[numbers == n] - self.starts[n]) for n in np.unique(numbers)]
        return any([reader.renew(mine) for reader, mine in some])

    def prefetch(self, indices: Sequence[int]) -> None:
        """See the contract."""
        for index in indices:
            number, reader = self._reader(index)
            reader.prefetch([index - int(self.starts[number])])

    def _numbers(self, indices: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.starts, indices, side="right") - 1

    def _reader(self, index: int) -> tuple[int, TokenReader]:
        number = int(self._numbers(np.array([index]))[0])
        return number, self.readers[number]


class MixtureOrder(Order):
    """Positions come in periods, each with every source as often as its weight says, in an order of its own.

    Source s has count_s of the P positions of a period: position p is in period k = p // P, at the j-th place of source
    s there, and takes the (k count_s + j)-th sequence of that source's own order, whose epochs are its own.
    """

    def __init__(self, orders: Sequence[Order], counts: Sequence[int], seed: int):
        self.n = sum(order.n for order in orders)
        self._orders, self._counts, self._seed = list(orders), list(counts), seed
        self._starts = np.cumsum([0, *(order.n for order in orders)])
        self._pattern = np.repeat(np.arange(len(counts)), counts)
        self._periods = Recent(4)

    def indices_at(self, positions: np.ndarray) -> np.ndarray:
        """See the contract."""
        found = np.empty_like(positions)
        sources, turns = self._draws(positions)
        for source in np.unique(sources):
            here = sources == source
            found[here] = self._starts[source] + self._orders[source].indices_at(turns[here])
        return found

    def soon(self, position: int) -> list[int]:
        """What every source wants next."""
        period = position // len(self._pattern)
        turns = [order.soon(period * count) for order, count in zip(self._orders, self._counts)]
        return [int(start) + index for start, some in zip(self._starts, turns) for index in some]

    def _draws(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The source of each position, and how many of that source came before."""
        periods, places = np.divmod(positions, len(self._pattern))
        sources, turns = np.empty_like(places), np.empty_like(places)
        for period in np.unique(periods):
            here = periods == period
            pattern, before = self._periods.get(int(period), self._period)
            sources[here] = pattern[places[here]]
            turns[here] = period * np.array(self._counts)[sources[here]] + before[places[here]]
        return sources, turns

    def _period(self, period: int) -> tuple[np.ndarray, np.ndarray]:
        pattern = np.random.default_rng([self._seed, period, len(self._counts)]).permutation(self._pattern)
        before = np.zeros_like(pattern)
        for source in range(len(self._counts)):
            here = pattern == source
            before[here] = np.arange(here.sum())
        return pattern, before


def period_counts(weights: Sequence[float]) -> list[int]:
    """How often each source stands in a period: exactly in proportion where a period of at most `LONGEST_PERIOD` does
    it, else to the nearest that has that length, at least once each."""
    exact = [Fraction(str(weight)) for weight in weights]
    shares = [weight / sum(exact) for weight in exact]
    period = math.lcm(*(share.denominator for share in shares))
    if period <= LONGEST_PERIOD:
        times = -(-SHORTEST_PERIOD // period)
        return [int(share * period * times) for share in shares]
    whole = [max(1, math.floor(share * LONGEST_PERIOD)) for share in shares]
    rest = sorted(range(len(shares)), key=lambda s: whole[s] - shares[s] * LONGEST_PERIOD)
    for source in rest[: max(0, LONGEST_PERIOD - sum(whole))]:
        whole[source] += 1
    return whole
