"""`verify`: damage is named where it is and nowhere else, and every fact beside the shards is checked."""

import json
import shutil

import pytest

from data_prep.train_tokenizer import train_tokenizer
from data_prep.verify import verify
from diffusion_lm.data.dataset import ShardedTokens
from diffusion_lm.data.info import TokenDataConfig, data_facts
from diffusion_lm.data.tokenizers.base import load_tokenizer
from diffusion_lm.errors import UserError


@pytest.fixture
def folder(make_shards, texts):
    return make_shards(texts, records_per_shard=3)


def flip(path, at, bit=1):
    content = bytearray(path.read_bytes())
    content[at] ^= bit
    path.write_bytes(content)


def second_record(folder):
    """The second shard's path, and the byte at which its second record's rows begin."""
    shard = json.loads((folder / "manifest.jsonl").read_text().splitlines()[1])
    return folder / shard["shard"], shard["offsets"][1]


def told_of(folder):
    """What is said of the one shard that is wrong."""
    with pytest.raises(UserError) as found:
        verify(folder)
    assert ": 1 wrong among" in str(found.value)
    return str(found.value).partition("train-000001.tar (content differs: ")[2].partition("); make")[0]


@pytest.mark.parametrize("back", [128 + 512, 128 + 500, 128 + 388, 128 + 1])  # name, size and mode of the tar's header
def test_a_flipped_bit_in_a_tar_header_names_that_record_alone(folder, back):
    path, at = second_record(folder)
    flip(path, at - back)
    assert told_of(folder) == "record 1: its header's checksum is wrong"


def test_a_flipped_bit_anywhere_in_an_array_s_header_names_that_record_alone(folder):
    path, at = second_record(folder)
    for byte in [*range(at - 128, at - 60), at - 30, at - 1]:
        bit = 1 << byte % 8
        flip(path, byte, bit)
        assert told_of(folder) == "record 1: the header of its array is not as written"
        flip(path, byte, bit)
    assert "are what the manifest says" in verify(folder)


def test_rows_behind_a_lost_header_keep_their_names(folder):
    path, at = second_record(folder)
    flip(path, at - 600)
    flip(path, at + 64 * 64 + 5)  # behind its rows: what fills the block, or the next header
    third = json.loads((folder / "manifest.jsonl").read_text().splitlines()[1])["offsets"][2]
    flip(path, third + 7 * 64)
    told = told_of(folder).split("; ")
    assert told[0] == "record 1: its header's checksum is wrong" and told[-1] == "record 2, row 7"


@pytest.mark.parametrize("fact", ["tokens", "documents", "records", "crc"])
def test_a_changed_line_of_the_manifest_is_found(folder, fact):
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    for line in lines:
        line[fact] = "" if fact == "crc" else line[fact] + 1
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=r"not what the manifest tells|do not belong together"):
        verify(folder)
    with pytest.raises(UserError, match=r"manifest\.jsonl and dataset\.json do not belong together"):
        ShardedTokens(folder, "train")


@pytest.mark.parametrize("fact", ["unigram_entropy", "bytes_per_token", "duplicate_documents", "splits", "dialect"])
def test_a_changed_fact_is_found(folder, fact):
    facts = json.loads((folder / "dataset.json").read_text())
    place = {"splits": facts["splits"]["train"], "dialect": facts["dialect"]}.get(fact, facts)
    name = {"splits": "text_bytes", "dialect": "eot_id"}.get(fact, fact)
    place[name] = place.get(name, 0) + 1
    (folder / "dataset.json").write_text(json.dumps(facts))
    for look in (verify, lambda folder: ShardedTokens(folder, "val")):
        with pytest.raises(UserError, match=r"dataset\.json: changed since it was written; copy it again"):
            look(folder)


def test_a_folder_may_be_named_and_laid_out_anew(folder):
    facts = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**facts, "name": "another", "root": str(folder)}))
    assert "are what the manifest says" in verify(folder)


@pytest.fixture
def made(make_shards, texts, tmp_path, jsonl):
    """Shards of an own tokenizer, whose end of text a file beside it names, and that tokenizer's file."""
    file = tmp_path / "t" / "tokenizer.json"
    train_tokenizer(str(jsonl(texts)), 280, file, 0)
    facts = file.read_text().replace("<|endoftext|>", "<|over|>")
    file.write_text(facts)
    (file.parent / "tokenizer_config.json").write_text('{"eos_token": "<|over|>"}')
    return make_shards(texts, "own", tokenizer=str(file)), file


def test_shards_are_read_without_the_tokenizer_s_first_file(made):
    folder, file = made
    wanted = data_facts(TokenDataConfig(path=str(folder), tokenizer=str(file), length=32))
    shutil.rmtree(file.parent)
    for name in (str(file), "tokenizer.json"):
        config = TokenDataConfig(path=str(folder), tokenizer=name, length=32)
        assert data_facts(config).corpus_hash == wanted.corpus_hash
        assert load_tokenizer(config.tokenizer).fingerprint == wanted.tokenizer_fingerprint
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer.json': No such file"):
        data_facts(TokenDataConfig(path=str(folder), tokenizer=str(file), length=32))


def test_the_dataset_s_tokenizer_is_checked(made):
    made = made[0]
    assert "are what the manifest says" in verify(made)
    facts = json.loads((made / "tokenizer.json").read_text())
    vocabulary = facts["model"]["vocab"]
    a, b = (next(text for text, number in vocabulary.items() if number == n) for n in (40, 41))
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (made / "tokenizer.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=r"its tokenizer tokenizer\.json is not the one of fingerprint"):
        verify(made)
