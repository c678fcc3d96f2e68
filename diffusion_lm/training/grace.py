"""Time to end for the first device of a run, where Lightning started the others."""

import os
import signal
import threading

import lightning
from lightning.pytorch import Callback, Trainer

SECONDS = 60.0
OBSERVER = "child-process-observer"


class Grace(Callback):
    """Lets the first device end by itself after an error.

    Lightning looks every few seconds for started devices that failed, and answers with SIGKILL to all, also to a first
    device that is just about to say what happened. From the error on it is not asked any more; a device that still
    hangs after `SECONDS`, as in a collective that waits for the dead, is ended then.
    """

    def on_exception(self, trainer: Trainer, module: lightning.LightningModule, exception: BaseException) -> None:
        for thread in threading.enumerate():
            if thread.name == OBSERVER:
                thread._run = lambda: True  # type: ignore[attr-defined]
                last = threading.Timer(SECONDS, _end, [trainer])
                last.daemon = True
                last.start()


def _end(trainer: Trainer) -> None:
    trainer.strategy.launcher.kill(signal.SIGKILL)
    os._exit(1)
