"""Files that are either whole or absent: write to a temporary name, fsync, rename."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name, fsynced, when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.fchmod(handle, 0o666 & ~umask())
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        fsync(temporary)
        os.replace(temporary, path)
        fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A folder beside `path`, which must not be there, that takes its name when the block ends without an error."""
    path, place = Path(path).absolute(), None
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        place = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
        place.chmod(0o777 & ~umask())
        yield place
        fsync(place)
        os.rename(place, path)
        fsync(path.parent)
    finally:
        if place is not None and place.exists():
            shutil.rmtree(place)


def write_text(path: str | Path, text: str) -> None:
    """Replace `path` by `text`, all or nothing."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Replace `path` by `value` as JSON, all or nothing."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def umask() -> int:
    """What a new file's permissions leave out."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def fsync(path: Path) -> None:
    """Have a file, or a folder's names, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
