"""Every kind of text file gives the same texts; what is unusable is counted; Python's documentation is not run."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from data_prep.python_docs import PythonDocs
from data_prep.sources import open_source
from data_prep.text_files import TextFiles
from diffusion_lm.errors import UserError

TEXTS = ["first\ndocument", "Größe 日本", "  third, with spaces  "]
LINES = [json.dumps({"id": 1, "text": text}, ensure_ascii=False).encode() + b"\n" for text in TEXTS]


def frames(lines):
    """Each line a Zstandard frame of its own, as parallel compressors write them, with a frame that readers skip."""
    compress = zstandard.ZstdCompressor().compress
    skipped = (0x184D2A50).to_bytes(4, "little") + (3).to_bytes(4, "little") + b"abc"
    return skipped.join(compress(line) for line in lines)


PACKERS = {"jsonl": b"".join, "jsonl.gz": lambda lines: gzip.compress(b"".join(lines)), "jsonl.zst": frames}
PACKERS["jsonl.zstd"] = lambda lines: zstandard.ZstdCompressor().compress(b"".join(lines))
PACKERS |= {f"json.{ending}": PACKERS[f"jsonl.{ending}"] for ending in ("gz", "zst", "zstd")}


@pytest.mark.parametrize("kind", PACKERS)
def test_json_lines(tmp_path, kind):
    bad = [b"{broken", b"[1]", b'"text"', b"null", b'{"text": 3}', b'{"tex": "t"}', b'{"text": "\\ud800"}', b"\xff"]
    bad = [line + b"\n" for line in bad]
    path = tmp_path / f"a.{kind}"
    path.write_bytes(PACKERS[kind]([LINES[0], *bad, b"\n", LINES[1], LINES[2].rstrip(b"\n")]))
    source = open_source(str(path))
    assert list(source.documents()) == TEXTS
    assert list(source.notes.values()) == [len(bad)]


def test_parquet(tmp_path):
    """Rows over several groups; rows without text, and files without the column, are bad lines."""
    texts = [f"{number} Größe" for number in range(3000)]
    table = pyarrow.table({"url": ["x"] * 3002, "text": [*texts, None, "last"]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=700)
    pyarrow.parquet.write_table(pyarrow.table({"words": ["x", "y"]}), tmp_path / "b.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2, 3]}), tmp_path / "c.parquet")
    source = open_source(str(tmp_path))
    assert list(source.documents()) == [*texts, "last"]
    assert list(source.notes.values()) == [1 + 2 + 3]
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
    with pytest.raises(UserError, match=r"a\.parquet: cannot be read to its end"):
        list(open_source(str(tmp_path)).documents())


def test_files_that_dclm_replaced_are_left_out_of_folders(tmp_path):
    names = ["shard_00000030_processed.jsonl", "shard_00000031_processed.jsonl", "shard_00000031_processed_old.jsonl"]
    for name in [*names, "old_texts.jsonl", "my_old_text.txt"]:
        (tmp_path / name).write_text(json.dumps({"text": name}))
    source = open_source(str(tmp_path))
    assert sorted(path.name for path in source.files) == ["my_old_text.txt", "old_texts.jsonl", *names[:2]]
    assert list(source.notes.values()) == [1]
    assert list(open_source(str(tmp_path / names[2])).documents()) == [names[2]]


def test_another_field_and_lines_as_texts(tmp_path):
    (tmp_path / "a.txt").write_bytes("one\r\n\n \u2028two".encode())
    (tmp_path / "b.jsonl").write_text('{"text": "no"}\n{"article": "first\\nsecond"}\n')
    source = TextFiles(tmp_path, field="article", by_line=True)
    assert list(source.documents()) == ["one\r\n", "\n", " \u2028two", "first\nsecond"]
    [note] = source.notes
    assert "no field 'article'" in note and source.notes[note] == 1


@pytest.mark.parametrize("kind", ["jsonl.gz", "jsonl.zst", "jsonl.zstd"])
def test_a_cut_or_damaged_file_is_an_error(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    whole = PACKERS[kind](LINES)
    for damaged in (whole[:-5], whole[: len(whole) // 2], b"not compressed at all", b""):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"a\.{kind}: cannot be read to its end \(.*; repair or remove it"):
            list(TextFiles(path).documents())


def test_folder_is_walked_in_order_without_hidden_and_unknown_files(tmp_path):
    for name in ("b.txt", "a/z.txt", "a/.hidden.txt", ".git/c.txt", "a/picture.png", "c.TXT"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert list(TextFiles(tmp_path).documents()) == ["a/z.txt", "b.txt", "c.TXT"]


def test_text_that_is_not_utf8_is_mended_and_counted(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfmarked")
    source = TextFiles(tmp_path)
    assert list(source.documents()) == ["caf\ufffd", "marked"]
    assert list(source.notes.values()) == [1]


def test_bad_lines_are_told(data_prep, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"{broken\n" + json.dumps({"text": "word " * 100}).encode() + b"\n[]\n")
    result = data_prep("shard", "--source", "a.jsonl", "--out", "s", "--length", 16, "--val-fraction", 0)
    assert result.returncode == 0, result
    assert "2 bad lines skipped (not JSON, or no field 'text' that holds Unicode text)" in result.stdout


@pytest.fixture
def library(tmp_path):
    """A standard library of our own: importing any of it would raise."""
    files = {
        "pydoc_data/topics.py": "# made\ntopics = {'while': 'The while statement', 'assert': 'The assert statement'}\n",
        "pydoc_data/__init__.py": "",
        "b.py": f'"""module {"m" * 200}"""\nraise SystemExit\n'
        f'class A:\n    """class {"c" * 200}\n\n    indented\n    """\n'
        f'    def f(self):\n        """short"""\n    async def g(self):\n        r"""method {"g" * 200} \\d"""\n',
        "a/deep.py": f'def f():\n    """deep {"d" * 200}"""\n',
        "a/broken.py": "def f(:\n",
        "a/silent.py": "x = 1\n",
        "test/t.py": f'"""test {"t" * 200}"""\n',
        "site-packages/p.py": f'"""package {"p" * 200}"""\n',
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_python_documentation_is_parsed_not_imported(library):
    source = PythonDocs(library)
    assert list(source.documents()) == [
        "The assert statement",
        "The while statement",
        f"module {'m' * 200}\n\nclass {'c' * 200}\n\nindented\n\nmethod {'g' * 200} \\d\n",
        f"deep {'d' * 200}\n",
    ]
    assert list(source.notes.values()) == [1]


def test_this_python_carries_documentation():
    documents = PythonDocs().documents()
    assert "assert" in next(documents).lower()


def test_a_python_without_source_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"python-docs: no .*topics\.py; this Python came without its library's source"):
        next(PythonDocs(tmp_path).documents())
