"""Named text sets and files of text: which rows are read, and what is said where there are none."""

import gzip
import hashlib
import json

import pytest

from diffusion_lm.errors import UserError
from diffusion_lm.evaluation.texts import TEXT_SETS, place_of, read_text, set_names

SETS = ["ag_news", "arxiv", "lambada", "lm1b", "ptb", "pubmed", "wikitext103"]


def lines(path, rows, field="text"):
    """Write rows as JSON lines."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({field: row}) + "\n" for row in rows), encoding="utf-8")


def test_the_sets_that_papers_report():
    assert set_names() == SETS
    for name in SETS:
        assert "/" in (TEXT_SETS / f"{name}.yaml").read_text().splitlines()[0].removeprefix("hub: ")


def test_ptb_as_lines_of_text_and_as_rows_of_the_hub(tmp_path):
    (tmp_path / "ptb").mkdir()
    (tmp_path / "ptb" / "valid.txt").write_text("N shares of <unk>\n\n it did n't \n", encoding="utf-8")
    first = read_text(tmp_path / "ptb")
    assert first.text.rows == ("N shares of ?", "", " it didn't ") and first.text.unit == "line"
    lines(tmp_path / "hub" / "ptb.jsonl", ["N shares of <unk>", "", " it did n't "], "sentence")
    second = read_text(tmp_path / "hub" / "ptb.jsonl")
    assert (second.name, second.text, second.digest) == (first.name, first.text, first.digest)


def test_wikitext_keeps_its_line_ends_and_has_empty_rows(tmp_path):
    (tmp_path / "wikitext103.txt").write_text(" \n = Dog = \n \n It barks , often . \n", encoding="utf-8")
    found = read_text(tmp_path / "wikitext103.txt")
    assert found.text.rows == ("", " = Dog =\n", "", " It barks, often.\n")


def test_short_texts_by_line_are_texts_by_themselves(tmp_path):
    (tmp_path / "lm1b.txt").write_text("One , two .\nAnd three .\n", encoding="utf-8")
    found = read_text(tmp_path / "lm1b.txt")
    assert found.text.rows == ("One, two.", "And three.") and found.text.unit == "sentence"


def test_any_folder_of_text(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("x , y\nz\n", encoding="utf-8")
    with gzip.open(tmp_path / "mine" / "b.jsonl.gz", "wt") as file:
        file.write('{"text": "second"}\n{"other": 1}\n')
    found = read_text(tmp_path / "mine")
    assert found.text.rows == ("x , y\nz\n", "second") and found.text.unit == "document"
    assert found.notes == ("1 bad lines skipped (not JSON, or no field 'text' that holds Unicode text)",)
    digest = hashlib.sha256()
    for row in (b"x , y\nz\n", b"second"):
        digest.update(len(row).to_bytes(8, "little") + row)
    assert found.digest == digest.hexdigest()


def test_python_documentation(tmp_path):
    """A small real text: what is read back is what was written, row by row."""
    doc = [part for part in __import__("textwrap").__doc__.split("\n") if part] + [json.__doc__]
    lines(tmp_path / "docs.jsonl", doc)
    assert read_text(tmp_path / "docs.jsonl").text.rows == tuple(doc)


@pytest.mark.parametrize(("data", "text"), [
    ("ptb", "--data ptb: no text_sets/ptb; put split 'validation' of the hub set ptb-text-only/ptb_text_only "
            "(penn_treebank) there as .jsonl with field 'sentence', or as .txt with a line per row; DIFFUSION_LM_DATA "
            "names another folder of sets"),
    ("lambada", "as .jsonl with field 'text', or as .txt with a file per row"),
    ("ptbb", "--data: no such path, and no text set 'ptbb'; expected one of ag_news, .*; did you mean 'ptb'?"),
    ("", "--data: no such path, and no text set ''"),
])  # fmt: skip
def test_a_set_that_is_not_there(tmp_path, monkeypatch, data, text):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIFFUSION_LM_DATA", raising=False)
    start, _, end = text.partition(".*")
    with pytest.raises(UserError) as caught:
        place_of(data)
    assert start in str(caught.value) and str(caught.value).endswith(end)


def test_where_sets_lie(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sets" / "ptb").mkdir(parents=True)
    monkeypatch.setenv("DIFFUSION_LM_DATA", str(tmp_path / "sets"))
    assert place_of("ptb") == tmp_path / "sets" / "ptb"
    assert str(place_of("sets")) == "sets"


@pytest.mark.parametrize(("files", "text"), [
    ({}, "--data '{}': no text file in it; expected .txt, .jsonl"),
    ({"a.txt": " \n"}, "--data {}: no text in it"),
    ({"a.jsonl": "{}\n"}, "--data {}: no text in it; 1 bad lines skipped (not JSON, or no field 'text' that holds "),
])  # fmt: skip
def test_no_text(tmp_path, files, text):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as caught:
        read_text(tmp_path)
    assert text.replace("{}", str(tmp_path)) in str(caught.value)
