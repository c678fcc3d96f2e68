"""Reading shards: random access anywhere, damage told before training starts or by `verify`."""

import pickle

import numpy as np
import pytest

from diffusion_lm.data.dataset import ShardedTokens
from diffusion_lm.errors import UserError


@pytest.fixture
def folder(make_shards, texts):
    return make_shards(texts, records_per_shard=2)


def test_index_out_of_range(folder):
    tokens = ShardedTokens(folder, "train")
    for index in (-1, len(tokens)):
        with pytest.raises(IndexError):
            tokens[index]


def test_rows_are_copies_and_survive_pickling(folder):
    tokens = ShardedTokens(folder, "train")
    row = tokens[5]
    kept = row.copy()
    row[:] = 0
    assert np.array_equal(tokens[5], kept)
    again = pickle.loads(pickle.dumps(tokens))
    assert len(pickle.dumps(tokens)) < 20_000 and np.array_equal(again[5], kept)


def test_missing_and_cut_shards(folder, refused):
    shard = folder / "train-000001.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1024])
    wanted = f"shard has {len(whole) - 1024} bytes, the manifest says {len(whole)}; make the shards again in an empty"
    with pytest.raises(UserError, match=wanted):
        ShardedTokens(folder, "train")
    assert wanted in refused("inspect", folder)
    assert f"train-000001.tar ({len(whole) - 1024} bytes, expected {len(whole)})" in refused("verify", folder)
    shard.unlink()
    with pytest.raises(UserError, match=r"train-000001\.tar: shard is missing; make the shards again"):
        ShardedTokens(folder, "train")
    assert "train-000001.tar (missing)" in refused("verify", folder)
    ShardedTokens(folder, "val")


def test_verify_finds_one_flipped_bit_and_a_shard_too_many(folder, data_prep, refused):
    assert "shards are what the manifest says" in data_prep("verify", folder).stdout
    shard = folder / "train-000001.tar"
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    (folder / "train-000099.tar").write_bytes(b"")
    line = refused("verify", folder)
    assert ": 2 wrong among" in line
    assert "train-000001.tar (content differs: record 0, row 0), train-000099.tar (not in the manifest); make" in line


def test_inspect_shows_facts_and_text(folder, data_prep, texts):
    result = data_prep("inspect", folder, "--windows", 2)
    assert result.returncode == 0
    first = ShardedTokens(folder, "train")[0]
    shown = bytes(first[first < 256].astype(np.uint8)).decode(errors="ignore")
    assert shown[:8] in result.stdout
    assert "tokenizer   bytes, 257 ids, end of text = 256" in result.stdout
    assert result.stdout.count("train sequence") == 2


def test_data_prep_never_imports_torch(run_python, folder):
    check = "import sys; from data_prep.__main__ import main; {}; assert 'torch' not in sys.modules"
    make = "main(['shard', '--source', 'shards.source', '--out', 'again', '--length', '32', '--val-fraction', '0.2'])"
    for command in (make, "main(['inspect', 'shards'])", "main(['verify', 'shards'])"):
        result = run_python("-c", check.format(command))
        assert result.returncode == 0, result
    light = "import sys, diffusion_lm.data.dataset, diffusion_lm.data.order; assert 'torch' not in sys.modules"
    assert run_python("-c", light).returncode == 0
    shown = run_python("-X", "importtime", "-m", "data_prep", "--help")
    assert shown.returncode == 0 and "shard" in shown.stdout and "numpy" not in shown.stderr
