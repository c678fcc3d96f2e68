"""DCLM's tokenised shards in both dialects: the same ids as webdataset reads, and every trap found or repaired."""

import itertools
import json
import pickle
import shutil

import numpy as np
import pytest
import webdataset

from data_prep.dclm_shard import text_end
from data_prep.index import IndexSettings, index
from diffusion_lm.data.datamodule import TokenDataModule
from diffusion_lm.data.dclm import PARSERS, DclmTokens
from diffusion_lm.data.info import TokenDataConfig
from diffusion_lm.data.open import open_tokens
from diffusion_lm.data.reader import DamagedData
from diffusion_lm.errors import UserError

EOT, PAD, LENGTH = 256, 259, 16


def settings(folder, **options):
    sizes = {"tokenizer": "bytes", "pad_id": PAD, "vocab_size": 257, "context": 65, "length": LENGTH}
    return IndexSettings(folder=folder, **{**sizes, **options})


def flat(shards):
    """The contexts of all shards, in order."""
    return list(itertools.chain.from_iterable(shards))


def windows_of(contexts):
    """The windows that a context gives, and how many tokens of text it has, worked out once more."""
    rows, tokens = [], 0
    for context in contexts:
        text = list(context)
        while text and text[-1] == PAD:
            text.pop()
        tokens += len(text)
        text = [EOT if i == 0 else i for i in text]
        rows += [text[at : at + LENGTH] for at in range(0, len(text) - LENGTH + 1, LENGTH)]
    return rows, tokens


def all_rows(folder, split):
    tokens = DclmTokens(folder, split)
    return tokens.read(np.arange(len(tokens))).rows.tolist()


def test_windows_counts_and_facts(dclm):
    info, notes = index(settings(dclm.folder))
    (train, tokens), (val, val_tokens) = windows_of(flat(dclm.contexts[:-1])), windows_of(dclm.contexts[-1])
    assert all_rows(dclm.folder, "train") == train and all_rows(dclm.folder, "val") == val
    assert (info.splits["train"].tokens, info.splits["val"].tokens) == (tokens, val_tokens)
    assert info.splits["train"].dropped_tokens == tokens - len(train) * LENGTH
    ends = sum(context.count(0) for context in flat(dclm.contexts))
    assert sum(split.documents for split in info.splits.values()) == ends
    text = sum(sum(i not in (0, PAD) for i in context) for context in flat(dclm.contexts))
    assert info.bytes_per_token == pytest.approx(text / (tokens + val_tokens))
    assert "contexts of 65 = 4 windows of 16 + 1 tokens dropped" in notes
    assert "1 contexts of padding alone dropped" in notes
    assert "57 tokens of padding cut from the ends of contexts" in notes
    assert any("id 0 is both end of text, as written, and" in note for note in notes)


def test_webdataset_reads_the_same_tokens(dclm):
    index(settings(dclm.folder, length=65, val_shards=0))
    urls = [str(dclm.folder / f"{name}.tar") for name in dclm.names]
    theirs = [sample["json.gz"] for sample in webdataset.WebDataset(urls, shardshuffle=False).decode()]
    kept = [[EOT if i == 0 else i for i in ids] for ids in theirs if PAD not in ids]
    assert theirs == flat(dclm.contexts) and all_rows(dclm.folder, "train") == kept


def test_random_access_pickling_and_several_processes(dclm, tmp_path):
    index(settings(dclm.folder))
    wanted = all_rows(dclm.folder, "train")
    tokens = pickle.loads(pickle.dumps(DclmTokens(dclm.folder, "train")))
    order = np.random.default_rng(0).permutation(len(tokens))
    assert tokens.read(order).rows.tolist() == [wanted[i] for i in order]
    assert str(tokens.place(5)) == f"{dclm.names[0]}.tar, record 1, row 1"
    other, _ = index(settings(dclm.folder, out=tmp_path / "beside", processes=2))
    assert all_rows(tmp_path / "beside", "train") == wanted
    assert other.corpus_hash == tokens.info.corpus_hash


def test_it_is_data_to_train_on(dclm):
    index(settings(dclm.folder))
    config = TokenDataConfig(path=str(dclm.folder), length=LENGTH, shuffle="blocks", isolate_documents=True)
    module = TokenDataModule(config, seed=0, global_batch=4, micro_batch=4)
    batch = next(iter(module.train_dataloader()))
    assert batch["tokens"].shape == batch["segment"].shape == (4, LENGTH)
    assert len(open_tokens(config, "val")) > 0


def flip(path, at, bit=1):
    content = bytearray(path.read_bytes())
    content[at] ^= bit
    path.write_bytes(content)


