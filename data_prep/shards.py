"""Arrays of token sequences into WebDataset tar shards that are whole under their final name or not there at all."""

import hashlib
import itertools
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np

from diffusion_lm.data.manifest import DTYPE, TOKENS_KEY, Shard
from diffusion_lm.files import atomic_path


def write_shards(folder: Path, split: str, records: Iterator[np.ndarray], per_shard: int) -> list[Shard]:
    """Write `records` (arrays [n, L]) into ``SPLIT-000000.tar`` and so on, `per_shard` each. Same input, same bytes."""
    shards = []
    numbered = enumerate(records)
    while (first := next(numbered, None)) is not None:
        some = itertools.chain([first], itertools.islice(numbered, per_shard - 1))
        shards.append(_write_shard(folder, f"{split}-{len(shards):06d}.tar", split, some))
    return shards


def _write_shard(folder: Path, name: str, split: str, records: Iterator[tuple[int, np.ndarray]]) -> Shard:
    sequences = 0
    with atomic_path(folder / name) as temporary:
        with temporary.open("wb") as stream, _webdataset().TarWriter(stream, mtime=0) as writer:
            for number, rows in records:
                writer.write({"__key__": f"{number:06d}", TOKENS_KEY: np.ascontiguousarray(rows, dtype=DTYPE)})
                sequences += len(rows)
        size, sha256 = size_and_hash(temporary)
        offsets = _offsets(temporary)
    return Shard(
        shard=name,
        split=split,
        num_sequences=sequences,
        records=len(offsets),
        bytes=size,
        sha256=sha256,
        offsets=offsets,
    )


def size_and_hash(path: Path) -> tuple[int, str]:
    """Bytes and sha256 of a file."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
        return stream.tell(), digest.hexdigest()


def _offsets(path: Path) -> list[int]:
    offsets = []
    with tarfile.open(path) as tar, path.open("rb") as stream:
        for member in tar:
            stream.seek(member.offset_data)
            assert np.lib.format.read_magic(stream) == (1, 0)
            _, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
            assert dtype == np.dtype(DTYPE) and not fortran
            offsets.append(stream.tell())
    return offsets


def _webdataset() -> ModuleType:
    """webdataset, without torch: it imports torch when it finds it (seconds, and nothing here needs it)."""
    hide = "torch" not in sys.modules and "webdataset" not in sys.modules
    if hide:
        sys.modules["torch"] = None  # `import torch` now raises ImportError, which webdataset takes for "not installed"
    try:
        import webdataset
    finally:
        if hide:
            del sys.modules["torch"]
    return webdataset
