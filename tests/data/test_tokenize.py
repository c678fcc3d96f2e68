"""A large text in parts: the same bytes whoever makes them, nothing lost, re-runs that go on where it stopped."""

import gzip
import hashlib
import json
import time
import unicodedata
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import webdataset

from data_prep.merge import merge
from data_prep.plan import TokenizeSettings
from data_prep.tokenize import tokenize
from diffusion_lm.data.dataset import ShardedTokens
from diffusion_lm.data.info import DatasetInfo
from diffusion_lm.errors import UserError

FILES = [f"local-shard_{shard}/shard_{number:08d}.jsonl" for shard in range(2) for number in range(3)]
OPTIONS = {"tokenizer": "bytes", "length": 32, "val_fraction": 0.2, "records_per_shard": 2}


@pytest.fixture
def source(jsonl, texts, tmp_path):
    """300 documents in six files in two folders."""
    for number, name in enumerate(FILES):
        jsonl(texts[number::6], f"source/{name}")
    return tmp_path / "source"


@pytest.fixture
def make(tmp_path):
    """Run `tokenize`; returns the folder and what was said."""

    def run(source, out="out", processes=1, task=0, tasks=1, on_bad_file="error", **options):
        said = []
        settings = TokenizeSettings(sources=[str(source)], out=tmp_path / out, **{**OPTIONS, **options})
        tokenize(settings, processes=processes, task=task, tasks=tasks, on_bad_file=on_bad_file, say=said.append)
        return tmp_path / out, "\n".join(said)

    return run


