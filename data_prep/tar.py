"""The members of a tar file, with everything checked that the format can tell.

CPython's reader takes a damaged header after the first member for the end of the file, and a file that was cut between
two members for a whole one: half a shard is lost without a word. Here every header's checksum is verified, and a file
has to end with two zero blocks. ustar, GNU (with long names) and pax are read.
"""

from collections.abc import Iterator
from dataclasses import dataclass

BLOCK = 512
ZEROS = bytes(BLOCK)
FILE_TYPES = (b"0", b"\0")
LONG_NAME, PAX, PAX_GLOBAL, FOLDER = b"L", b"x", b"g", b"5"


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside: its data are ``content[start : start + size]``."""

    name: str
    start: int
    size: int

    @property
    def suffix(self) -> str:
        """What follows the first dot of the file's name, as webdataset takes it."""
        return self.name.rpartition("/")[2].partition(".")[2]


class BadTar(ValueError):
    """Damage, told with the member's number and the byte. `at` is the header's place."""

    def __init__(self, what: str, number: int, at: int):
        super().__init__(f"member {number} (byte {at:,}): {what}")
        self.what, self.at = what, at


def members(content: memoryview, problems: list[BadTar] | None = None) -> Iterator[Member]:
    """The files in order. Raises `BadTar`; with `problems` damage is noted there instead, and reading goes on at the
    next header that is whole."""
    at, number, named = 0, 0, None
    while True:
        try:
            header = _header(content, at, number)
        except BadTar as bad:
            if problems is None:
                raise
            problems.append(bad)
            places = range(at + BLOCK, len(content), BLOCK)
            found = next((place for place in places if _is_header(content, place)), None)
            if found is None:
                return
            at, named = found, None
            continue
        if header is None:
            return
        name, kind, size = header
        data = bytes(content[at + BLOCK : at + BLOCK + size]) if kind in (LONG_NAME, PAX) else b""
        if kind in FILE_TYPES:
            yield Member(named or name, at + BLOCK, size)
            number, named = number + 1, None
        elif kind == LONG_NAME:
            named = data.rstrip(b"\0").decode("utf-8", errors="replace")
        elif kind == PAX:
            named = _pax_path(data) or named
        at += BLOCK + -(-size // BLOCK) * BLOCK


def _header(content: memoryview, at: int, number: int) -> tuple[str, bytes, int] | None:
    """Name, type and size at `at`; None at the end of the archive."""
    block = bytes(content[at : at + BLOCK])
    if len(block) < BLOCK:
        raise BadTar("the file is cut: the two zero blocks that end a tar are missing", number, at)
    if block == ZEROS:
        if len(content) < at + 2 * BLOCK or bytes(content[at:]).strip(b"\0"):
            raise BadTar("a zero block where a header, or a second zero block, belongs", number, at)
        return None
    if not _sums_up(block):
        raise BadTar("its header's checksum is wrong", number, at)
    kind, size = block[156:157], _number(block[124:136])
    if kind not in (*FILE_TYPES, LONG_NAME, PAX, PAX_GLOBAL, FOLDER):
        raise BadTar(f"is of type {kind!r}, expected a plain file", number, at)
    if at + BLOCK + size > len(content):
        raise BadTar(f"the file is cut inside its data, of {size} bytes", number, at)
    prefix, name = (block[a:b].partition(b"\0")[0].decode("utf-8", errors="replace") for a, b in ((345, 500), (0, 100)))
    posix = block[257:263] == b"ustar\0"
    return f"{prefix}/{name}" if posix and prefix else name, kind, size


def _is_header(content: memoryview, at: int) -> bool:
    block = bytes(content[at : at + BLOCK])
    if block == ZEROS:
        return not bytes(content[at:]).strip(b"\0")
    return block[257:262] == b"ustar" and _sums_up(block)


def _sums_up(block: bytes) -> bool:
    try:
        told = _number(block[148:156])
    except ValueError:
        return False
    return told == sum(block) - sum(block[148:156]) + 8 * ord(" ")


def _number(field: bytes) -> int:
    """A header's number: octal digits or, with the first bit set, binary."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    return int(field.strip(b" \0") or b"0", 8)


def _pax_path(data: bytes) -> str | None:
    found = None
    while data:
        length, _, rest = data.partition(b" ")
        record = rest[: int(length) - len(length) - 1]
        key, _, value = record.partition(b"=")
        found = value.rstrip(b"\n").decode() if key == b"path" else found
        data = data[int(length) :]
    return found
