"""Shares of common 3-grams, counted by hand on a text of two letters."""

import numpy as np
import pytest

from diffusion_lm.data.info import TokenDataConfig
from diffusion_lm.evaluation import ngrams


@pytest.fixture
def shares(monkeypatch):
    def of(train, held_out, samples, occurrences):
        text = {"train": np.array(train), "val": np.array(held_out)}
        monkeypatch.setattr(ngrams, "_all_tokens", lambda data, split: text[split])
        return ngrams.ngram_shares(np.array(samples), TokenDataConfig(), seed=0, occurrences=occurrences)

    return of


def test_three_grams_are_counted_over_the_whole_text_and_within_each_sample(shares):
    # 0 1 0 1 | 0 1 1 1 as one text: 010 twice, 101 twice, 011 once, 111 once
    train = [[0, 1, 0, 1], [0, 1, 1, 1]]
    samples = [[0, 1, 0, 0], [1, 1, 1, 0]]  # 010, 100; 111, 110
    assert shares(train, [[0, 1, 0, 1]], samples, 2).samples == pytest.approx(1 / 4)
    assert shares(train, [[0, 1, 0, 1]], samples, 1).samples == pytest.approx(2 / 4)
    assert shares(train, [[0, 1, 0, 1]], samples, 1).validation_text == 1.0
    assert shares(train, [[1, 1, 0, 0]], samples, 1).validation_text == 0.0


def test_the_unigram_sampler_draws_by_the_frequencies_of_the_text(shares):
    # a share p of ones; of all 3-grams only 111 is common, and the sampler makes it with probability p^3
    p, n = 0.75, 4000
    train = [[1] * 3000 + [0, 0, 0, 0] * 250]
    found = shares(train, [[1, 1, 1]], np.zeros((n, 3), int), 2000).unigram_sampler
    assert abs(found - p**3) < 4 * np.sqrt(p**3 * (1 - p**3) / n)