def members(path):
    """(header, data, size) of each file, by the sizes in the headers: an own, trusting walk."""
    content, at, found = path.read_bytes(), 0, []
    while content[at : at + 1] != b"\0":
        size = int(content[at + 124 : at + 135], 8)
        if content[at + 156 : at + 157] == b"0":
            found.append((at, at + 512, size))
        at += 512 + -(-size // 512) * 512
    return found


def damage(dclm, kind):
    """Do it to the second shard; returns what is told of it and the contexts of that shard that are left."""
    path = dclm.folder / f"{dclm.names[1]}.tar"
    header, data, size = members(path)[7]
    contexts = dclm.contexts[1]
    if kind == "header":
        flip(path, header + 30)
        return "member 7 .*: its header's checksum is wrong", contexts[:7] + contexts[8:]
    if kind == "data":
        flip(path, data + size // 2)
        return "member 7 ", contexts[:7] + contexts[8:]
    if kind == "cut at a member":
        path.write_bytes(path.read_bytes()[: members(path)[8][0]])
        return r"member 8 \(byte .*\): the file is cut: the two zero blocks", contexts[:8]
    if kind == "cut inside":
        path.write_bytes(path.read_bytes()[: data + size // 2])
        return r"member 7 \(byte .*\): the file is cut inside its data", contexts[:7]
    assert kind == "zero block"
    content = bytearray(path.read_bytes())
    content[header : header + 512] = bytes(512)
    path.write_bytes(content)
    return "member 7 .*: a zero block where a header", contexts[:7] + contexts[8:]


@pytest.mark.parametrize("kind", ["header", "data", "cut at a member", "cut inside", "zero block"])
def test_damage_is_found_and_left_out_when_asked(dclm, kind):
    told, left = damage(dclm, kind)
    with pytest.raises(UserError, match=rf"{dclm.names[1]}\.tar: {told}") as found:
        index(settings(dclm.folder))
    assert "--repair to leave out what is damaged" in str(found.value) and not (dclm.folder / "dataset.json").exists()
    info, notes = index(settings(dclm.folder, repair=True))
    wanted, _ = windows_of(dclm.contexts[0] + left + flat(dclm.contexts[2:-1]))
    assert all_rows(dclm.folder, "train") == wanted
    assert any(note.startswith(f"left out: {dclm.names[1]}.tar: member") for note in notes)
    counted = f"{dclm.names[1]}.tar: has {len(left)} contexts, the manifest says 30, {30 - len(left)} are gone"
    assert f"left out: {counted}" in notes and counted in str(found.value)
    assert info.dialect["left_out"]


def test_without_a_manifest_what_is_whole_is_counted(dclm):
    (dclm.folder / "manifest.jsonl").unlink()
    damage(dclm, "cut inside")
    _, notes = index(settings(dclm.folder, repair=True))
    whole = "7 contexts are whole; any behind a cut are not counted"
    assert f"left out: {dclm.names[1]}.tar: {whole}" in notes


def test_a_wrong_context_is_told_shortly_and_leaves_nothing(dclm, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    for out in (None, tmp_path / "new" / "place"):
        with pytest.raises(UserError, match="29 more members for the same reasons") as found:
            index(settings(dclm.folder, context=64, out=out))
        assert len(str(found.value)) < 2500 and str(found.value).count("expected contexts of 64") < 8
        assert sorted(tmp_path.rglob("*")) == before


def test_missing_extra_and_miscounted_shards(dclm):
    (dclm.folder / f"{dclm.names[0]}.tar").unlink()
    shutil.copy(dclm.folder / f"{dclm.names[1]}.tar", dclm.folder / "zextra.tar")
    lines = (dclm.folder / "manifest.jsonl").read_text().split("\n")
    lines[1] = lines[1].replace("30", "31")
    (dclm.folder / "manifest.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError) as found:
        index(settings(dclm.folder))
    for told in (
        f"{dclm.names[0]}.tar: is missing, the manifest has it: 30 contexts",
        f"{dclm.names[1]}.tar: has 30 contexts, the manifest says 31",
        "zextra.tar: is not in the manifest",
        "3 problems",
    ):
        assert told in str(found.value)
    index(settings(dclm.folder, repair=True))
    wanted, _ = windows_of(flat(dclm.contexts[1:]))
    assert all_rows(dclm.folder, "train") == wanted
    assert all_rows(dclm.folder, "val") == windows_of(dclm.contexts[1])[0]


def test_manifests_old_new_without_a_line_end_and_none(dclm):
    lines = [{"num_chunks": len(some), "shard": name} for some, name in zip(dclm.contexts, dclm.names)]
    (dclm.folder / "manifest.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    whole, _ = index(settings(dclm.folder))
    (dclm.folder / "dataset.json").unlink()
    (dclm.folder / "manifest.jsonl").unlink()
    without, notes = index(settings(dclm.folder))
    assert without.corpus_hash == whole.corpus_hash
    assert "no manifest.jsonl: shards and contexts were counted" in notes
    (dclm.folder / "dataset.json").unlink()
    (dclm.folder / "manifest.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"manifest\.jsonl, line 1: no shard and num_sequences or num_chunks in it"):
        index(settings(dclm.folder))


def test_damage_that_comes_after_the_index(dclm):
    index(settings(dclm.folder))
    wanted = all_rows(dclm.folder, "train")
    _, data, size = members(dclm.folder / f"{dclm.names[0]}.tar")[2]
    flip(dclm.folder / f"{dclm.names[0]}.tar", data + size - 6)
    tokens = DclmTokens(dclm.folder, "train")
    broken = next(i for i in range(len(wanted)) if tokens.place(i).record == 2)
    told = rf"{dclm.names[0]}\.tar, record 2, row 0 \(train sequence {broken}\): its CRC-32 differs"
    with pytest.raises(DamagedData, match=told):
        tokens[broken]
    found = DclmTokens(dclm.folder, "train", "skip").read([broken + 1, broken - 1])
    following = next(i for i in range(broken, len(wanted)) if tokens.place(i).record > 2)
    assert found.rows.tolist() == [wanted[following], wanted[broken - 1]] and list(found.skipped) == [broken + 1]
    (dclm.folder / f"{dclm.names[0]}.tar").unlink()
    with pytest.raises(UserError, match="shard is missing"):
        DclmTokens(dclm.folder, "train")


def test_ids_outside_the_vocabulary_and_other_lengths_are_refused(dclm):
    with pytest.raises(UserError, match=r"member \d+ \(.*\.json\.gz\): id \d+ outside the vocabulary of 100"):
        index(settings(dclm.folder, vocab_size=100))
    with pytest.raises(UserError, match=r"has 65 ids, expected contexts of 64 \(--context\)"):
        index(settings(dclm.folder, context=64))
    with pytest.raises(UserError, match="id 259 outside the vocabulary of 257"):
        index(settings(dclm.folder, pad_id=258))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"vocab_size": 258}, "--vocab-size 258: tokenizer 'bytes' has 257 ids; give the tokenizer that made"),
        ({"length": 66}, "--length 66: a context has 65 tokens"),
        ({"eot_id": -1}, "--eot-id -1: must be 0 or more"),
        ({"processes": 0}, "--processes 0: must be 1 or more"),
    ],
)
def test_bad_settings(dclm, options, text):
    with pytest.raises(UserError, match=text):
        index(settings(dclm.folder, **options))


def test_bad_places(dclm, tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder; expected one with DCLM's"):
        index(settings(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: no \.tar in it"):
        index(settings(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"--val-shards \d+: there are \d+ shards, and training needs one"):
        index(settings(dclm.folder, val_shards=len(dclm.names)))
    index(settings(dclm.folder))
    with pytest.raises(UserError, match=r"holds dataset\.json already; remove it to index the shards again"):
        index(settings(dclm.folder))


def test_padding_is_told_by_its_place():
    cases = {
        (5, 7, 0, 9, 9): 3,  # after an end of text
        (5, 9, 9, 7, 9): 5,  # the same id in the text, and at the end of a context that runs on
        (9, 9, 9): 0,
        (0, 9): 1,
        (9, 0, 9, 5): 4,
    }
    assert {ids: text_end(np.array(ids), 0, 9) for ids in cases} == cases


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("suffix", ["json", "txt"])
def test_lists_of_ids(suffix):
    parse = PARSERS[suffix]
    assert parse(b"[1,22, 333]\n").tolist() == [1, 22, 333]
    for bad in (b"1,2", b"[1.5,2]", b"[1,two]", b"[]", b'{"a": 1}', b"[1,2"):
        with pytest.raises(ValueError):
            parse(bad)


def test_the_command(dclm, data_prep):
    arguments = ["--tokenizer", "bytes", "--pad-id", PAD, "--vocab-size", 257, "--context", 65, "--length", LENGTH]
    result = data_prep("index", dclm.folder, *arguments)
    assert result.returncode == 0, result
    assert "1 contexts of padding alone dropped" in result.stdout and "sequences   of 16 tokens" in result.stdout
    assert data_prep("verify", dclm.folder).returncode == 0
