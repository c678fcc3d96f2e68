"""Numbers of drawn text, by hand: entropy of a text's tokens, BLEU's 3-gram precision against one reference."""

import math

import numpy as np
import pytest

from diffusion_lm.evaluation.generated import entropy, precision


def test_the_entropy_of_a_text_is_that_of_its_own_frequencies():
    assert entropy(np.array([7, 7, 7, 7])) == 0
    assert entropy(np.array([1, 2, 3, 4])) == pytest.approx(math.log(4))
    # a half, a quarter, a quarter: ln 2 / 2 + 2 ln 4 / 4
    assert entropy(np.array([5, 5, 6, 9])) == pytest.approx(1.5 * math.log(2))


def test_a_3gram_counts_at_most_as_often_as_in_the_own_reference():
    # 3-grams of the first text: 111 three times, the reference has it once; of the second: 123 and 234, it has 234
    drawn = np.array([[1, 1, 1, 1, 1], [1, 2, 3, 4, 4]])
    reference = np.array([[0, 1, 1, 1, 0], [2, 3, 4, 5, 6]])
    assert precision(drawn, reference) == pytest.approx((1 + 1) / 6)
    assert precision(drawn, drawn) == 1
    assert precision(drawn, reference[::-1]) == 0
