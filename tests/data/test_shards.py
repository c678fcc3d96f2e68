"""From texts to shards: what is in them, that webdataset reads them, and that the same text gives the same bytes."""

import hashlib
import math
from collections import Counter

import numpy as np
import pytest
import webdataset

from data_prep import build
from data_prep.build import Settings, shard
from data_prep.finish import entropy
from data_prep.spool import pack
from diffusion_lm.data.dataset import ShardedTokens
from diffusion_lm.data.info import DatasetInfo, TokenDataConfig, data_facts
from diffusion_lm.data.tokenizers.bytes import Bytes
from diffusion_lm.errors import UserError

EOT = 256


def webdataset_rows(folder, split):
    """All sequences of a split, read by webdataset."""
    urls = [str(path) for path in sorted(folder.glob(f"{split}-*.tar"))]
    records = [sample["tokens.npy"] for sample in webdataset.WebDataset(urls, shardshuffle=False).decode()]
    assert all(record.dtype == np.uint16 and 1 <= len(record) <= 64 for record in records)
    return np.concatenate(records)


def documents_in(rows):
    """The whole documents of a packed stream; its last, perhaps cut, piece is left out."""
    stream = rows.reshape(-1)
    ends = np.flatnonzero(stream == EOT)
    return [bytes(part[part != EOT].astype(np.uint8)).decode() for part in np.split(stream, ends + 1)[:-1]]


def on_validation_side(text, fraction):
    """The split rule as documented, written a second time."""
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "big") % 10_000 < fraction * 10_000


@pytest.mark.parametrize("records_per_shard", [1, 3, 1000])
def test_webdataset_and_the_reader_see_the_same_rows(make_shards, texts, records_per_shard):
    folder = make_shards(texts, records_per_shard=records_per_shard)
    for split in ("train", "val"):
        tokens = ShardedTokens(folder, split)
        rows = webdataset_rows(folder, split)
        assert rows.shape == (len(tokens), 32)
        assert np.array_equal(np.stack([tokens[i] for i in range(len(tokens))]), rows)
        assert tokens[0].dtype == np.int64
    records = math.ceil(len(ShardedTokens(folder, "train")) / 64)
    assert len(list(folder.glob("train-*.tar"))) == math.ceil(records / records_per_shard)


def test_every_document_is_packed_once_on_the_side_its_hash_says(make_shards, texts):
    folder = make_shards(texts)
    info = DatasetInfo.load(folder)
    for split, wanted in [("val", True), ("train", False)]:
        side = [text for text in texts if on_validation_side(text, 0.2) == wanted]
        found = documents_in(webdataset_rows(folder, split))
        assert not Counter(found) - Counter(side)
        # at most the tokens of one window are dropped, a few short documents
        assert len(side) - 3 <= len(found) <= len(side)
        counts = info.splits[split]
        assert counts.documents == len(side)
        assert counts.text_bytes == sum(len(text.encode()) for text in side)
        assert counts.tokens == counts.text_bytes + len(side)
        assert (counts.sequences, counts.dropped_tokens) == divmod(counts.tokens, 32)
    assert [text for text in texts if text in found] != found  # mixed


def test_copies_of_a_document_are_kept_on_one_side(make_shards, texts):
    folder = make_shards(texts + texts[:50] + texts[:50])
    train, val = (Counter(documents_in(webdataset_rows(folder, split))) for split in ("train", "val"))
    assert not set(train) & set(val)
    assert DatasetInfo.load(folder).duplicate_documents == 100
    assert (train + val)[texts[7]] == 3


def test_same_text_same_bytes_wherever_it_lies(make_shards, jsonl, texts, tmp_path):
    first = make_shards(texts, "first", records_per_shard=2)
    jsonl(texts[100:], "elsewhere/a.jsonl")
    jsonl(texts[:100], "elsewhere/deep/b.jsonl")
    second = make_shards(tmp_path / "elsewhere", "second", records_per_shard=2)
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir()) and "train-000001.tar" in names
    for name in set(names) - {"dataset.json"}:
        assert (first / name).read_bytes() == (second / name).read_bytes()
    hashes = {DatasetInfo.load(folder).corpus_hash for folder in (first, second)}
    assert len(hashes) == 1
    for number, other in enumerate([{"length": 33}, {"val_fraction": 0.21}]):
        hashes.add(DatasetInfo.load(make_shards(texts, f"other{number}", **other)).corpus_hash)
    hashes.add(DatasetInfo.load(make_shards([*texts[:-1], texts[-1] + "!"], "edited")).corpus_hash)
    assert len(hashes) == 4


