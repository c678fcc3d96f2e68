"""What kind of failure ended a run, left for programs in failure.json: ``{"class": ..., "message": one line}``.

A sweep decides by the class whether it starts the trial again: what ran out of memory does so again, a full disk may
have room in a minute.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from diffusion_lm.data.reader import DamagedData
from diffusion_lm.errors import DiskError, NotFiniteError, UserError
from diffusion_lm.files import write_json
from diffusion_lm.training.run import Run

OUT_OF_MEMORY, NOT_FINITE, DISK, INPUT, CODE = "out_of_memory", "not_finite", "disk", "input", "code"
TYPES: tuple[tuple[type[Exception], str], ...] = (
    (torch.OutOfMemoryError, OUT_OF_MEMORY),
    (MemoryError, OUT_OF_MEMORY),
    (NotFiniteError, NOT_FINITE),
    (DiskError, DISK),
    (DamagedData, INPUT),
    (UserError, INPUT),
)
# PyTorch raises plain RuntimeErrors where the host has no memory left, and where CUDA's own libraries find none.
ALLOCATIONS = ("DefaultCPUAllocator", "CUDA error: out of memory", "ALLOC_FAILED")
ERRNOS = {
    errno.ENOMEM: OUT_OF_MEMORY,
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO), DISK),
}


def failure_class(error: Exception) -> str:
    """``out_of_memory``, ``not_finite``, ``disk``, ``input``, or ``code`` for everything that is none of these."""
    for kind, name in TYPES:
        if isinstance(error, kind):
            return name
    if isinstance(error, OSError) and error.errno in ERRNOS:
        return ERRNOS[error.errno]
    if isinstance(error, RuntimeError) and any(words in str(error) for words in ALLOCATIONS):
        return OUT_OF_MEMORY
    return CODE


@contextmanager
def recorded(run: Run) -> Iterator[None]:
    """Around all of a run's work: leave in its folder what ended it.

    Bad input is refused before anything is written, and this writes nothing about it either: exit status 2 says it.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, UserError) and run.config_file.is_file():
            with suppress(OSError):  # a full disk: the error itself is what counts
                write_json(run.failure_file, {"class": failure_class(error), "message": one_line(error)})
        raise


def one_line(error: Exception) -> str:
    """``MemoryError: ...``, without line breaks; errors that are written for people stand as they are."""
    text = " ".join(str(error).split())
    if isinstance(error, NotFiniteError | DiskError | DamagedData):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
