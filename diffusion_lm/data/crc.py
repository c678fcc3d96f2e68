"""CRC-32 of every sequence: the side file of a shard, and the check on every read.

A tar has no integrity of its own: a flipped bit in the tokens reads as other tokens. Beside ``train-000000.tar`` lies
``train-000000.tar.crc32``: little-endian uint32, one per sequence in order, over the bytes as they are stored.
"""

import zlib
from pathlib import Path

import numpy as np

from diffusion_lm.files import atomic_path

CRC_DTYPE = np.dtype("<u4")
SUFFIX = ".crc32"


def row_crcs(rows: np.ndarray) -> np.ndarray:
    """CRC-32 [n], uint32, of the bytes of each row of `rows` [n, L], which is contiguous."""
    data, width = memoryview(rows).cast("B"), rows.strides[0]
    ends = range(width, width * len(rows) + 1, width)
    return np.fromiter((zlib.crc32(data[end - width : end]) for end in ends), CRC_DTYPE, len(rows))


def write_crcs(path: Path, crcs: np.ndarray) -> bytes:
    """Write a side file, whole or absent; returns its bytes."""
    content = crcs.astype(CRC_DTYPE).tobytes()
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return content
