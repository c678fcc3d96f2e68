"""Fractional designs: a balanced part of all cells from which every factor's main effect can still be estimated.

Where all factors have two levels and the runs are a power of two the fraction is regular: the first factors are visited
completely and each other one is a product of some of them (its generator), chosen for the highest resolution and then
for minimum aberration (Fries and Hunter, Technometrics 22, 1980). Else it is a balanced, orthogonal or nearly
orthogonal array by the algorithm of Xu (Technometrics 44, 2002, "An algorithm for constructing orthogonal and
nearly-orthogonal arrays with mixed levels and small runs"): columns are added one by one, each made from a balanced one
by exchanges of two symbols that lower J2; J2 is at its bound if and only if the array is orthogonal.
"""

import math
import random
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import combinations, product

import numpy as np

STARTS, RESTARTS = 20, 20  # per column; per array
MOST_SEARCHED = 20_000  # sets of generators; beyond, they are chosen one after the other

Words = tuple[tuple[int, ...], ...]


@cache
def fraction(levels: tuple[int, ...], runs: int, generators: Words | None = None) -> np.ndarray:
    """The design, (runs, factors) of whole numbers: the level of each factor from 0 on, rows sorted.

    `generators` are the products of the first factors that make each later one; None lets them be chosen. Raises
    `ValueError` if no such fraction was found in which each level of a factor comes equally often and no cell twice,
    or if not every main effect can be estimated from it.
    """
    _check_size(levels, runs)
    base = round(math.log2(runs))
    if set(levels) == {2} and runs == 2**base:
        words = best_generators(len(levels), base) if generators is None else generators
        found = regular(base, words)
    else:
        found = _array(levels, runs)
    if not estimable(found, levels):
        raise ValueError("main effects that cannot be told apart")
    if len(np.unique(found, axis=0)) < runs:
        raise ValueError("cells that come twice")
    return found[np.lexsort(found.T[::-1])]


def _check_size(levels: Sequence[int], runs: int) -> None:
    least, multiple = 1 + sum(count - 1 for count in levels), math.lcm(*levels)
    if runs < least:
        raise ValueError(f"fewer runs than there are main effects to estimate and their mean, {least}")
    if runs % multiple:
        raise ValueError(f"levels that do not come equally often; expected a multiple of {multiple}")
    if runs >= math.prod(levels):
        raise ValueError(f"no fewer runs than cells, {math.prod(levels)}; leave out `design` to visit each once")


def regular(base: int, words: Iterable[Sequence[int]]) -> np.ndarray:
    """All combinations of `base` factors of two levels, then one more factor per word: the product of its factors."""
    full = np.array(list(product((0, 1), repeat=base)))
    # The product of signs (level 1 is +): positive if and only if the number of factors at level 0 is even.
    return np.column_stack([full, *((full[:, list(word)].sum(axis=1) + len(word) + 1) % 2 for word in words)])


@cache
def best_generators(factors: int, base: int) -> Words:
    """The generators of the factors after the first `base` ones whose defining relation has the fewest short words."""
    options = [word for size in range(base, 1, -1) for word in combinations(range(base), size)]
    more = factors - base
    if math.comb(len(options), more) <= MOST_SEARCHED:
        return min(combinations(options, more), key=lambda words: word_lengths(base, words))
    chosen: Words = ()
    for _ in range(more):
        chosen = min(((*chosen, word) for word in options if word not in chosen), key=lambda w: word_lengths(base, w))
    return chosen


