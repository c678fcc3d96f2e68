"""Fractions against the arrays of textbooks, and against counting."""

import math
from itertools import combinations, product

import numpy as np
import pytest

from sweeps.definition import arrays

# Box, Hunter and Hunter, Statistics for Experimenters, table 12.15: runs and the resolution of the best 2^(k-p).
RESOLUTIONS = {(3, 4): 3, (4, 8): 4, (5, 8): 3, (5, 16): 5, (6, 8): 3, (6, 16): 4, (6, 32): 6, (7, 8): 3, (7, 16): 4,
               (7, 64): 7, (8, 16): 4, (8, 64): 5, (9, 32): 4, (10, 32): 4, (11, 16): 3, (15, 16): 3}
# Fries and Hunter 1980, Chen, Sun and Wu 1993: words of 3, 4, 5, ... factors of the minimum aberration design.
ABERRATION = {(5, 8): (2, 1), (6, 8): (4, 3), (6, 16): (0, 3), (7, 8): (7, 7, 0, 0, 1), (7, 16): (0, 7),
              (7, 32): (0, 1, 2), (8, 16): (0, 14, 0, 0, 0, 1)}  # the last: extended Hamming code, 1 + 14 x^4 + x^8


@pytest.mark.parametrize(("factors", "runs"), RESOLUTIONS)
def test_two_level_fractions_have_the_textbook_resolution(factors, runs):
    design = arrays.fraction((2,) * factors, runs)
    signs = 2 * design - 1
    # A word of the defining relation is a product of columns that is the same in all runs; the shortest is the
    # resolution. Counted here over all products of up to 7 columns.
    shortest = next(size for size in range(1, factors + 1) for word in combinations(range(factors), size)
                    if abs(signs[:, word].prod(axis=1).sum()) == runs)
    assert shortest == RESOLUTIONS[factors, runs]
    assert design.shape == (runs, factors) and len(np.unique(design, axis=0)) == runs
    assert (design.sum(axis=0) == runs / 2).all()


@pytest.mark.parametrize(("factors", "runs"), ABERRATION)
def test_generators_have_minimum_aberration(factors, runs):
    base = round(math.log2(runs))
    found = arrays.word_lengths(base, arrays.best_generators(factors, base))[2:]
    expected = ABERRATION[factors, runs]
    assert found == expected + (0,) * (len(found) - len(expected))


def test_the_half_fraction_is_the_textbook_one():
    # 2^(4-1) with D = ABC: yates order, the principal fraction I = ABCD.
    rows = [(a, b, c, a * b * c) for a, b, c in product((-1, 1), repeat=3)]
    assert sorted(map(tuple, 2 * arrays.fraction((2,) * 4, 8) - 1)) == sorted(rows)


@pytest.mark.parametrize(("levels", "runs"), [
    ((2,) * 11, 12),  # Plackett and Burman
    ((3,) * 4, 9),  # Taguchi's L9
    ((4, 2, 2, 2, 2), 8),  # L8 with a column of four levels
    ((2, 3, 3, 3, 3), 18),  # part of L18
    ((3, 2, 2, 2, 2), 12),  # L12 with a column of three levels
    ((2, 3, 3), 12),  # none exists: 9 does not divide 12
])
def test_arrays_are_found_orthogonal_where_they_exist(levels, runs):
    design = arrays.fraction(levels, runs)
    orthogonal = runs % 9 == 0 or levels.count(3) < 2
    for one, other in combinations(range(len(levels)), 2):
        pairs = {pair: 0 for pair in product(range(levels[one]), range(levels[other]))}
        for row in design.tolist():
            pairs[row[one], row[other]] += 1
        if orthogonal:
            assert set(pairs.values()) == {runs / levels[one] / levels[other]}, (one, other)
    assert (arrays.strength(design, levels) >= 2) == orthogonal


@pytest.mark.parametrize(("levels", "runs"), [((5, 2, 2), 10), ((3, 3, 2), 12), ((6, 4, 2), 24), ((2,) * 5, 10)])
def test_other_fractions_are_balanced_and_every_main_effect_can_be_estimated(levels, runs):
    design = arrays.fraction(levels, runs)
    for factor, count in enumerate(levels):
        assert [int((design[:, factor] == level).sum()) for level in range(count)] == [runs // count] * count
    # Effects that were put in come out again by least squares on indicator columns.
    truth = [np.arange(count) ** 2 * (factor + 1.0) for factor, count in enumerate(levels)]
    value = 7 + sum(effect[design[:, factor]] for factor, effect in enumerate(truth))
    columns = [np.ones(runs)] + [design[:, f] == level for f, count in enumerate(levels) for level in range(1, count)]
    found = iter(np.linalg.lstsq(np.column_stack(columns).astype(float), value, rcond=None)[0][1:])
    for effect in truth:
        assert [next(found) for _ in effect[1:]] == pytest.approx(list(effect[1:] - effect[0]))


def test_one_and_the_same_design_every_time():
    first = arrays.fraction((4, 3, 2), 12)
    arrays.fraction.cache_clear()
    assert (arrays.fraction((4, 3, 2), 12) == first).all()


def test_aliases_of_the_textbook_quarter_fraction():
    # 2^(5-2) with D = AB, E = AC, by hand: A = BD = CE, B = AD, C = AE, D = AB, E = AC.
    design = arrays.regular(3, [(0, 1), (0, 2)])
    assert arrays.aliases(design, (2,) * 5) == {0: [(1, 3), (2, 4)], 1: [(0, 3)], 2: [(0, 4)], 3: [(0, 1)], 4: [(0, 2)]}


@pytest.mark.parametrize(("levels", "runs", "reason"), [
    ((2,) * 4, 4, "fewer runs than there are main effects to estimate and their mean, 5"),
    ((3, 2, 2), 8, "levels that do not come equally often; expected a multiple of 6"),
    ((2, 2, 2), 8, "no fewer runs than cells, 8; leave out `design` to visit each once"),
])
def test_what_cannot_be_is_refused(levels, runs, reason):
    with pytest.raises(ValueError) as refused:
        arrays.fraction(levels, runs)
    assert str(refused.value) == reason


def test_generators_that_mix_main_effects_are_refused():
    with pytest.raises(ValueError, match=r"^main effects that cannot be told apart$"):
        arrays.fraction((2,) * 5, 8, ((0, 1), (0, 1)))
