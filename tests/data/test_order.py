"""The training order: every sequence once per epoch, another order in each, nothing but (n, seed, position) matters."""

from diffusion_lm.data.order import TrainingOrder


def test_each_epoch_is_a_permutation_and_they_differ():
    order = TrainingOrder(101, seed=5)
    epochs = [[order.index_at(epoch * 101 + place) for place in range(101)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(101)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert epochs[0] != list(range(101))


def test_a_pure_function_of_seed_and_position():
    forwards = TrainingOrder(17, seed=5)
    wanted = [forwards.index_at(position) for position in range(60)]
    backwards = TrainingOrder(17, seed=5)
    assert [backwards.index_at(position) for position in reversed(range(60))] == wanted[::-1]
    other = TrainingOrder(17, seed=6)
    assert [other.index_at(position) for position in range(60)] != wanted
