"""Counter-based noise: known answers of Philox, laws of the draws, and that nothing depends on how rows are batched."""

import math

import pytest
import torch

import diffusion_lm.random
from diffusion_lm.random import Noise, Stream, categorical, philox, stratified_levels, stratified_times

# Random123's kat_vectors, philox4x32 10: counter, key, result
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_philox_known_answers(counter, key, result):
    assert philox(torch.tensor([counter]), key[0] + (key[1] << 32)).tolist() == [list(result)]


def plain_philox(counter: tuple[int, ...], seed: int) -> tuple[int, ...]:
    """The paper's round in Python integers."""
    a, b, c, d = counter
    k, m = seed % 2**32, seed >> 32
    for _ in range(10):
        low, high = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (high >> 32) ^ b ^ k, high % 2**32, (low >> 32) ^ d ^ m, low % 2**32
        k, m = (k + 0x9E3779B9) % 2**32, (m + 0xBB67AE85) % 2**32
    return a, b, c, d


def test_philox_of_many_counters():
    counters = torch.randint(2**32, (50, 4), generator=torch.Generator().manual_seed(0))
    seed = 0xDEADBEEFCAFE
    assert philox(counters, seed).tolist() == [list(plain_philox(tuple(c), seed)) for c in counters.tolist()]


def noise(rows: int = 100, seed: int = 0) -> Noise:
    return Noise(seed, torch.arange(rows))


def largest_gap(values: torch.Tensor, distribution) -> float:
    """Kolmogorov and Smirnov's statistic times sqrt(n): above 2.23 with probability 1e-4."""
    values = values.flatten().sort().values
    n, law = len(values), distribution(values)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    return float(torch.maximum(steps[1:] - law, law - steps[:-1]).max()) * math.sqrt(n)


@pytest.mark.parametrize("stream", list(Stream))
def test_uniform_numbers(stream):
    u = noise(200).uniform(stream, 501)
    assert u.dtype == torch.float64
    assert u.shape == (200, 501)
    assert u.min() > 0
    assert u.max() < 1
    assert largest_gap(u, lambda v: v) < 2.23
    assert abs(float(u.mean()) - 0.5) < 4 / math.sqrt(12 * u.numel())
    assert abs(float(u.var()) - 1 / 12) < 4 * math.sqrt(1 / 180 / u.numel())


def test_uniform_numbers_are_float64_deep():
    """Numbers below 2^-24 exist, and the low bits are used."""
    u = noise(64).uniform(Stream.TOKEN, 4000)
    assert (u * 2**24 % 1).unique().numel() > 0.99 * u.numel()
    assert 0 < u.min() < 2**-15


@pytest.mark.parametrize("word", [0, 0xFFFFFFFF])
def test_the_ends_are_never_drawn(monkeypatch, word):
    """Not even from the lowest and the highest words that Philox can give."""
    monkeypatch.setattr(diffusion_lm.random, "philox", lambda counter, seed: torch.full_like(counter, word))
    u = noise(1).uniform(Stream.TOKEN, 3)
    assert (u > 0).all()
    assert (u < 1).all()
    assert noise(1).normal(Stream.TOKEN, 3).isfinite().all()


@pytest.mark.parametrize("shape", [(1,), (7,), (300,), (20, 16)])
def test_normal_numbers_keep_their_shape(shape):
    assert noise(5).normal(Stream.CORRUPT, *shape).shape == (5, *shape)
    assert noise(5).uniform(Stream.CORRUPT, *shape).shape == (5, *shape)


def test_normal_numbers():
    z = noise(200).normal(Stream.CORRUPT, 25, 20)
    n = z.numel()
    assert z.dtype == torch.float64
    assert largest_gap(z, torch.special.ndtr) < 2.23
    for power, expected, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((z**power).mean()) - expected) < 4 * math.sqrt(spread / n)
    flat = z.flatten(1)
    products = flat[:, :250] * flat[:, 250:]  # Box and Muller's pairs
    assert abs(float(products.mean())) < 4 / math.sqrt(products.numel())


def test_numbers_of_other_rows_streams_draws_and_seeds_are_other_numbers():
    u = [noise(3).uniform(s, 50) for s in Stream] + [noise(3).at(k).uniform(Stream.TIME, 50) for k in (1, 2, 2**20)]
    u += [noise(3, seed).uniform(Stream.TIME, 50) for seed in (1, 2**32, 2**40)]
    u += [Noise(0, torch.arange(3) + start).uniform(Stream.TIME, 50) for start in (3, 2**32, 2**40)]
    u = torch.cat(u).flatten()
    assert len(u.unique()) == len(u)


def test_neighbouring_keys_are_uncorrelated():
    u = noise(400).uniform(Stream.CORRUPT, 200) - 0.5
    for a, b in ((u[1:], u[:-1]), (u[:, 1:], u[:, :-1]), (u, noise(400).at(1).uniform(Stream.CORRUPT, 200) - 0.5)):
        assert abs(float((a * b).mean())) < 4 / 12 / math.sqrt(a.numel())


def test_a_row_does_not_depend_on_its_batch():
    position = torch.tensor([7, 2**33 + 1, 0, 12345])
    for draw in (0, 5):
        whole = Noise(3, position, draw)
        for row in range(4):
            alone = Noise(3, position[row : row + 1], draw)
            assert torch.equal(alone.uniform(Stream.TOKEN, 9)[0], whole.uniform(Stream.TOKEN, 9)[row])
            assert torch.equal(alone.normal(Stream.PRIOR, 3, 5)[0], whole.normal(Stream.PRIOR, 3, 5)[row])