def content(folder):
    """The files below `folder`; dataset.json without the folder's own name and the commit."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {**files, "dataset.json": {**json.loads(files["dataset.json"]), "name": "", "code_version": ""}}


def documents(folder, split):
    """The documents of a split, each part's stream cut at its end-of-text ids; a part's cut last one is left out."""
    streams = {}
    for path in sorted(folder.glob(f"{split}-*.tar")):
        for sample in webdataset.WebDataset([str(path)], shardshuffle=False).decode():
            streams.setdefault(path.name.split("-")[1], []).append(sample["tokens.npy"].reshape(-1))
    found = []
    for stream in map(np.concatenate, streams.values()):
        pieces = np.split(stream, np.flatnonzero(stream == 256) + 1)[:-1]
        found += [piece[:-1].astype(np.uint8).tobytes().decode() for piece in pieces]
    return found


def on_validation_side(text):
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return int.from_bytes(hashlib.blake2b(plain.encode(), digest_size=16).digest()[:8], "big") % 10_000 < 2000


@pytest.mark.parametrize("files_per_part", [1, 4])
def test_every_document_is_packed_once_on_its_side(make, source, texts, files_per_part):
    folder, _ = make(source, files_per_part=files_per_part)
    info = DatasetInfo.load(folder)
    assert info.parts == {1: 6, 4: 2}[files_per_part] and info.sources == [str(source)]
    for split, wanted in (("train", False), ("val", True)):
        side = [text for text in texts if on_validation_side(text) == wanted]
        found = documents(folder, split)
        assert not Counter(found) - Counter(side)
        assert len(side) - 3 * info.parts <= len(found), "a part drops the tokens of one window at most"
        assert info.splits[split].documents == len(side)
        assert info.splits[split].tokens == sum(len(text.encode()) + 1 for text in side)
        assert len(ShardedTokens(folder, split)) == info.splits[split].sequences
    shards = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert sum(shard["documents"] for shard in shards) == len(documents(folder, "train") + documents(folder, "val"))
    assert all(shard["tokens"] == 32 * shard["num_sequences"] for shard in shards)


@pytest.mark.parametrize("array", [{"processes": 2}, {"tasks": 3}, {"tasks": 7, "processes": 2}])
def test_the_same_bytes_whoever_makes_them(make, source, array):
    one, _ = make(source, "one")
    tasks = array.get("tasks", 1)
    for task in reversed(range(tasks)):
        assert not (one.parent / "other" / "dataset.json").exists()
        other, _ = make(source, "other", task=task, **array)
    assert content(one) == content(other)


def test_copies_that_differ_in_case_and_space_are_on_one_side(make, jsonl, texts, tmp_path):
    jsonl(texts, "source/a.jsonl")
    jsonl([text.upper().replace(" ", " \n ") for text in texts], "source/b.jsonl")
    folder, _ = make(tmp_path / "source")
    train, val = (
        {" ".join(text.casefold().split()) for text in documents(folder, split)} for split in ("train", "val")
    )
    assert not train & val and min(len(train), len(val)) > 30


def test_whole_files_are_held_out(make, source, texts):
    folder, _ = make(source, hold_out=["local-shard_1/*"], files_per_part=2)
    info = DatasetInfo.load(folder)
    held = [text for number in (3, 4, 5) for text in texts[number::6]]
    assert info.splits["holdout"].documents == len(held) == 150
    assert not Counter(documents(folder, "holdout")) - Counter(held)
    assert not set(documents(folder, "train") + documents(folder, "val")) & set(held)
    assert len(ShardedTokens(folder, "holdout")) == info.splits["holdout"].sequences > 100


def test_a_rerun_makes_what_is_missing_and_no_more(make, source):
    folder, said = make(source, task=0, tasks=2)
    assert "6 parts; this task makes 3" in said and "3 parts are left to other tasks" in said
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
    (folder / "train-00002-000000.tar").write_bytes(b"cut")
    _, said = make(source)
    assert "this task makes 4" in said
    for path in times:
        assert (path.stat().st_mtime_ns == times[path]) == ("00002" not in path.name)
    clean, _ = make(source, "clean")
    assert content(folder) == content(clean)
    assert "already holds this dataset; nothing written" in make(source)[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "function", "call"),
    [("shards", "_offsets", 5), ("parts", "write_json", 3), ("tokenize", "merge", 1), ("finish", "write_json", 1)],
)
def test_killed_at_any_point_the_same_command_goes_on(
    make, killed_data_prep, data_prep, source, tmp_path, module, function, call
):
    clean, _ = make(source, "clean")
    command = [
        "tokenize",
        "--source",
        "source",
        "--out",
        "out",
        "--tokenizer",
        "bytes",
        "--length",
        32,
        "--processes",
        1,
    ]
    command += ["--val-fraction", 0.2, "--records-per-shard", 2]
    killed_data_prep(command, module=f"data_prep.{module}", function=function, call=call)
    out = tmp_path / "out"
    assert not (out / "dataset.json").exists()
    for path in out.glob("*.tar"):
        assert path.read_bytes() == (clean / path.name).read_bytes()
    result = data_prep(*command)
    assert result.returncode == 0, result
    assert content(out) == content(clean)
    assert data_prep("verify", out).returncode == 0


def test_large_vocabularies_are_stored_in_four_bytes(make, tmp_path):
    """Ids as text: the shards hold exactly the numbers that the text lists."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 69_999, size=(50, 40))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": " ".join(map(str, row))}) + "\n" for row in rows))
    folder, _ = make(tmp_path / "rows.jsonl", tokenizer="ids:70000", length=41, val_fraction=0.0)
    tokens = ShardedTokens(folder, "train")
    assert tokens.info.dtype == "<u4" and (rows > 2**16).any()
    stored = {tuple(tokens[index].tolist()) for index in range(50)}
    assert stored == {(*row, 69_999) for row in rows.tolist()}


def test_a_tokenizer_file_goes_with_its_shards(make, data_prep, source, tmp_path):
    result = data_prep("train-tokenizer", "--source", "source", "--vocab-size", 300, "--out", "own/tokenizer.json")
    assert result.returncode == 0, result
    folder, _ = make(source, tokenizer=str(tmp_path / "own" / "tokenizer.json"))
    assert (folder / "tokenizer.json").read_bytes() == (tmp_path / "own" / "tokenizer.json").read_bytes()
    (tmp_path / "own" / "tokenizer.json").unlink()
    result = data_prep("inspect", folder)
    assert result.returncode == 0 and "river" in result.stdout, result


def test_bad_lines_are_told_and_kept_in_the_facts(data_prep, make, source, tmp_path):
    with (source / FILES[4]).open("a") as file:
        file.write('{broken\n{"text": 3}\n{"text": "  "}\n')
    folder, said = make(source)
    told = (
        "2 bad lines skipped (not JSON, or no field 'text' that holds Unicode text); 1 documents without text skipped"
    )
    [line] = [line for line in said.splitlines() if line.startswith("part 00004")]
    assert line.endswith(told)
    assert [DatasetInfo.load(folder).source_facts[what[2:]] for what in told.split("; ")] == [2, 1]


