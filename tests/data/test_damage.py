"""Damaged shards: every flipped bit of the tokens is told by shard, record and row, or left out, counted and told."""

import itertools
import json
import zlib

import numpy as np
import pytest

from diffusion_lm.data.dataset import ShardedTokens
from diffusion_lm.data.reader import DamagedData
from diffusion_lm.errors import UserError


@pytest.fixture
def folder(make_shards, texts):
    return make_shards(texts, records_per_shard=2)


def flip(path, at, bit=1):
    content = bytearray(path.read_bytes())
    content[at] ^= bit
    path.write_bytes(content)


def flipped_row(folder, number, row):
    """Flip a bit in a row of the second record of a shard; returns that row's index in the split."""
    shards = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    shard = shards[number]
    flip(folder / shard["shard"], shard["offsets"][1] + row * 64 + 9, 0x10)
    return sum(other["num_sequences"] for other in shards[:number]) + 64 + row


def test_side_files_hold_the_crc_of_the_stored_rows(folder):
    tokens = ShardedTokens(folder, "train")
    stored = np.concatenate([np.fromfile(path, "<u4") for path in sorted(folder.glob("train-*.crc32"))])
    rows = [tokens[index].astype("<u2").tobytes() for index in range(len(tokens))]
    assert stored.tolist() == [zlib.crc32(row) for row in rows]


def test_a_flipped_bit_names_shard_record_and_row(folder):
    index = flipped_row(folder, 1, 5)
    tokens = ShardedTokens(folder, "train")
    tokens[index - 1], tokens[index + 1]
    place = rf"train-000001\.tar, record 1, row 5 \(train sequence {index}\): its CRC-32 differs .*; .*on_damage=skip"
    with pytest.raises(DamagedData, match=place):
        tokens[index]
    with pytest.raises(DamagedData, match=place):
        tokens.read([0, index, 3])


def test_a_skipped_sequence_is_replaced_by_the_next_whole_one(folder):
    whole = ShardedTokens(folder, "train")
    wanted = {index: whole[index] for index in range(len(whole))}
    first = flipped_row(folder, 1, 5)
    assert flipped_row(folder, 1, 6) == first + 1
    found = ShardedTokens(folder, "train", "skip").read([first, 3, first + 1])
    assert sorted(found.skipped) == [first, first + 1] and "row 5" in found.skipped[first]
    assert np.array_equal(found.rows, np.stack([wanted[first + 2], wanted[3], wanted[first + 2]]))


def test_lost_and_cut_shards_are_passed_over(folder):
    whole = ShardedTokens(folder, "train")
    wanted = [whole[index] for index in range(len(whole))]
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    sizes = [line["num_sequences"] for line in lines if line["split"] == "train"]
    (folder / "train-000000.tar").unlink()
    last = folder / f"train-{len(sizes) - 1:06d}.tar"
    cut = lines[len(sizes) - 1]["offsets"][0] + 3 * 64 + 1  # three rows of 32 ids are left
    last.write_bytes(last.read_bytes()[:cut])
    tokens = ShardedTokens(folder, "train", "skip")
    start = len(wanted) - sizes[-1]
    found = tokens.read([0, 7, start + 2, start + 3, len(wanted) - 1])
    after = wanted[sizes[0]]  # the first of the second shard; what follows the last is the first
    assert np.array_equal(found.rows, np.stack([after, after, wanted[start + 2], after, after]))
    assert "shard is missing" in found.skipped[0] and "shard has" in found.skipped[start + 3]
    assert sorted(found.skipped) == [0, 7, start + 3, len(wanted) - 1]
    with pytest.raises(UserError, match="shard is missing"):
        ShardedTokens(folder, "train")


def test_a_cut_file_is_told_with_the_first_row_that_is_gone(folder, refused):
    shard = json.loads((folder / "manifest.jsonl").read_text().splitlines()[1])
    path = folder / shard["shard"]
    path.write_bytes(path.read_bytes()[: shard["offsets"][1] + 9 * 64 + 63])  # nine whole rows and almost a tenth
    told = rf"train-000001\.tar: shard has .*, the manifest says {shard['bytes']}, cut at record 1, row 9; make the"
    with pytest.raises(UserError, match=told):
        ShardedTokens(folder, "train")
    rest = shard["num_sequences"] - 64 - 10
    assert f"record 1, row 9: it and the {rest} rows after it are cut off" in refused("verify", folder)


def test_damaged_checksums_are_damage(folder):
    flip(folder / "train-000001.tar.crc32", 3)
    tokens = ShardedTokens(folder, "train")
    tokens[0]
    with pytest.raises(DamagedData, match=r"checksums, train-000001\.tar\.crc32, are not those written"):
        tokens[130]
    (folder / "train-000001.tar.crc32").unlink()
    with pytest.raises(DamagedData, match="are missing or cut"):
        ShardedTokens(folder, "train")[130]


def test_nothing_whole_is_left(folder):
    for path in folder.glob("train-*.tar"):
        path.unlink()
    with pytest.raises(DamagedData, match="no train sequence is whole; make the shards again"):
        ShardedTokens(folder, "train", "skip")[0]


def test_shards_from_before_the_checksums_are_read(folder):
    wanted = ShardedTokens(folder, "train")[130]
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    new = ("tokens", "documents", "crc", "crc_sha256")
    old = [{name: value for name, value in line.items() if name not in new} for line in lines]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in old))
    facts = json.loads((folder / "dataset.json").read_text())
    facts = {name: fact for name, fact in facts.items() if name not in ("manifest_sha256", "facts_sha256")}
    (folder / "dataset.json").write_text(json.dumps(facts))
    for path in folder.glob("*.crc32"):
        path.unlink()
    assert np.array_equal(ShardedTokens(folder, "train")[130], wanted)


def test_equal_numbers_of_both_splits_are_told_and_counted_apart(folder, make_module, capfd):
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    for split in ("train", "val"):
        shard = next(line for line in lines if line["split"] == split)
        flip(folder / shard["shard"], shard["offsets"][0])
    module = make_module(folder, on_damage="skip", val_sequences=0)
    list(module.val_dataloader())
    list(itertools.islice(iter(module.train_dataloader()), len(ShardedTokens(folder, "train")) // 4 + 1))
    assert set(module.skipped) == {("train", 0), ("val", 0)}
    module.teardown("fit")
    told = capfd.readouterr().err
    assert "(train sequence 0)" in told and "(val sequence 0)" in told and "2 damaged sequences were left out" in told


@pytest.mark.parametrize("workers", [0, 2])
def test_training_stops_or_goes_on_the_same_for_any_reading_processes(folder, make_module, workers, capfd):
    index = flipped_row(folder, 1, 5)
    stopping = make_module(folder, workers=workers)
    per_epoch = len(ShardedTokens(folder, "train")) // 4
    with pytest.raises(DamagedData) as told:
        list(itertools.islice(iter(stopping.train_dataloader()), per_epoch + 4))
    assert "record 1, row 5" in str(told.value) and "\n" not in str(told.value)
    module = make_module(folder, workers=workers, on_damage="skip")
    batches = list(itertools.islice(iter(module.train_dataloader()), per_epoch + 4))
    assert all(set(batch) == {"tokens", "position"} for batch in batches)
    assert list(module.skipped) == [("train", index)]
    module.teardown("fit")
    told = capfd.readouterr().err
    assert f"data: left out {folder}: train-000001.tar, record 1, row 5 (train sequence {index})" in told
    assert "data: 1 damaged sequences were left out on this device" in told
