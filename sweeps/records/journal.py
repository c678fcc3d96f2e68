"""Optuna's journal on a shared disk, hardened: half lines are cut or skipped, locks are held by one process only, and a
full disk costs one message.

The file holds one JSON object per line, each an operation on the study; every process replays all of them in order.
"""

import json
import os
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from diffusion_lm.errors import DiskError

BLOCK = 65536
GRACE = 30.0  # seconds after which the lock of a process that does nothing any more is taken away, as in Optuna
LONGEST_SLEEP = 0.2  # seconds between two tries to take the lock


class FencedLock(JournalFileSymlinkLock):
    """Optuna's lock (a symbolic link, atomic on NFS too) whose holder knows when it has lost it.

    A process that is paused for longer than the grace period loses its lock, with Optuna's own lock unawares: it then
    writes beside the new holder, and releases a lock that is not its own. Here the link's inode and times tell whose it
    is: `held` before a write, `release` of nothing else, and only a link that itself stood too long is taken away.
    """

    def __init__(self, path: str, grace: float = GRACE):
        super().__init__(path, grace_period=None)
        self.grace = grace
        self._mine: tuple[int, int] | None = None

    def acquire(self) -> bool:
        """Wait for the lock. A link that stands for `grace` seconds is that of a dead or paused process."""
        seen, since, sleep = None, time.monotonic(), 0.001
        while True:
            try:
                os.symlink(self._lock_target_file, self._lock_file)
            except FileExistsError:
                link = self._link()
                if link != seen:
                    seen, since = link, time.monotonic()
                elif link is not None and time.monotonic() - since > self.grace:
                    self._take_away(link)
                    continue
                time.sleep(sleep)
                sleep = min(2 * sleep, LONGEST_SLEEP)
            else:
                self._mine = self._link()
                return True

    def held(self) -> bool:
        """Whether the lock is still that of this process."""
        return self._mine is not None and self._link() == self._mine

    def release(self) -> None:
        """Give the lock back, unless another process has it by now."""
        mine, self._mine = self._mine, None
        if mine is not None and self._link() == mine:
            self._take_away(mine)

    def _take_away(self, link: tuple[int, int]) -> None:
        # By its name at this moment: two processes that both wait too long must not take away two different links.
        aside = f"{self._lock_file}.{link[0]}-{link[1]}"
        try:
            os.rename(self._lock_file, aside)
            os.unlink(aside)
        except FileNotFoundError:
            pass

    def _link(self) -> tuple[int, int] | None:
        try:
            status = os.lstat(self._lock_file)
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns


class HealingJournal(JournalFileBackend):
    """Optuna's journal file, cut back to its last whole line before anything is appended.

    Half a line is what a killed writer or a full quota leaves. Optuna appends to it, and from then on every process
    fails on the glued line. Each append here checks first, under the journal's own lock. A line in the middle that is
    no record is passed over with a warning.
    """

    def __init__(self, path: Path, grace: float = GRACE):
        # Absolute: Optuna's lock is a symbolic link to the name given, and with a relative one it never finds it stale.
        self._path = str(path.absolute())
        self._fence = FencedLock(self._path, grace)
        self._offsets = {0: 0}  # where the record of each number begins that may be asked for
        self._skipped: set[int] = set()
        super().__init__(self._path, self._fence)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append whole lines. Raises `DiskError`, the file as it was, if the disk does not take them."""
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        try:
            while not self._append(text):
                warnings.warn(f"{self._path}: another process wrote in this one's turn (this one stood still for long, "
                              "or the file system's locks do not hold); the record is written again", stacklevel=2)
        except OSError as error:
            raise DiskError(f"{self._path}: cannot be written ({error.strerror}); make room there and start the worker "
                            "again: no trial is lost, running ones are continued") from None

    def _append(self, text: bytes) -> bool:
        """False if no record came of it: the lock was lost meanwhile, or half a line of another process is in front."""
        self._fence.acquire()
        try:
            end = heal(self._path, self._fence.held)
            if not self._fence.held():
                return False
            return _write(self._path, text, end)
        finally:
            self._fence.release()

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The records from that number on; half a line at the end is left for later."""
        self._offsets = {known: at for known, at in self._offsets.items() if known == 0 or known >= log_number_from}
        number = max(known for known in self._offsets if known <= log_number_from)
        start = self._offsets[number]
        for line in _lines(self._path, start):
            record = _record(line) or self._second_look(start, line)
            start += len(line)
            if record is None:
                continue
            number += 1
            self._offsets[number] = start
            if number > log_number_from:
                yield record

    def _second_look(self, start: int, line: bytes) -> dict[str, Any] | None:
        """The record at `start`, read while nobody writes; None, with a warning, if it really is none."""
        if start in self._skipped:
            return None
        try:
            self._fence.acquire()
        except OSError:
            again = line  # a reader who may not write here
        else:
            try:
                again = next(_lines(self._path, start), b"")
            finally:
                self._fence.release()
        record = _record(again) if len(again) == len(line) else None
        if record is None:
            self._skipped.add(start)
            warnings.warn(f"{self._path}: the line at byte {start} is no record and is passed over; a writer died "
                          "there", stacklevel=2)
        return record


def heal(path: str | Path, allowed: Callable[[], bool] = lambda: True) -> int:
    """Cut `path` after its last newline if `allowed` still says so. Returns its size then, in bytes.

    The caller holds the lock.
    """
    with open(path, "rb+") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - BLOCK)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size and allowed():
            file.truncate(end)
            os.fsync(file.fileno())
    return end


def _write(path: str, text: bytes, end: int) -> bool:
    """Append `text` to the file, which ends at byte `end`; where that fails, the file is cut back to there.

    Returns whether it then begins a line.
    """
    handle = os.open(path, os.O_RDWR | os.O_APPEND)
    try:
        rest = memoryview(text)
        while rest:  # a disk that fills up takes a part first, and only then says so
            rest = rest[os.write(handle, rest):]
        os.fsync(handle)
        written = os.pread(handle, os.fstat(handle).st_size - end, end)
        return b"\n" + text in b"\n" + written
    except OSError:
        os.ftruncate(handle, end)
        raise
    finally:
        os.close(handle)


def _lines(path: str, start: int) -> Iterator[bytes]:
    """The whole lines from byte `start` on."""
    with open(path, "rb") as file:
        # In one piece: a half line that is cut and replaced between two reads would give a line that never was.
        data = os.pread(file.fileno(), max(0, os.fstat(file.fileno()).st_size - start), start)
    position = 0
    while (newline := data.find(b"\n", position)) >= 0:
        yield data[position : newline + 1]
        position = newline + 1


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and "op_code" in value else None
