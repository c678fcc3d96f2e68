"""A run that goes on with other devices, reading processes and batches sees each remaining sequence exactly once."""

import itertools

import numpy as np
import pytest

from diffusion_lm.data.datamodule import accumulation_steps
from diffusion_lm.data.dataset import ShardedTokens
from diffusion_lm.data.info import TokenDataConfig
from diffusion_lm.data.open import open_order, open_tokens

SEED = 3


@pytest.fixture
def folder(make_shards, texts):
    return make_shards(texts[:120], records_per_shard=1)


def phase(make_module, folder, state, *, world=1, workers=0, batch=12, steps=1, **config):
    """{position: row} of some steps on all devices of a world, and the state that a checkpoint then holds."""
    seen, start = {}, 0 if state is None else state["step"]
    for rank in range(world):
        options = {"global_batch": batch, "micro_batch": 1, "seed": SEED, **config}
        module = make_module(folder, step=start, rank=rank, world=world, workers=workers, **options)
        if state is not None:
            module.load_state_dict(state)
        take = steps * accumulation_steps(batch, 1, world)
        for one in itertools.islice(iter(module.train_dataloader()), take):
            for position, row in zip(one["position"].tolist(), one["tokens"].tolist()):
                assert position not in seen
                seen[position] = row
    module.trainer.global_step = start + steps
    return seen, module.state_dict()


def expected(folder, positions):
    """The rows of the order as it is documented: a permutation per epoch, by NumPy, keyed (seed, epoch)."""
    tokens = ShardedTokens(folder, "train")
    n = len(tokens)
    epochs = {p // n: np.random.default_rng([SEED, p // n]).permutation(n) for p in positions}
    return {p: tokens[int(epochs[p // n][p % n])].tolist() for p in positions}


def test_every_remaining_sequence_once_however_often_it_goes_on(make_module, folder):
    n = len(ShardedTokens(folder, "train"))
    lives = [
        {"world": 2, "batch": 12, "steps": 3},
        {"world": 3, "workers": 2, "batch": 12, "steps": 1},
        {"world": 4, "batch": 24, "steps": 2},  # 48 sequences are two batches of 24
        {"world": 1, "workers": 1, "batch": 24, "steps": 1},
        {"world": 2, "batch": 6, "steps": 4},
        {"world": 3, "batch": 6, "steps": n // 6},  # over the end of the epoch
        {"world": 1, "batch": 6, "steps": 1},
    ]
    seen, state = {}, None
    for life in lives:
        new, state = phase(make_module, folder, state, **life)
        assert not set(new) & set(seen)
        seen |= new
    total = sum(life["batch"] * life["steps"] for life in lives)
    assert set(seen) == set(range(total)) and total > n
    assert state["consumed"] == total and state["step"] == sum(life["steps"] for life in lives)
    assert seen == expected(folder, range(total))


@pytest.mark.parametrize("past", [-1, 0, 1])
def test_going_on_around_the_end_of_an_epoch_twice_in_a_row(make_module, folder, past):
    n = len(ShardedTokens(folder, "train"))
    state = {"corpus_hash": make_module(folder).info.corpus_hash, "seed": SEED, "order": "sequences"}
    state |= {"global_batch": 1, "consumed": n + past, "step": n + past}
    for world, batch in ((1, 1), (1, 1)):
        _, again = phase(make_module, folder, state, world=world, batch=batch, steps=0)
        assert again == state
    seen, _ = phase(make_module, folder, state, batch=1, steps=3)
    assert seen == expected(folder, range(n + past, n + past + 3))


def test_checkpoints_from_before_the_step_was_kept_are_read(make_module, folder):
    state = {"corpus_hash": make_module(folder).info.corpus_hash, "seed": SEED, "global_batch": 12, "consumed": 36}
    module = make_module(folder, step=3, global_batch=12, micro_batch=1, seed=SEED)
    module.load_state_dict(state)
    assert module.position == 36


@pytest.mark.parametrize("shuffle", [{}, {"shuffle": "blocks", "block_shards": 2}])
def test_all_worlds_and_reading_processes_give_the_same_rows(make_module, folder, shuffle):
    config = TokenDataConfig(path=str(folder), length=32, **shuffle)
    tokens = open_tokens(config, "train")
    order = open_order(config, tokens, SEED)
    start = {"corpus_hash": tokens.info.corpus_hash, "seed": SEED, "global_batch": 12, "consumed": 24, "step": 2}
    start["order"] = "blocks of 2 shards" if shuffle else "sequences"
    wanted = {p: tokens[order.index_at(p)].tolist() for p in range(24, 48)}
    for world, workers in ((1, 0), (2, 1), (3, 0), (4, 2)):
        seen, _ = phase(make_module, folder, start, world=world, workers=workers, steps=2, **shuffle)
        assert seen == wanted
