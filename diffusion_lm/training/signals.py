"""Signals that ask a run to stop: they set a flag, and training stops at the end of a step."""

import os
import signal
import sys
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopSignal:
    """A context in which the signals only set `number`."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def install(self) -> None:
        """Take the signals. Once more after Lightning put its own handler before ours: that one exits with status 0."""
        for number in SIGNALS:
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a reading process that inherited the handler
            return
        if self.number == signal.SIGINT == number:
            raise SystemExit(128 + number)  # a second Ctrl-C does not wait for the checkpoint
        self.number = number
        print(f"{signal.Signals(number).name}: stopping after this step", file=sys.stderr)
