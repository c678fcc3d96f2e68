"""Several sources: exact proportions in every period, each source in its own order, and an exact resume."""

import itertools
from collections import Counter

import numpy as np
import pytest

from diffusion_lm.data.dataset import ShardedTokens
from diffusion_lm.data.info import TokenDataConfig, data_facts
from diffusion_lm.data.mixture import MixtureOrder, period_counts
from diffusion_lm.data.open import open_order, open_tokens
from diffusion_lm.data.order import TrainingOrder
from diffusion_lm.errors import UserError
from diffusion_lm.experiment import load


@pytest.fixture
def folders(make_shards, texts):
    return [make_shards(texts[:200], "a", records_per_shard=1), make_shards(texts[150:], "b", records_per_shard=1)]


@pytest.mark.parametrize(
    ("weights", "counts"),
    [
        ([0.7, 0.3], [182, 78]),  # periods of 10, 26 times
        ([1.0, 2.0], [86, 172]),
        ([3.0], [256]),
        ([0.5, 0.25, 0.25], [128, 64, 64]),
        ([1.0, 1e-9], [9999, 1]),  # as near as a period of 10,000 comes
    ],
)
def test_a_period_has_the_weights_proportions(weights, counts):
    assert period_counts(weights) == counts


def test_positions_are_a_pure_function_with_exact_proportions():
    orders = [TrainingOrder(40, 1), TrainingOrder(1000, 2)]
    order = MixtureOrder(orders, [3, 7], 5)
    found = order.indices_at(np.arange(1000))
    sources = (found >= 40).astype(int)
    for start in range(0, 1000, 10):
        assert Counter(sources[start : start + 10].tolist()) == {0: 3, 1: 7}
    assert found[sources == 0].tolist() == orders[0].indices_at(np.arange(300)).tolist()
    assert found[sources == 1].tolist() == (40 + orders[1].indices_at(np.arange(700))).tolist()
    again = MixtureOrder(orders, [3, 7], 5)
    assert [again.index_at(position) for position in range(999, 900, -7)] == found[999:900:-7].tolist()
    patterns = {tuple(sources[start : start + 10].tolist()) for start in range(0, 1000, 10)}
    assert len(patterns) > 30  # not one pattern over and over


def test_training_and_resume(folders, make_module):
    weights = {str(folders[0]): 3.0, str(folders[1]): 1.0}
    tokens = [ShardedTokens(folder, "train") for folder in folders]
    module = make_module("unused", sources=weights)
    batches = list(itertools.islice(iter(module.train_dataloader()), 128))
    rows = [tuple(row) for batch in batches for row in batch["tokens"].tolist()]
    mine = [{tuple(reader[i].tolist()) for i in range(len(reader))} for reader in tokens]
    only = [sum(row in mine[0] - mine[1] for row in rows), sum(row in mine[1] - mine[0] for row in rows)]
    assert only == [384, 128]  # two periods of 256
    module.trainer.global_step = 7
    later = make_module("unused", sources=weights, step=7, world=2, rank=1, workers=2)
    later.load_state_dict(module.state_dict())
    batch = next(iter(later.train_dataloader()))
    assert batch["position"].tolist() == list(range(7 * 16 + 8, 7 * 16 + 12))
    assert [tuple(row) for row in batch["tokens"].tolist()] == rows[7 * 16 + 8 : 7 * 16 + 12]
    other = make_module("unused", sources={**weights, str(folders[1]): 2.0})
    with pytest.raises(UserError, match="trained with corpus_hash="):
        other.load_state_dict(module.state_dict())


def test_validation_and_facts_cover_all_sources(folders, make_module):
    config = TokenDataConfig(length=32, sources={str(folders[0]): 3.0, str(folders[1]): 1.0})
    info, parts = data_facts(config), [ShardedTokens(folder, "val") for folder in folders]
    tokens = open_tokens(config, "val")
    assert len(tokens) == sum(len(part) for part in parts) == info.splits["val"].sequences
    assert np.array_equal(tokens[len(parts[0]) + 2], parts[1][2])
    assert f"{folders[1]}/val-000000.tar, record 0, row 2" in str(tokens.place(len(parts[0]) + 2))
    entropy = 0.75 * parts[0].info.unigram_entropy + 0.25 * parts[1].info.unigram_entropy
    assert info.unigram_entropy == pytest.approx(entropy)
    swapped = TokenDataConfig(length=32, sources={str(folders[1]): 1.0, str(folders[0]): 3.0})
    assert data_facts(swapped).corpus_hash != info.corpus_hash
    with pytest.raises(UserError, match=r"data\.sources: .* has no val sequences; leave it out"):
        tokens.readers[0].index.starts[-1] = 0
        open_order(config, tokens, 0)


def test_blocks_of_each_source_are_fetched_ahead(folders):
    sources = {str(folder): 1.0 for folder in folders}
    config = TokenDataConfig(length=32, sources=sources, shuffle="blocks", block_shards=1)
    tokens = open_tokens(config, "train")
    soon = open_order(config, tokens, 0).soon(3)
    assert {int(index >= len(tokens.readers[0])) for index in soon} == {0, 1} and len(soon) == 4


def test_sources_that_do_not_agree(folders, make_shards, texts):
    other = make_shards(texts, "other", length=16)
    with pytest.raises(UserError, match=r"other: shards made with length=16, the experiment says data\.length=32"):
        data_facts(TokenDataConfig(length=32, sources={str(folders[0]): 1.0, str(other): 1.0}))


@pytest.mark.parametrize(
    ("override", "text"),
    [
        (["data.sources={a: 0}"], "data: sources: got weight 0.0 for a, expected more than 0; leave the source out"),
        (["data.sources={a: 1}", "data.path=b"], "data.path: got b, which has no effect here: data.sources names"),
        (["data.block_shards=3"], "data.block_shards: got 3, which has no effect here: data.shuffle=sequences has no"),
        (["data.shuffle=block"], "data.shuffle: no choice 'block'; expected one of blocks, sequences"),
        (["data.cache_gb=3"], "data.cache_gb: got 3.0, which has no effect here: every folder is on this machine"),
        (["data.cache_gb=0"], "data: cache_gb: got 0.0, expected more than 0"),
        (["data.shuffle=blocks", "data.block_shards=0"], "data: block_shards: got 0, expected 1 or more"),
        (["data.on_damage=ignore"], "data.on_damage: no choice 'ignore'; expected one of error, skip"),
    ],
)
def test_keys_that_make_no_sense(override, text):
    with pytest.raises(UserError) as told:
        load("quickstart", override)
    assert text in str(told.value) and "\n" not in str(told.value)
