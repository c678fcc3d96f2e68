"""A training process: started so that it cannot outlive the process that started it, told to stop by signals."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import IO

from sweeps.cluster import launch
from sweeps.records.trial_files import CONFIG, LOG

PR_SET_PDEATHSIG = 1
TRAIN = (sys.executable, "-m", "diffusion_lm", "train")

FINISHED, CRASHED, BAD_INPUT, PRUNED, INTERRUPTED, CTRL_C = 0, 1, 2, 3, 75, 130


class Stop:
    """Remembers the first signal that asked this process to stop; the work looks at it between two steps.

    `then` is done at once: a child that has to write a checkpoint must not wait for a storage that does not answer.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.then: Callable[[], None] | None = None
        self.insisted = False

    def install(self) -> None:
        """Catch the signals from now on, and what `hold` kept."""
        for number in self.SIGNALS:
            signal.signal(number, self._note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self.SIGNALS)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # Two Ctrl-C are a person who does not want to wait; SLURM sends several signals and means one.
        self.insisted = self.insisted or (number == signal.SIGINT == self.signal)
        self.signal = self.signal or signal.Signals(number)
        if self.then is not None:
            self.then()


class Held:
    """What `hold` keeps, for work that waits before `Stop.install`."""

    @property
    def signal(self) -> signal.Signals | None:
        """The signal that came, if one did."""
        return signal.SIGUSR1 if signal.SIGUSR1 in signal.sigpending() else None


def hold() -> None:
    """Keep USR1 until `Stop.install`, also over an exec: it ends a process that does not catch it, and a job whose time
    limit is hardly longer than its warning gets it while Python still imports."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR1,))


class Child:
    """A running command, on all tasks of this job. Its output goes to `log`, or where ours goes."""

    def __init__(self, command: Sequence[str], log: IO[bytes] | None = None):
        arguments = launch.command(command)
        # In a process group of its own: Ctrl-C in a terminal comes to us, and we relay it once.
        self.process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0,
                                        preexec_fn=die_with_parent(launch.deadly(arguments)))
        self.relayed = False

    def wait(self, seconds: float) -> int | None:
        """The exit code, or None if it still runs after `seconds`; a death by signal N is -N."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def relay(self, stop: Stop) -> None:
        """Pass a request to stop on, once; the child then writes a checkpoint and ends. A second Ctrl-C kills it."""
        if stop.insisted:
            launch.relay(self.process, signal.SIGKILL)
        elif stop.signal is not None and not self.relayed:
            self.relayed = True  # first: a signal handler may call this in between
            launch.relay(self.process, stop.signal)


def train(folder: Path, command: Sequence[str] = TRAIN) -> Child:
    """Start training in `folder`, or go on there; the output goes to ``FOLDER/train.log``."""
    with open(folder / LOG, "ab") as log:
        return Child([*command, str(folder / CONFIG)], log)


def die_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """What the child does before it becomes the command: ask Linux to send it `number` when its parent dies.

    Otherwise it would train on beside the successor that another worker starts in the same folder.
    """
    if not sys.platform.startswith("linux"):
        return None
    libc, parent = ctypes.CDLL(None, use_errno=True), os.getpid()

    def before_exec() -> None:
        libc.prctl(PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # the parent died between fork and here
            os._exit(CRASHED)

    return before_exec
