"""What a person can get wrong with `python -m data_prep`: status 2, one line that says what to do, nothing written."""

import fcntl
import json
import subprocess
import sys
from pathlib import Path

import pytest


def test_no_such_source(refused):
    line = refused("shard", "--source", "nowhere", "--out", "s")
    assert "--source 'nowhere': no such file or folder; expected python-docs or a path" in line
    assert "did you mean 'python-docs'?" in refused("shard", "--source", "python_docs", "--out", "s")


def test_empty_folder_and_unknown_files(refused, tmp_path):
    (tmp_path / "text").mkdir()
    wanted = "--source 'text': no text file in it; expected .txt, .jsonl, .jsonl.gz, .jsonl.zst, .jsonl.zstd"
    assert wanted in refused("shard", "--source", "text", "--out", "s")
    (tmp_path / "text" / "table.csv").write_text("a,b")
    assert wanted in refused("shard", "--source", "text", "--out", "s")
    line = refused("shard", "--source", "text/table.csv", "--out", "s")
    assert "--source 'text/table.csv': a file of unknown type; expected .txt" in line


def test_no_text_at_all(refused, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "  "}\n{"other": 1}\n')
    line = refused("shard", "--source", "a.jsonl", "--out", "s")
    assert "--source 'a.jsonl': no text in it; 1 bad lines skipped" in line
    assert "1 documents without text skipped" in line


def test_too_little_text(refused, tmp_path):
    (tmp_path / "a.txt").write_text("x" * 99)
    line = refused("shard", "--source", "a.txt", "--out", "s", "--length", 101, "--val-fraction", 0)
    assert "the train split has 1 documents and 100 tokens, not one window of 101; give more text" in line
    line = refused("shard", "--source", "a.txt", "--out", "s", "--length", 100, "--val-fraction", 0.0001)
    assert "the val split has 0 documents and 0 tokens, not one window of 100" in line


def test_a_cut_file(refused, tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00")
    assert "a.jsonl.gz: cannot be read to its end" in refused("shard", "--source", "a.jsonl.gz", "--out", "s")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--tokenizer", "byte"], "tokenizer: no variant 'byte'; expected one of bytes"),
        (["--length", "1"], "--length 1: must be 2 or more"),
        (["--length", "many"], "argument --length: invalid int value: 'many'"),
        (["--val-fraction", "1"], "--val-fraction 1.0: must be in [0, 1)"),
        (["--val-fraction", "nan"], "--val-fraction nan: must be in [0, 1)"),
        (["--records-per-shard", "0"], "--records-per-shard 0: must be 1 or more"),
        (["--lenth", "4"], "unrecognized arguments: --lenth 4"),
    ],
)
def test_bad_arguments(refused, arguments, text):
    assert text in refused("shard", "--out", "s", *arguments)


def test_bad_commands(refused):
    assert "the following arguments are required: COMMAND" in refused()
    assert "invalid choice: 'shards'" in refused("shards")


def test_another_dataset_is_not_overwritten(refused, make_shards, texts, tmp_path):
    folder = make_shards(texts)
    source = tmp_path / "shards.source" / "text.jsonl"
    same = ["shard", "--source", source, "--out", folder, "--length", 32, "--val-fraction", 0.2]
    line = refused(*same, "--length", 64, "--records-per-shard", 3)
    assert "holds a dataset made with length=32 (asked: 64), records_per_shard=1024 (asked: 3)" in line
    assert "nothing written: give another --out, or remove that folder first" in line
    assert "source=" in refused("shard", "--out", folder, "--length", 32, "--val-fraction", 0.2)
    size = source.stat().st_size
    source.write_text(source.read_text() + json.dumps({"text": ""}) + "\n")
    assert f"made with file_bytes={size} (asked: {source.stat().st_size})" in refused(*same)


