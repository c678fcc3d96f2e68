"""benchmark data: every variant reads the same tokens, and the ratios are of the speeds."""

import numpy as np
import pytest

from diffusion_lm.benchmark import data
from diffusion_lm.benchmark.data import DataConfig

TINY = {"sequences": 64, "length": 32, "batch": 8, "repeats": 1}


def test_every_variant_reads_all_tokens(tmp_path):
    steps = data.variants(DataConfig(**TINY), tmp_path)
    counts = {name: step() for name, step in steps.items()}
    assert counts.pop(data.DCLM_CONTEXTS) == 32  # windows of two rows
    assert counts.pop(data.WDS_DCLM) == 32 * 65  # ids
    assert set(counts.values()) == {64}
    own, windows = data.ShardedTokens(tmp_path / "own", "train"), data.DclmTokens(tmp_path / "dclm1", "train")
    assert np.array_equal(own.read(np.arange(64)).rows, windows.read(np.arange(64)).rows)


def test_ratios_and_table():
    found = data.measure(DataConfig(**TINY, clock="wall"))
    speeds = found["tokens_per_second"]
    assert all(speed > 0 for both in speeds.values() for speed in both.values())
    for name, (a, b, aim) in data.RATIOS.items():
        assert found["ratios"][name] == {"value": speeds[a]["wall"] / speeds[b]["wall"], "aim": aim}
    assert found["core_share_at_1M_tokens_per_second"] == 1e6 / speeds[data.BATCHES]["processor"]
    text = data.table({**found, "git": "abc"})
    assert "| ratio, by wall time | found | aim |" in text and "commit abc" in text
    assert f"| {data.OWN} | {speeds[data.OWN]['processor'] / 1e6:.1f} |" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "0"], "benchmark data: batch: got 0, expected at least 1"),
        (["--sequences", "100"], "benchmark data: sequences: got 100, expected a multiple of 2 x batch = 128"),
    ],
)
def test_bad_input_is_one_line(place, arguments, message):
    assert message in place.refused("benchmark", "data", *arguments)