def test_bad_input(make, source, tmp_path, refused):
    make(source, tasks=2)
    before = content_of_all(tmp_path)
    cases = [
        ({"length": 33}, "holds parts made with length=32 (asked: 33); nothing written: give another --out"),
        (
            {"hold_out": ["*_9/*"]},
            "--hold-out '*_9/*': matches none of the 6 files; the first is local-shard_0/shard_000",
        ),
        ({"hold_out": ["*"]}, "--hold-out *: holds out all 6 files; leave some to train on"),
        ({"task": 2, "tasks": 2}, "--task 2 --tasks 2: expected 1 or more, and 0 <= task < tasks"),
        ({"files_per_part": 0}, "--files-per-part 0: must be 1 or more"),
        ({"val_fraction": 1.0}, "--val-fraction 1.0: must be in [0, 1)"),
        ({"out": "source/x"}, "lies inside --source"),
    ]
    for options, text in cases:
        with pytest.raises(UserError) as caught:
            make(source, **options)
        assert text in str(caught.value)
    assert content_of_all(tmp_path) == before
    assert "3 of 6 parts are not there yet, the first is 00001" in refused("merge", "out", "--tokenizer", "bytes")
    assert "--tokenizer ids:9: not the one of the parts in out, bytes" in refused(
        "merge", "out", "--tokenizer", "ids:9"
    )
    assert "plan.json: No such file or directory; make parts first" in refused(
        "merge", "source", "--tokenizer", "bytes"
    )
    (source / "local-shard_1" / "new.txt").write_text("new")
    with pytest.raises(UserError, match=r"holds parts made with 6 files of \d+ bytes \(now also 1 others, the first"):
        make(source)