def test_places_that_are_taken(refused, jsonl, texts, tmp_path):
    jsonl(texts, "text/a.jsonl")
    assert "--out text/s: lies inside --source" in refused("shard", "--source", "text", "--out", "text/s")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "train-000000.tar").write_bytes(b"mine")
    line = refused("shard", "--source", "text", "--out", "photos")
    assert "--out photos: holds other files and no dataset; give a new or empty folder" in line
    line = refused("shard", "--source", "text", "--out", "text/a.jsonl")
    assert "--out text/a.jsonl: is a file, expected a folder" in line
    line = refused("shard", "--source", "text/a.jsonl", "--out", "photos/train-000000.tar/s")
    assert "--out photos/train-000000.tar/s: cannot be made (Not a directory)" in line


@pytest.mark.parametrize(
    "command",
    [
        ["shard", "--source", "text.jsonl", "--length", 32],
        ["tokenize", "--source", "text.jsonl", "--tokenizer", "bytes"],
        ["synth", "hmm"],
    ],
)
def test_places_where_no_folder_can_be(refused, jsonl, texts, tmp_path, command):
    jsonl(texts)
    (tmp_path / "taken").touch()
    line = refused(*command, "--out", "taken/x")
    assert "--out taken/x: cannot be made (Not a directory)" in line and "is a file; give another place" in line
    line = refused(*command, "--out", "/proc/nowhere")
    assert "--out /proc/nowhere: /proc is not writable (" in line


def test_a_full_disk_is_one_line(run_python, jsonl, texts, tmp_path):
    """No file may grow above 4096 bytes, as `ulimit -f` asks for it."""
    jsonl(texts)
    limited = (
        "import resource, sys; from data_prep.__main__ import main; from diffusion_lm.errors import run_command; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); sys.exit(run_command(main, sys.argv[1:]))"
    )
    result = run_python("-c", limited, "shard", "--source", "text.jsonl", "--out", "s", "--length", 32)
    assert result.returncode == 1, result
    assert result.stderr == (
        "error: File too large; what is whole under its own name stays: see to that, then run the same command again\n"
    )
    assert not list(tmp_path.glob("s/dataset.json"))


def test_an_unknown_option_is_named_also_where_others_are_missing(refused):
    line = refused("tokenize", "--sorce", "x", "--out", "y")
    assert "unknown option '--sorce'; did you mean '--source'?; the following arguments are required: --source" in line
    line = refused("tokenize", "--outt=y", "--tasks", "2")
    assert "unknown option '--outt'; did you mean '--out'?;" in line and "'--tasks'" not in line


def test_a_reader_that_has_enough(tmp_path, make_shards, texts):
    folder = make_shards(texts)
    command = f"{sys.executable} -m data_prep inspect {folder} --windows 300 | head -n 1"
    result = subprocess.run(command, shell=True, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert result.stderr == "" and result.stdout.count("\n") == 1


def test_a_folder_that_another_process_writes(refused, jsonl, texts, tmp_path):
    jsonl(texts)
    (tmp_path / "s").mkdir()
    with (tmp_path / "s" / "incomplete.json").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        line = refused("shard", "--source", "text.jsonl", "--out", "s", "--length", 32)
    assert "--out s: another process is writing to it; wait for that one" in line


def test_inspect_and_verify_without_a_dataset(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    make = "make it: python -m data_prep shard --source python-docs --out nowhere --tokenizer bytes --length 128"
    for command in ("inspect", "verify"):
        assert f"nowhere: no such folder of shards; {make}" in refused(command, "nowhere")
        assert "empty: not a dataset (no dataset.json in it); make one in a new folder" in refused(command, "empty")


def test_damaged_facts(refused, make_shards, texts):
    folder = make_shards(texts)
    assert "split 'test'; expected one of train, val" in refused("inspect", folder, "--split", "test")
    manifest = (folder / "manifest.jsonl").read_text()
    (folder / "manifest.jsonl").write_text(manifest.split("\n", 1)[1])
    wanted = "manifest.jsonl and dataset.json do not belong together"
    assert wanted in refused("inspect", folder)
    (folder / "manifest.jsonl").write_text("{}\n")
    assert "manifest.jsonl: not a manifest" in refused("inspect", folder)
    facts = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**facts, "version": 99}))
    assert "dataset.json: version 99, expected 1; make the shards again" in refused("inspect", folder)
    (folder / "dataset.json").write_text("[]")
    assert "dataset.json: not the facts of a dataset" in refused("inspect", folder)