def test_unigram_entropy_and_bytes_per_token(make_shards):
    assert entropy(np.array([5, 0, 5])) == pytest.approx(math.log(2))
    info = DatasetInfo.load(make_shards(["aabb" * 25] * 4, val_fraction=0.0))
    shares = [200 / 404, 200 / 404, 4 / 404]
    assert info.unigram_entropy == pytest.approx(-sum(p * math.log(p) for p in shares))
    assert info.bytes_per_token == pytest.approx(400 / 404)


def test_packing_cuts_the_concatenation():
    stream = np.arange(1000)
    for cuts in ([], [1, 2, 3], [999], list(range(10, 1000, 10))):
        records = list(pack(iter(np.split(stream, cuts)), length=7, rows=4))
        assert [len(record) for record in records] == [4] * 35 + [2]  # 142 windows of 7 in 1000
        assert np.array_equal(np.concatenate(records).reshape(-1), stream[:994])
    assert list(pack(iter([np.arange(6)]), length=7, rows=4)) == []


def test_a_complete_dataset_is_left_alone(data_prep, make_shards, texts, tmp_path):
    folder = make_shards(texts)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    arguments = ["--out", folder, "--length", 32, "--val-fraction", 0.2]
    result = data_prep("shard", "--source", tmp_path / "shards.source" / "text.jsonl", *arguments)
    assert result.returncode == 0 and "already holds this dataset; nothing written" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_validation_may_be_empty_when_asked(make_shards, texts):
    folder = make_shards(texts, val_fraction=0.0)
    assert len(ShardedTokens(folder, "val")) == 0
    assert not list(folder.glob("val-*"))


def test_shard_returns_the_facts(jsonl, texts, tmp_path):
    info, notes = shard(Settings(source=str(jsonl(texts)), out=tmp_path / "s", length=32, val_fraction=0.2))
    assert (info.length, info.tokenizer, info.name) == (32, "bytes", "s") and notes == []


def test_a_tokenizer_file(data_prep, jsonl, texts, tmp_path):
    """Its copy goes with the shards; the same command finds them; an experiment names any copy of it."""
    jsonl(texts)
    for command in (
        ["train-tokenizer", "--vocab-size", 300, "--out", "own.json"],
        ["shard", "--tokenizer", "own.json", "--length", 32, "--val-fraction", 0.2, "--out", "s"],
    ):
        assert data_prep(*command, "--source", "text.jsonl").returncode == 0
    again = data_prep(*command, "--source", "text.jsonl")
    assert again.returncode == 0 and "already holds this dataset" in again.stdout, again
    (tmp_path / "own.json").unlink()
    assert "river" in data_prep("inspect", "s").stdout
    config = TokenDataConfig(path=str(tmp_path / "s"), length=32, tokenizer=str(tmp_path / "s" / "tokenizer.json"))
    assert data_facts(config).vocab_size == 300


def test_a_missing_vocabulary_is_told_when_the_data_is_opened(make_shards, texts, monkeypatch):
    def missing(self):
        raise UserError("its vocabulary is nowhere")

    monkeypatch.setattr(Bytes, "prepare", missing)
    with pytest.raises(UserError, match="its vocabulary is nowhere"):
        data_facts(TokenDataConfig(path=str(make_shards(texts)), length=32))


def test_a_dataset_that_another_process_finished_meanwhile_is_kept(make_shards, texts, tmp_path, monkeypatch):
    check, finished = build._check_enough, {}

    def another_process(*arguments):
        check(*arguments)
        monkeypatch.setattr(build, "_check_enough", check)
        folder = make_shards(texts)
        finished.update({path: path.stat().st_ino for path in folder.iterdir()})

    monkeypatch.setattr(build, "_check_enough", another_process)
    folder = make_shards(texts)
    assert finished and {path: path.stat().st_ino for path in folder.iterdir()} == finished
