"""Arrays of token sequences into WebDataset tar shards that are whole under their final name or not there at all."""

import hashlib
import itertools
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np

from diffusion_lm.data.crc import SUFFIX, row_crcs, write_crcs
from diffusion_lm.data.manifest import DTYPE, TOKENS_KEY, Shard
from diffusion_lm.files import atomic_path


def write_shards(
    folder: Path, split: str, records: Iterator[np.ndarray], per_shard: int, *, eot_id: int, dtype: str = DTYPE,
    part: str = "",
) -> list[Shard]:  # fmt: skip
    """Write `records` (arrays [n, L]) into ``SPLIT-[PART-]000000.tar`` and so on, `per_shard` each, with the CRC-32 of
    every sequence in ``SPLIT-[PART-]000000.tar.crc32``. Same input, same bytes."""
    shards = []
    numbered = enumerate(records)
    prefix = f"{split}-{part}-" if part else f"{split}-"
    while (first := next(numbered, None)) is not None:
        some = itertools.chain([first], itertools.islice(numbered, per_shard - 1))
        cast = ((number, np.ascontiguousarray(rows, dtype=dtype)) for number, rows in some)
        shards.append(_write_shard(folder, f"{prefix}{len(shards):06d}.tar", split, cast, eot_id))
    return shards


def _write_shard(folder: Path, name: str, split: str, records: Iterator[tuple[int, np.ndarray]], eot_id: int) -> Shard:
    tokens = documents = 0
    sums: list[np.ndarray] = []
    with atomic_path(folder / name) as temporary:
        with temporary.open("wb") as stream, _webdataset().TarWriter(stream, mtime=0) as writer:
            for number, rows in records:
                writer.write({"__key__": f"{number:06d}", TOKENS_KEY: rows})
                sums.append(row_crcs(rows))
                tokens += rows.size
                documents += int(np.count_nonzero(rows == eot_id))
        size, sha256 = size_and_hash(temporary)
        offsets = _offsets(temporary, rows.dtype)
        side = write_crcs(folder / f"{name}{SUFFIX}", np.concatenate(sums))
    return Shard(
        shard=name,
        split=split,
        num_sequences=sum(map(len, sums)),
        records=len(offsets),
        bytes=size,
        sha256=sha256,
        offsets=offsets,
        tokens=tokens,
        documents=documents,
        crc=f"{name}{SUFFIX}",
        crc_sha256=hashlib.sha256(side).hexdigest(),
    )


def size_and_hash(path: Path) -> tuple[int, str]:
    """Bytes and sha256 of a file."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
        return stream.tell(), digest.hexdigest()


def _offsets(path: Path, wanted: np.dtype) -> list[int]:
    offsets = []
    with tarfile.open(path) as tar, path.open("rb") as stream:
        for member in tar:
            stream.seek(member.offset_data)
            assert np.lib.format.read_magic(stream) == (1, 0)
            _, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
            assert dtype == wanted and not fortran
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