def test_a_draw_per_row():
    position, draw = torch.tensor([4, 4, 9]), torch.tensor([0, 1, 1])
    together = Noise(3, position).at(draw).uniform(Stream.CHANGE, 6)
    for row in range(3):
        alone = Noise(3, position[row : row + 1], int(draw[row])).uniform(Stream.CHANGE, 6)
        assert torch.equal(together[row], alone[0])


def test_a_longer_row_begins_with_the_shorter_one():
    assert torch.equal(noise(4).uniform(Stream.CORRUPT, 9)[:, :5], noise(4).uniform(Stream.CORRUPT, 5))


@pytest.mark.parametrize(("first", "count"), [(0, 1), (1, 1), (1, 2), (2, 3), (7, 2), (8, 1)])
def test_a_stretch_of_a_row_is_what_stands_there(first, count):
    whole = noise(4).uniform(Stream.TOKEN, 9)
    assert torch.equal(noise(4).stretch(Stream.TOKEN, first, count), whole[:, first : first + count])


@pytest.mark.parametrize("global_batch", [1, 3, 8, 64])
def test_times_cover_the_range_at_every_step(global_batch):
    position = torch.arange(40 * global_batch)
    t = stratified_times(position, global_batch, seed=2).view(40, global_batch)
    assert t.dtype == torch.float64
    assert t.min() >= 0
    assert t.max() < 1
    ordered = t.sort(1).values
    gaps = torch.cat((ordered.diff(dim=1), ordered[:, :1] + 1 - ordered[:, -1:]), 1)
    torch.testing.assert_close(gaps, torch.full_like(gaps, 1 / global_batch))
    assert (torch.bincount((t * global_batch).long().flatten(), minlength=global_batch) == 40).all()


def test_no_slot_is_tied_to_a_band_of_times():
    """Over many steps every slot, so every device, sees all times alike, independently from step to step."""
    slots, steps = 4, 2000
    t = stratified_times(torch.arange(slots * steps), slots, seed=0).view(steps, slots)
    for slot in range(slots):
        assert largest_gap(t[:, slot], lambda v: v) < 2.23
        own = t[:, slot] - 0.5
        assert abs(float((own[1:] * own[:-1]).mean())) < 4 / 12 / math.sqrt(steps)
    orders = (t.argsort(1) * slots ** torch.arange(slots)).sum(1).unique()
    assert len(orders) == 24


def test_times_do_not_depend_on_who_asks():
    position = torch.arange(64)
    t = stratified_times(position, 16, seed=5)
    for part in (position[3:4], position[10:30], position.flip(0), position[::7]):
        assert torch.equal(stratified_times(part, 16, seed=5), t[part])
    assert not torch.equal(stratified_times(position, 16, seed=6), t)


def test_levels_are_one_per_stratum_and_uniform():
    levels = stratified_levels(noise(3000), 5)
    assert ((levels * 5).floor() == torch.arange(5)).all()
    assert largest_gap(levels[:, 3] * 5 - 3, lambda v: v) < 2.23


def test_categorical_has_the_law_it_is_given():
    p = torch.tensor([0.0, 0.5, 0.001, 0.0, 0.299, 0.2, 0.0], dtype=torch.float64)
    draws = categorical(3 * p.expand(200, 500, 7), noise(200).uniform(Stream.TOKEN, 500))
    counts, expected = torch.bincount(draws.flatten(), minlength=7).double(), p * draws.numel()
    assert (counts[p == 0] == 0).all()
    statistic = (((counts - expected) ** 2)[p > 0] / expected[p > 0]).sum()
    assert float(torch.special.gammaincc(torch.tensor(1.5, dtype=torch.float64), statistic / 2)) > 1e-4


def test_categorical_never_draws_the_impossible_at_the_ends():
    p = torch.tensor([0.0, 0.3, 0.7, 0.0, 0.0])
    ends = torch.tensor([2.0**-60, 2.0**-54, 0.5, 1 - 2.0**-53], dtype=torch.float64)
    assert set(categorical(p.expand(4, 5), ends).tolist()) <= {1, 2}


def test_categorical_reaches_every_token_of_a_long_tail():
    """A thousand tokens of 1e-10 each after one that is all but certain: below what float32 sums can tell apart."""
    tail = torch.full((1000,), 1e-10, dtype=torch.float64)
    p = torch.cat((1 - tail.sum(dim=0, keepdim=True), tail))
    wanted = torch.arange(1, 1001, 37)
    u = p[0] + (wanted.double() - 0.5) * 1e-10
    assert torch.equal(categorical(p.expand(len(u), -1), u), wanted)


def test_stretches_at_places_of_the_rows_own():
    """Numbers of `uniform`, from an even or odd place on, as many as are asked for."""
    place = torch.arange(100) * 7 % 31
    whole = noise().uniform(Stream.TOKEN, 40)
    for count in (1, 2, 5):
        found = noise().stretch(Stream.TOKEN, place, count)
        assert found.tolist() == [row[i : i + count].tolist() for row, i in zip(whole, place.tolist(), strict=True)]