def word_lengths(base: int, words: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """How many words of 1, 2, 3, ... factors the defining relation has: products that are constant over the design."""
    masks = [sum(1 << factor for factor in word) | 1 << (base + index) for index, word in enumerate(words)]
    lengths = [0] * (base + len(masks))
    relation = [0]
    for mask in masks:
        relation += [mask ^ other for other in relation]
    for word in relation[1:]:
        lengths[word.bit_count() - 1] += 1
    return tuple(lengths)


def _array(levels: tuple[int, ...], runs: int) -> np.ndarray:
    """A balanced array with small J2; the same one for the same numbers."""
    bound, best, rank = _bound(levels, runs), None, None
    for restart in range(RESTARTS):
        draw = random.Random(restart)
        # The factors of most levels first: those are the hardest to place.
        sequence = sorted(range(len(levels)), key=lambda factor: -levels[factor])
        columns: dict[int, np.ndarray] = {}
        together = np.zeros((runs, runs))
        for factor in sequence:
            columns[factor] = min((_exchanged(together, levels[factor], draw) for _ in range(STARTS)),
                                  key=lambda column: _cost(together, column))
            together += levels[factor] * (columns[factor][:, None] == columns[factor])
        found = np.column_stack([columns[factor] for factor in range(len(levels))])
        excess = (np.triu(together, 1) ** 2).sum() - bound
        now = (not estimable(found, levels), runs - len(np.unique(found, axis=0)), excess)
        if rank is None or now < rank:
            best, rank = found, now
        if now <= (False, 0, 1e-6):
            break
    assert best is not None
    return best


def _bound(levels: Sequence[int], runs: int) -> float:
    """The J2 of an orthogonal array: equation 2 of Xu with the levels as weights."""
    size = len(levels)
    return ((runs * size) ** 2 + sum(count - 1 for count in levels) * runs**2 - runs * sum(levels) ** 2) / 2


def _cost(together: np.ndarray, column: np.ndarray) -> float:
    """What a column adds to J2, up to a constant: the coincidences so far of the runs that are equal in it."""
    return float(np.triu(together * (column[:, None] == column), 1).sum())


def _exchanged(together: np.ndarray, count: int, draw: random.Random) -> np.ndarray:
    """A balanced column of `count` levels in which no exchange of two symbols lowers J2 any more."""
    runs = len(together)
    symbols = [run % count for run in range(runs)]
    draw.shuffle(symbols)
    column = np.array(symbols)
    apart = together - np.diag(np.diag(together))
    while True:
        beside = apart @ np.eye(count)[column]  # (runs, levels): coincidences with the other runs of that level
        own = beside[np.arange(runs), column]
        swapped = beside[:, column]  # of run a, at the level of run b
        change = swapped + swapped.T - 2 * apart - own[:, None] - own
        change[column[:, None] == column] = 0
        a, b = np.unravel_index(np.argmin(change), change.shape)
        if change[a, b] > -1e-9:
            return column
        column[a], column[b] = column[b], column[a]


def effects(column: np.ndarray, count: int) -> np.ndarray:
    """Orthonormal contrasts of a factor's levels, (runs, count - 1): over balanced runs of mean 0 and mean square 1."""
    basis = np.linalg.qr(np.column_stack([np.ones(count), np.eye(count)[:, : count - 1]]))[0][:, 1:]
    return basis[column] * math.sqrt(count)


def estimable(design: np.ndarray, levels: Sequence[int]) -> bool:
    """Whether a mean and all main effects can be estimated together."""
    parts = [effects(design[:, factor], count) for factor, count in enumerate(levels)]
    model = np.column_stack([np.ones(len(design)), *parts])
    return bool(np.linalg.matrix_rank(model) == model.shape[1])


def strength(design: np.ndarray, levels: Sequence[int]) -> int:
    """The most columns of which, however chosen, every combination of levels comes equally often."""
    for size in range(1, len(levels) + 1):
        for factors in combinations(range(len(levels)), size):
            cells = math.prod(levels[factor] for factor in factors)
            counts = np.unique(design[:, list(factors)], axis=0, return_counts=True)[1]
            if len(counts) < cells or len(set(counts.tolist())) > 1:
                return size - 1
    return len(levels)


def aliases(design: np.ndarray, levels: Sequence[int]) -> dict[int, list[tuple[int, int]]]:
    """For each factor the interactions of two others that its main effect is mixed with, wholly or in part."""
    parts = [effects(design[:, factor], count) for factor, count in enumerate(levels)]
    found: dict[int, list[tuple[int, int]]] = {}
    for factor in range(len(levels)):
        for pair in combinations([other for other in range(len(levels)) if other != factor], 2):
            both = (parts[pair[0]][:, :, None] * parts[pair[1]][:, None, :]).reshape(len(design), -1)
            if np.abs(parts[factor].T @ both).max() / len(design) > 1e-9:
                found.setdefault(factor, []).append(pair)
    return found