def test_what_is_not_read_is_told_and_kept_in_the_facts(make, source, texts, tmp_path):
    (source / "shard_00000031_processed_old.jsonl").write_text(json.dumps({"text": "replaced"}))
    (source / "more.jsonl.bz2").write_bytes(b"BZ")
    (source / ".half.jsonl.part").write_bytes(b"{")
    (source / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    (source / "linked").symlink_to(source / "local-shard_0", target_is_directory=True)
    (source / "again.jsonl").symlink_to(source / FILES[0])
    folder, said = make(source)
    facts = DatasetInfo.load(folder).source_facts
    for what in (
        "files with _old in their names left out (DCLM replaced them)",
        "files of unknown type left out (.jsonl.bz2)",
        "hidden files left out",
        "links that lead nowhere, or to no file, left out",
        "folders that are links left out (name them as sources of their own)",
        "files named again by a source or a link, read once",
    ):
        assert f"1 {what}" in said and facts[what] == 1
    assert sum(split.documents for split in DatasetInfo.load(folder).splits.values()) == len(texts)


def test_a_source_named_twice_is_read_once(source, texts, tmp_path):
    said = []
    sources = [str(source), str(source), str(source / FILES[0])]
    settings = TokenizeSettings(sources=sources, out=tmp_path / "out", **OPTIONS)
    info = tokenize(settings, say=said.append)
    assert sum(split.documents for split in info.splits.values()) == len(texts)
    assert "7 files named again by a source or a link, read once" in said


@pytest.fixture
def with_a_cut_file(source, texts):
    """The source with its fourth file compressed, and cut; `whole` makes that good."""
    path = source / f"{FILES[3]}.gz"
    packed = gzip.compress((source / FILES[3]).read_bytes())
    (source / FILES[3]).unlink()
    path.write_bytes(packed[: len(packed) // 2])
    return SimpleNamespace(path=path, whole=packed)


def test_a_bad_file_is_repaired_and_the_other_parts_stay(make, source, with_a_cut_file):
    wanted = r"jsonl.gz: cannot be read to its end .*repair or remove it, then run the same .*--on-bad-file skip"
    with pytest.raises(UserError, match=wanted):
        make(source)
    made = content_of_all(source.parent / "out")
    assert any("train-00000" in path.name for path in made)
    with_a_cut_file.path.write_bytes(with_a_cut_file.whole)
    folder, said = make(source)
    assert "input files changed since: 1 parts are made again, the first is 00003" in said
    shards = {path: time for path, time in content_of_all(folder).items() if path.suffix == ".tar"}
    assert made.items() >= {path: time for path, time in shards.items() if path in made}.items()
    clean, _ = make(source, "clean")
    assert content(folder) == content(clean)


def test_a_bad_file_is_removed_or_left_out(make, source, texts, with_a_cut_file):
    left, said = make(source, "left", on_bad_file="skip")
    [told] = [what for what in DatasetInfo.load(left).source_facts if "not readable to their end" in what]
    assert told.startswith(f"files left out, not readable to their end: {with_a_cut_file.path} (") and told in said
    with pytest.raises(UserError, match="cannot be read to its end"):
        make(source, "removed")
    with_a_cut_file.path.unlink()
    removed, _ = make(source, "removed")
    for folder in (left, removed):
        info = DatasetInfo.load(folder)
        assert sum(split.documents for split in info.splits.values()) == len(texts) - len(texts[3::6])
        found = {path.name: path.read_bytes() for path in folder.glob("*.tar")}
        assert found and not any("-00003-" in name for name in found)
    assert DatasetInfo.load(left).corpus_hash == DatasetInfo.load(removed).corpus_hash


def test_a_part_of_a_file_that_shrank_leaves_no_old_shards(make, source):
    folder, _ = make(source, tasks=2)
    lines = (source / FILES[2]).read_text().splitlines(keepends=True)
    before = sorted(path.name for path in folder.glob("train-00002-*.tar"))
    (source / FILES[2]).write_text("".join(lines[:10]))
    make(source)
    assert len(before) > len(list(folder.glob("train-00002-*.tar"))) > 0
    clean, _ = make(source, "clean")
    assert content(folder) == content(clean)


def test_other_commands_leave_its_parts_alone(make, source, data_prep, refused, tmp_path):
    folder, _ = make(source, tasks=2)
    for command in ("inspect", "verify"):
        line = refused(command, folder)
        assert "the same command goes on: python -m data_prep tokenize --out" in line and "data_prep shard" not in line
    command = line.partition("python -m ")[2].split()
    for other in (["shard", "--source", "source"], ["synth", "hmm"]):
        assert "holds parts that tokenize made; nothing written: give another --out" in refused(*other, "--out", folder)
    assert data_prep(*command[1:]).returncode == 0
    clean, _ = make(source, "clean")
    assert content(folder) == content(clean)
    (tmp_path / "begun").mkdir()
    for name in ("incomplete.json", "train-000000.tar"):
        (tmp_path / "begun" / name).touch()
    with pytest.raises(UserError, match="begun: holds shards that another command has begun"):
        make(source, "begun")


# waits, in the middle of writing a shard, until the dataset is there
SLOW = """
import sys, time
from pathlib import Path
import data_prep.shards as place
from data_prep.__main__ import main
from diffusion_lm.errors import run_command
original, waited = place._offsets, []
def slow(*arguments):
    while not waited and not Path("out/dataset.json").exists():
        Path("reached").touch()
        time.sleep(0.02)
    waited.append(True)
    return original(*arguments)
place._offsets = slow
sys.exit(run_command(main, sys.argv[1:]))
"""


def test_two_at_once_on_one_folder(make, run_python, source, tmp_path):
    command = ["tokenize", "--source", "source", "--out", "out", "--tokenizer", "bytes", "--length", 32]
    command += ["--val-fraction", 0.2, "--records-per-shard", 2, "--processes", 1]
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(run_python, "-c", SLOW, *command)
        while not (tmp_path / "reached").exists() and not slow.done():
            time.sleep(0.02)
        folder, _ = make(source)
        result = slow.result()
    assert result.returncode == 0, result
    assert not list(folder.rglob(".*"))
    clean, _ = make(source, "clean")
    assert content(folder) == content(clean)


def content_of_all(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_source_of_bad_lines_alone_is_an_error(make, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"no": 1}\n' * 5)
    with pytest.raises(UserError, match=r"no text in it; 5 bad lines skipped"):
        make(tmp_path / "bad.jsonl")


def test_merge_takes_the_tokenizer_of_the_parts(make, source):
    folder, _ = make(source)
    wanted = content(folder)
    (folder / "dataset.json").unlink()
    merge(folder)
    assert content(folder) == wanted
