"""benchmark tokenization: every round makes the same dataset, by one process and by several."""

import pytest

from diffusion_lm.benchmark import tokenization
from diffusion_lm.benchmark.tokenization import TokenizationConfig
from diffusion_lm.data.info import DatasetInfo

TINY = {"megabytes": 1, "files": 2, "vocabulary": 300, "repeats": 1}


def test_both_make_one_dataset(tmp_path):
    config = TokenizationConfig(**TINY)
    size = tokenization.write_text_files(config, tmp_path / "text")
    files = sorted((tmp_path / "text").iterdir())
    assert len(files) == 2 and size == sum(path.stat().st_size for path in files) >= 1e6
    hashes = set()
    for processes, make in tokenization.variants(config, tmp_path).items():
        make(0)
        hashes.add(DatasetInfo.load(tmp_path / f"{processes}-0").corpus_hash)
    assert len(hashes) == 1


def test_table():
    found = {"sizes": {"processes": 2}, "machine": "m", "git": "abc", "bytes": 9e6, "seconds": {"1": 9.0, "2": 4.5}}
    text = tokenization.table({**found, "ratio": 2.0})
    assert "| 1 | 9.00 | 1.0 |" in text and "| 2 | 4.50 | 2.0 |" in text
    assert text.endswith("2 processes over one: 2.00 times as fast (aim: 1.7)")


def test_bad_input(place):
    line = place.refused("benchmark", "tokenization", "--files", "0")
    assert "benchmark tokenization: files: got 0, expected at least 1" in line


@pytest.mark.slow
def test_the_command(place):
    found = place.json("benchmark", "tokenization", "--megabytes", "1", "--repeats", "1", "--vocabulary", "300")
    assert found["ratio"] == pytest.approx(found["seconds"]["1"] / found["seconds"]["2"])
