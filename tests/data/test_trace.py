"""What a step saw, and what a dataset is made of, against the batches and texts themselves."""

import itertools

import numpy as np
import pytest

from data_prep.show import look_at
from data_prep.trace import trace
from diffusion_lm.data.dataset import ShardedTokens
from diffusion_lm.errors import UserError


@pytest.fixture
def folder(make_shards, texts):
    return make_shards(texts, length=64, records_per_shard=1)


@pytest.fixture
def run(folder, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(
        f"name: x\nseed: 3\ndata:\n  path: {folder}\n  length: 64\n  tokenizer: bytes\n"
        "training:\n  batch_size: 16\n  steps: 20\n"
    )
    return tmp_path / "run"


def test_a_step_s_rows_are_named(folder, run, make_module, capsys):
    module = make_module(folder, length=64, seed=3, step=8)
    batches = list(itertools.islice(iter(module.train_dataloader()), 4))
    trace(run, 9, 20)
    lines = capsys.readouterr().out.splitlines()
    named = [line for line in lines if line.startswith("position")]
    assert [int(line.split()[1][:-1]) for line in named] == list(range(128, 144))
    tokens = ShardedTokens(folder, "train")
    rows = np.concatenate([batch["tokens"] for batch in batches])
    for line, row in zip(named, rows):
        index = int(line.split("sequence ")[1].split()[0])
        assert tokens[index].tolist() == row.tolist()
        shard, record, place = index // 64, 0, index % 64
        assert f"(train-{shard:06d}.tar, record {record}, row {place})" in line
    pieces = [line for line in lines if " tokens  " in line]
    assert sum(int(line.split()[0]) for line in pieces) == rows.size
    text = bytes(rows[0][rows[0] < 256].astype(np.uint8)).decode(errors="replace")
    assert repr(text[:5])[1:-1] in pieces[0]


def test_the_command_and_what_it_refuses(run, data_prep, tmp_path):
    result = data_prep("trace", run, "--step", 1)
    assert result.returncode == 0 and "step 1 saw positions 0 to 15, epoch 0, of" in result.stdout, result
    for arguments, told in (
        ([run, "--step", 0], "--step 0, --characters 60: both must be 1 or more"),
        ([run, "--step", 21], "is a run of 20 steps; expected 1 to 20"),
        ([tmp_path, "--step", 1], "no config.yaml in it; expected the folder of a run, like runs/NAME"),
    ):
        result = data_prep("trace", *arguments)
        assert result.returncode == 2 and told in result.stderr and result.stderr.count("\n") == 1
    (run / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(UserError, match=r"config\.yaml: not the config of a run \(KeyError\('data'\)\)"):
        trace(run, 1, 5)


def test_a_step_that_the_run_did_not_reach_is_told(run, capsys):
    (run / "result.json").write_text('{"step": 8}')
    trace(run, 9, 20)
    assert "step 9 (not reached: the run ended at 8) would see positions 128 to 143" in capsys.readouterr().out
    trace(run, 8, 20)
    assert "step 8 saw positions 112 to 127" in capsys.readouterr().out


def test_a_run_that_went_on_with_another_batch_size(run, capsys):
    """8 steps of 16, then steps of 32, then, from step 10 on, of 8."""
    (run / "batches.json").write_text("[[0, 0, 16], [8, 128, 32], [10, 192, 8]]")
    for step, first, last in ((8, 112, 127), (9, 128, 159), (10, 160, 191), (11, 192, 199), (12, 200, 207)):
        trace(run, step, 20)
        assert f"step {step} saw positions {first} to {last}," in capsys.readouterr().out


def test_lengths_and_frequencies(make_shards):
    texts = ["ab" * 10, "abb" * 5, "a" * 9] * 12
    tokens = ShardedTokens(make_shards(texts, length=16, val_fraction=0.0), "train")
    sample = look_at(tokens, 256)
    whole = sample.sequences * 16
    assert sample.sequences == len(tokens) and sample.counts.sum() == whole
    assert set(sample.lengths.tolist()) == {20, 15, 9}
    assert sample.counts[256] == len(sample.lengths)
    assert abs(sample.counts[ord("b")] - 12 * 20) <= 20  # the end of the stream is cut
    some = look_at(tokens, 256, most=3)
    assert some.sequences == 3 and some.counts.sum() == 48
