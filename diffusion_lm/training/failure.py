"""What ends a run of several devices is said once, by the first device that has it.

The others meet the same error, or lose contact with the device that had it. They end without a word.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from lightning import Trainer
from torch.distributed.distributed_c10d import _get_default_store

from diffusion_lm.errors import RunError, UserError
from diffusion_lm.training import allocation

FIRST = "DIFFUSION_LM_FIRST_DEVICE"
"""Process id of a first device that has checked everything, and starts the others."""


@contextmanager
def refused_once(devices: int | None = None) -> Iterator[None]:
    """Around what each of `devices` checks by itself (None: not read yet). Of a machine's devices one refuses aloud."""
    try:
        yield
    except (UserError, RunError) as error:
        if dist.is_initialized() or _speaks(devices):
            raise
        raise SystemExit(_status(error)) from None


@contextmanager
def failing_once(trainer: Trainer) -> Iterator[None]:
    """Around what the devices do together."""
    os.environ[FIRST] = str(os.getpid())
    try:
        yield
    except Exception as error:
        if not _first():
            raise SystemExit(_status(error)) from None
        if trainer.strategy.launcher is not None:  # those that it started would wait for this one
            trainer.strategy.launcher.kill(signal.SIGKILL)
        raise
    finally:
        del os.environ[FIRST]


def _speaks(devices: int | None) -> bool:
    """Whether this process is the first on its machine, or the only one that refuses: the first device went on."""
    if devices == 1 or os.environ.get(FIRST) == str(os.getppid()):
        return True
    if allocation.STEP in os.environ:
        return allocation.speaks_for_step()
    # SLURM numbers also tasks that have nothing to do with one another
    task = os.environ.get("SLURM_LOCALID", "0") if devices else "0"
    return int(os.environ.get("LOCAL_RANK", task)) == 0


def _first() -> bool:
    """Whether no other device has failed yet. They count in the store that they met by, which the first device holds:
    when that is gone, it has spoken."""
    if not dist.is_initialized():
        return True
    try:
        return _get_default_store().add("failed", 1) == 1
    except RuntimeError:
        return False


def _status(error: Exception) -> int:
    return 2 if isinstance(error, UserError) else 1
