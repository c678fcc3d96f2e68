"""The orders of training: every sequence once per epoch, another order in each, of sizes, seed and position alone."""

import numpy as np
import pytest

from diffusion_lm.data.order import BlockOrder, TrainingOrder
from diffusion_lm.data.permutation import permutation

SIZES = [7, 1, 30, 0, 12, 5, 5, 41]
STARTS = np.cumsum([0, *SIZES])
MAKE = {
    "sequences": lambda seed: TrainingOrder(101, seed),
    "blocks": lambda seed: BlockOrder(STARTS, 3, seed),
    "one block": lambda seed: BlockOrder(STARTS, 99, seed),
}


@pytest.fixture(params=MAKE)
def make(request):
    return MAKE[request.param]


def test_each_epoch_is_a_permutation_and_they_differ(make):
    order = make(5)
    epochs = [[order.index_at(epoch * 101 + place) for place in range(101)] for epoch in range(3)]
    assert order.n == 101 and all(sorted(epoch) == list(range(101)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert epochs[0] != list(range(101))


def test_a_pure_function_of_seed_and_position(make):
    wanted = make(5).indices_at(np.arange(360))
    backwards = make(5)
    assert [backwards.index_at(position) for position in reversed(range(360))] == wanted[::-1].tolist()
    mixed = np.random.default_rng(0).permutation(360)
    assert make(5).indices_at(mixed).tolist() == wanted[mixed].tolist()
    assert make(6).indices_at(np.arange(360)).tolist() != wanted.tolist()


def test_the_order_of_sequences_is_numpys_permutation_keyed_by_seed_and_epoch():
    wanted = [np.random.default_rng([5, epoch]).permutation(101) for epoch in range(3)]
    assert TrainingOrder(101, 5).indices_at(np.arange(303)).tolist() == np.concatenate(wanted).tolist()


def test_a_block_wants_few_shards_and_mixes_them():
    order = BlockOrder(STARTS, 3, 5)
    shards = [np.searchsorted(STARTS, order.index_at(p), side="right") - 1 for p in range(202)]
    for epoch in range(2):
        first_use = list(dict.fromkeys(int(shard) for shard in shards[epoch * 101 : (epoch + 1) * 101]))
        assert sorted(first_use) == [0, 1, 2, 4, 5, 6, 7]
    held = [set(shards[at : at + 9]) for at in range(0, 202 - 9)]
    assert max(len(some) for some in held) <= 6  # two blocks at most meet
    indices = order.indices_at(np.arange(101))
    assert (np.diff(indices) == 1).mean() < 0.2


def test_what_is_wanted_soon_covers_this_block_and_the_next():
    order = BlockOrder(STARTS, 3, 5)
    for position in range(0, 202):
        soon = {int(np.searchsorted(STARTS, index, side="right")) - 1 for index in order.soon(position)}
        assert int(np.searchsorted(STARTS, order.index_at(position), side="right")) - 1 in soon
        assert len(soon) <= 6
    assert TrainingOrder(101, 5).soon(7) == []


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 16, 17, 1000, 4097])
def test_a_permutation_without_a_table_is_one(n):
    found = permutation(n, [3, 4], largest_table=0)(np.arange(n))
    assert sorted(found.tolist()) == list(range(n))
    if n >= 1000:
        assert found.tolist() != permutation(n, [3, 5], largest_table=0)(np.arange(n)).tolist()
        # a permutation drawn at random keeps about one place, and has no direction
        assert (found == np.arange(n)).sum() < 10 and abs(np.corrcoef(found, np.arange(n))[0, 1]) < 5 / n**0.5


def test_places_beyond_any_memory():
    n = 4 * 10**12
    places = np.array([0, 1, 2, n - 2, n - 1])
    found = permutation(n, [0])(places)
    assert len(set(found.tolist())) == 5 and found.min() >= 0 and found.max() < n
