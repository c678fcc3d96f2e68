"""Means over seeds, paired differences, and what is said of few seeds; against textbooks and scipy's own tests."""

import json
import math

import pytest
from scipy import stats

from sweeps.analysis import statistics

SLEEP = {"10": [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0],
         "20": [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]}
"""Student's own data (1908): hours of sleep gained by ten patients under two drugs."""


def test_paired_difference_is_students():
    """R prints for t.test(..., paired = TRUE) on these data: mean 1.58, 95 % interval 0.70 to 2.46."""
    first, second = (dict(enumerate(values)) for values in SLEEP.values())
    found = statistics.paired(second, first)
    assert found.mean == pytest.approx(1.58) and found.n == 10 and found.over == "seeds"
    assert found.interval == pytest.approx((0.7001142, 2.4598858), abs=1e-6)
    expected = stats.ttest_rel(SLEEP["20"], SLEEP["10"]).confidence_interval(0.95)
    assert found.interval == pytest.approx((expected.low, expected.high))
    # The same numbers, not paired, say nothing: pairing is what finds the difference.
    apart = stats.ttest_ind(SLEEP["20"], SLEEP["10"]).confidence_interval(0.95)
    assert apart.low < 0


def test_only_shared_keys_are_paired():
    """Seed 2 failed in one arm, seed 3 in the other."""
    found = statistics.paired({0: 2.0, 1: 3.0, 2: 100.0}, {0: 1.0, 1: 1.0, 3: -100.0})
    assert (found.mean, found.n) == (1.5, 2)
    assert found.error == pytest.approx(0.5), "of 1 and 2: standard deviation sqrt(1/2), over sqrt(2)"
    assert found.half_width == pytest.approx(math.tan(math.pi * 0.475) * 0.5), "t with one degree of freedom is Cauchy"
    assert statistics.paired({0: 1.0}, {1: 1.0}) is None


def test_one_value_has_no_error():
    found = statistics.estimate([3.0])
    assert (found.mean, found.error, found.interval, found.n) == (3.0, None, None, 1)
    assert statistics.estimate([]) is None and statistics.standard_error([]) is None
    assert statistics.standard_error([1.0, 2.0, 3.0]) == pytest.approx(1 / math.sqrt(3))


@pytest.mark.parametrize(("seeds", "said"), [
    ([2, 2], "screen: n = 2 seeds, fewer than five"), ([1, 1], "screen: n = 1 seed, fewer than five"),
    ([3, 5], "screen: n = 3 to 5 seeds, fewer than five")])
def test_fewer_than_five_seeds_are_a_screen(seeds, said):
    assert statistics.screen(seeds).startswith(said)


def test_five_seeds_are_no_screen():
    assert statistics.screen([5, 6]) is None and statistics.screen([]) is None


@pytest.fixture
def evaluated(tmp_path):
    """Writes an evaluation as `python -m diffusion_lm evaluate` does; returns the run's folder."""

    def write(run, values, name="default", **manifest):
        folder = tmp_path / run / "evaluation" / name
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({"text": "hash", "seed": 0, "runs": [run], **manifest}))
        lines = "".join(f"{place},{value}\n" for place, value in values.items())
        (folder / "sequences.csv").write_text(f"place,nats_per_token {run}\n{lines}")
        return tmp_path / run

    return write


def test_one_seed_is_paired_over_sequences(evaluated):
    """Sequences differ by nats, the runs by hundredths: only pairs show it."""
    a = evaluated("a", {0: 1.0, 5: 2.0, 9: 4.0})
    b = evaluated("b", {0: 1.01, 5: 2.03, 9: 4.02})
    found = statistics.paired_sequences(b, a)
    assert found.mean == pytest.approx(0.02) and found.n == 3 and found.over == "sequences"
    assert found.error == pytest.approx(0.01 / math.sqrt(3))


def test_other_sequences_or_noise_are_not_paired(evaluated):
    a = evaluated("a", {0: 1.0, 5: 2.0})
    assert statistics.paired_sequences(evaluated("b", {0: 1.0, 5: 2.0}, seed=1), a) is None
    assert statistics.paired_sequences(evaluated("c", {0: 1.0, 5: 2.0}, "other"), a) is None
    half = evaluated("d", {0: 1.0, 5: 2.0})
    (half / "evaluation" / "default" / "manifest.json").unlink()
    assert statistics.paired_sequences(half, a) is None, "an evaluation that did not finish"
