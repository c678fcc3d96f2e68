"""One command as a job that continues itself: ``python -m sweeps.single COMMAND...``, used by SLURM/train.sh.

The command follows training's contract: asked to stop, it writes a checkpoint and exits with 75; started again, it goes
on from there. Near the time limit (SIGUSR1) the job then goes back into SLURM's queue. A pre-empted one whose batch
process hears of it is queued again by SLURM itself; where only the tasks of a step are told, the job would end within
the grace time and count as done, so it is put back from here.
"""

import sys
from collections.abc import Sequence
from signal import SIGUSR1

from diffusion_lm.errors import UserError, run_command
from sweeps import slurm
from sweeps.child import INTERRUPTED, Child, Stop

POLL = 0.5  # seconds


def run(command: Sequence[str]) -> int:
    """Run `command` to its end. Returns its exit code; that of a death by signal N is 128 + N, as in a shell."""
    if not command:
        raise UserError("which command? usage: python -m sweeps.single COMMAND...")
    stop = Stop()
    stop.install()
    child = Child(command)
    code = None
    while code is None:
        child.relay(stop)
        code = child.wait(POLL)
    task = slurm.task()
    if code == INTERRUPTED and stop.signal in (None, SIGUSR1) and task is not None:
        slurm.requeue(task)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(run_command(run, sys.argv[1:]))
