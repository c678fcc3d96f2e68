"""Files as binary streams of lines, plain or compressed with Zstandard."""

import gzip
import io
from pathlib import Path
from typing import BinaryIO

import zstandard


def open_plain(path: Path) -> BinaryIO:
    """The file as it is."""
    return path.open("rb")


def open_gzip(path: Path) -> BinaryIO:
    """The decompressed content. Raises `EOFError` for an empty file: even no text has a header."""
    if not path.stat().st_size:
        raise EOFError("the file is empty")
    return gzip.open(path)


def open_zstd(path: Path) -> BinaryIO:
    """The decompressed content. Raises `EOFError` when read to the end of a cut file, `ZstdError` in a damaged one."""
    if not path.stat().st_size:
        raise EOFError("the file is empty")
    return io.BufferedReader(_WholeFrames(path))


class _WholeFrames(io.RawIOBase):
    """Decompressed bytes of a file of Zstandard frames. The library's own reader takes a cut file for a whole one."""

    def __init__(self, path: Path):
        self._file = path.open("rb")
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
        self._frame = self._decompressor.decompressobj()
        self._inside = False
        self._held = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        """Fill `buffer`; 0 at the end. Raises `EOFError` when the file ends inside a frame."""
        while not self._held:
            data = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame, self._inside = self._decompressor.decompressobj(), False
            data = data or self._file.read(1 << 20)
            if not data:
                if self._inside:
                    raise EOFError("the compressed file ends inside a frame")
                return 0
            self._inside = True
            self._held = self._frame.decompress(data)
        size = min(len(buffer), len(self._held))
        buffer[:size], self._held = self._held[:size], self._held[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()
