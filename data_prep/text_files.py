"""A folder, or one file, of texts: `.txt` (a file is a document), and JSON lines, perhaps compressed, or Parquet with a
`text`."""

import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

from data_prep.compressed import open_gzip, open_plain, open_zstd
from data_prep.sources import Source
from diffusion_lm.errors import UserError

REPLACED = re.compile(r"shard_\d+.*_old(?![A-Za-z0-9]).*")
"""Names of files that DCLM-baseline replaced by others; copies of it may hold both."""


class UnreadableFile(UserError):
    """A file of text that is cut or damaged."""

    def __init__(self, path: Path, why: object):
        super().__init__(f"{path}: cannot be read to its end ({why}); repair or remove it")
        self.path, self.why = path, why

    def __reduce__(self) -> tuple:
        return UnreadableFile, (self.path, str(self.why))


class TextFiles(Source):
    """Files in the order of their relative paths. In a folder, what is hidden, linked folders, unknown types and files
    that DCLM replaced are left out and counted in the notes. Raises `UserError` when there is none that can be read."""

    def __init__(self, path: Path, *, field: str = "text", by_line: bool = False, option: str = "--source"):
        """`field` of a JSON line is the text; `by_line`: every line of a `.txt` is a text, with its line end."""
        super().__init__()
        self.field, self.by_line = field, by_line
        self.name = str(path.resolve())
        self.path = path
        found = [path] if path.is_file() else _below(path, self.notes)
        readable = [file for file in found if reader_of(file)]
        if unknown := [file.name for file in found if not reader_of(file)]:
            kinds = sorted({"".join(Path(name).suffixes[-2:]) or name for name in unknown})
            kinds = [*kinds[:5], "..."] if len(kinds) > 5 else kinds
            self.notes[f"files of unknown type left out ({', '.join(kinds)})"] = len(unknown)
        self.files = [file for file in readable if file == path or not REPLACED.fullmatch(file.name)]
        if replaced := len(readable) - len(self.files):
            self.notes["files with _old in their names left out (DCLM replaced them)"] = replaced
        if not self.files:
            what = "a file of unknown type" if path.is_file() else "no text file in it"
            raise UserError(f"{option} '{path}': {what}; expected {', '.join(READERS)}")

    def documents(self) -> Iterator[str]:
        """The texts of all files, streamed line by line."""
        for path in self.files:
            yield from self.read(path)

    def read(self, path: Path) -> Iterator[str]:
        """The texts of one file."""
        try:
            yield from reader_of(path)(self, path)
        except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
            raise UnreadableFile(path, error) from None

    def facts(self) -> dict:
        """Number and size on disk of the files."""
        return {"files": len(self.files), "file_bytes": sum(path.stat().st_size for path in self.files)}

    def text_file(self, path: Path) -> Iterator[str]:
        """The whole file as one document, or its lines as one each."""
        data = path.read_bytes()
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            self.notes[".txt files that are not UTF-8: bad bytes became U+FFFD"] += 1
            text = data.decode("utf-8-sig", errors="replace")
        yield from re.findall(r"[^\n]*\n|[^\n]+", text) if self.by_line else [text]

    def json_lines(self, path: Path, unpack: Callable[[Path], BinaryIO] = open_plain) -> Iterator[str]:
        """The text of each line that has one; other lines are counted."""
        with unpack(path) as lines:
            for line in lines:
                text = _text_of(line, self.field)
                if text is not None:
                    yield text
                elif line.strip():
                    self.notes[self._bad] += 1

    def parquet_rows(self, path: Path) -> Iterator[str]:
        """The text of each row that has one, read a batch of rows at a time; other rows count as bad lines."""
        import pyarrow
        import pyarrow.parquet

        try:
            with pyarrow.parquet.ParquetFile(path) as table:
                if self.field not in table.schema_arrow.names:
                    self.notes[self._bad] += table.metadata.num_rows
                    return
                for batch in table.iter_batches(batch_size=1024, columns=[self.field]):
                    for text in batch.column(0).to_pylist():
                        if isinstance(text, str):
                            yield text
                        else:
                            self.notes[self._bad] += 1
        except pyarrow.ArrowException as error:
            raise EOFError(str(error).partition("\n")[0]) from None

    @property
    def _bad(self) -> str:
        return f"bad lines skipped (not JSON, or no field '{self.field}' that holds Unicode text)"

    def gzip_lines(self, path: Path) -> Iterator[str]:
        """`json_lines` of a gzip file."""
        yield from self.json_lines(path, open_gzip)

    def zstd_lines(self, path: Path) -> Iterator[str]:
        """`json_lines` of a Zstandard file of any number of frames."""
        yield from self.json_lines(path, open_zstd)


READERS = {
    ".txt": TextFiles.text_file,
    ".jsonl": TextFiles.json_lines,
    ".jsonl.gz": TextFiles.gzip_lines,
    ".jsonl.zst": TextFiles.zstd_lines,
    ".jsonl.zstd": TextFiles.zstd_lines,
    ".json.gz": TextFiles.gzip_lines,
    ".json.zst": TextFiles.zstd_lines,
    ".json.zstd": TextFiles.zstd_lines,
    ".parquet": TextFiles.parquet_rows,
}


def reader_of(path: Path) -> Callable[[TextFiles, Path], Iterator[str]] | None:
    """How to read `path`, by the end of its name."""
    return next((read for suffix, read in READERS.items() if path.name.lower().endswith(suffix)), None)


def _below(folder: Path, notes: Counter[str]) -> list[Path]:
    """The files below `folder` in the order of their relative paths; what is left out is added to `notes`."""
    found = []
    for place, folders, names in os.walk(folder):
        for name in folders:
            if name.startswith("."):
                notes["hidden folders left out"] += 1
            elif os.path.islink(os.path.join(place, name)):
                notes["folders that are links left out (name them as sources of their own)"] += 1
        folders[:] = [name for name in folders if not name.startswith(".")]  # os.walk enters no links
        for name in names:
            path = Path(place, name)
            if name.startswith("."):
                notes["hidden files left out"] += 1
            elif path.is_file():
                found.append(path.relative_to(folder))
            else:
                notes["links that lead nowhere, or to no file, left out"] += 1
    return [folder / path for path in sorted(found)]


def _text_of(line: bytes, field: str) -> str | None:
    try:
        text = json.loads(line)[field]
        text.encode("utf-8")  # a lone surrogate is not text
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return None
    return text
