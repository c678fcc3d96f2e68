"""A process killed while it writes leaves no shard under its final name that is not whole, and no dataset; the same
command then makes the dataset as if nothing had been."""


import pytest

from diffusion_lm.data.info import DatasetInfo

WRITER = {"module": "webdataset", "owner": "place.TarWriter", "function": "write"}
POINTS = {
    "first record": {**WRITER, "call": 1},
    "in a later shard": {**WRITER, "call": 6},
    "before the hash": {"module": "data_prep.shards", "function": "size_and_hash", "call": 2},
    "before a rename": {"module": "diffusion_lm.files", "owner": "place.os", "function": "replace", "call": 2},
    "before dataset.json": {"module": "data_prep.finish", "function": "write_json", "call": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_killed_while_writing(killed_data_prep, data_prep, make_shards, jsonl, texts, tmp_path, point):
    clean = make_shards(texts, "clean", records_per_shard=2)
    out = tmp_path / "out"
    command = ["shard", "--source", "text.jsonl", "--out", "out", "--length", 32, "--val-fraction", 0.2]
    command += ["--records-per-shard", 2]
    jsonl(texts)
    killed_data_prep(command, **POINTS[point])
    assert not (out / "dataset.json").exists()
    for path in out.glob("*.tar"):
        assert path.read_bytes() == (clean / path.name).read_bytes()

    inspected = data_prep("inspect", out)
    assert inspected.returncode == 2
    assert "the making of these shards was cut short; run it again, like: python -m data_prep shard" in inspected.stderr

    assert data_prep(*command).returncode == 0
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in clean.iterdir())
    for path in out.glob("*.tar"):
        assert path.read_bytes() == (clean / path.name).read_bytes()
    assert DatasetInfo.load(out).corpus_hash == DatasetInfo.load(clean).corpus_hash
    assert data_prep("verify", out).returncode == 0
