"""What a worker does when the disk or the storage does not answer: try again for minutes, then leave in one line.

Training goes on meanwhile, and no trial is lost: it stays running in the storage until a worker continues it.
"""

import errno
import time
from collections.abc import Callable
from typing import TypeVar

from optuna.exceptions import StorageInternalError

from diffusion_lm.errors import DiskError, RunError
from sweeps.work.child import Held, Stop

T = TypeVar("T")

FAULTS = (OSError, RunError, StorageInternalError)
"""What storages and disks raise: the journal's and PostgreSQL's own one-line errors are `RunError`."""
LIMIT = 300.0  # seconds of trying
FIRST, LONGEST = 1.0, 30.0  # seconds between two tries
SLICE = 0.2  # seconds after which a wait looks whether the worker has to stop
LONGEST_LINE = 120  # characters of what a storage said
PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.ENOLCK,
           errno.ETIMEDOUT, errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH, errno.ENETUNREACH)
"""Errors that may be gone in a minute; a folder that is read-only stays so."""


class GaveUp(RunError):
    """The storage or the disk failed for too long."""


class Patience:
    """Calls what may fail for a while. It must do no harm to do it twice."""

    def __init__(self, stop: Stop | Held):
        self.stop = stop

    def __call__(self, action: Callable[[], T]) -> T:
        """What `action` returns. Raises `GaveUp` after `LIMIT` seconds of failures, at once if waiting is no use or
        the worker has to stop."""
        wait, end = FIRST, None
        while True:
            try:
                return action()
            except FAULTS as error:
                now = time.monotonic()
                if end is None:
                    end = now + LIMIT
                    print(f"{what(error)}; trying again for {LIMIT:.0f} s" if may_pass(error) else what(error),
                          flush=True)
                if not may_pass(error) or self.stop.signal is not None or now >= end:
                    raise GaveUp(f"{what(error)}; no trial is lost: the same command goes on when this is mended"
                                 ) from None
                self.pause(min(wait, max(0.0, end - now)))
                wait = min(2 * wait, LONGEST)

    def pause(self, seconds: float) -> None:
        """Wait, but not beyond a request to stop."""
        end = time.monotonic() + seconds
        while self.stop.signal is None and (left := end - time.monotonic()) > 0:
            time.sleep(min(SLICE, left))


def may_pass(error: BaseException) -> bool:
    """Whether it makes sense to try again."""
    cause = error.__context__ if isinstance(error, DiskError) else error
    return not isinstance(cause, OSError) or cause.errno in PASSING


def what(error: BaseException) -> str:
    """An error in one line: of a file its name and why, of Optuna's wrapper what the database said."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, StorageInternalError):
        cause = error.__cause__ or error
        # Of a database's error what the driver said: SQLAlchemy adds the statement with all its values.
        lines = str(getattr(cause, "orig", None) or cause).splitlines() or [type(cause).__name__]
        return f"the study's storage failed ({lines[0][:LONGEST_LINE]})"
    return " ".join(str(error).split()) or type(error).__name__
