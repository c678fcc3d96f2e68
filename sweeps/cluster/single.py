"""One command as a job that continues itself: ``python -m sweeps train``, used by SLURM/train.sh.

The command follows training's contract: asked to stop, it writes a checkpoint and exits with 75; started again, it goes
on from there. Near the time limit (SIGUSR1) the job then goes back into SLURM's queue. A pre-empted one whose batch
process hears of it is queued again by SLURM itself; where only the tasks of a step are told, the job would end within
the grace time and count as done, so it is put back from here.
"""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from signal import SIGUSR1

from diffusion_lm.errors import UserError, run_command
from sweeps.cluster import slurm
from sweeps.records import trial_files
from sweeps.work.child import INTERRUPTED, Child, Stop

POLL = 0.5  # seconds
EXPERIMENTS = "experiments"


def run(command: Sequence[str], under_way: Callable[[], bool] = lambda: True) -> int:
    """Run `command` to its end. Returns its exit code; that of a death by signal N is 128 + N, as in a shell.

    `under_way` is called until it says that what it waited for is done, and at the end.
    """
    if not command:
        raise UserError("which command? usage: python -m sweeps.cluster.single COMMAND...")
    stop = Stop()
    stop.install()
    child, done, code = Child(command), False, None
    while code is None:
        child.relay(stop)
        code = child.wait(POLL)
        done = done or under_way()
    task = slurm.task()
    if code == INTERRUPTED and stop.signal in (None, SIGUSR1) and task is not None:
        slurm.requeue(task)
    return code if code >= 0 else 128 - code


def places(experiment: str, overrides: Sequence[str]) -> tuple[Path, Path]:
    """The run's folder, as training will find it, and the folder that holds it and the copies of the code.

    Training finds it with everything imported, which takes seconds; a copy of the code is entered before.
    """
    given = dict(text.split("=", 1) for text in overrides if "=" in text)
    if given.get("run"):
        return Path(given["run"]), Path(given["run"]).parent
    path = Path(experiment)
    if path.name == trial_files.CONFIG:
        return path.parent, path.parent.parent
    root = Path(os.environ.get("DIFFUSION_LM_RUNS", "runs"))
    return root / (given.get("name") or _name(path)), root


def _name(path: Path) -> str:
    """What the experiment calls itself: its key `name`, else its path below experiments/, else its file's name."""
    import yaml

    file = path if path.is_file() else Path(EXPERIMENTS, f"{path}.yaml")
    try:
        own = yaml.safe_load(file.read_text()).get("name")
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError):
        own = None  # training says what is wrong with it
    parts = file.resolve().with_suffix("").parts
    below = parts[len(parts) - parts[::-1].index(EXPERIMENTS):] if EXPERIMENTS in parts[:-1] else parts[-1:]
    return str(own or Path(*below))


if __name__ == "__main__":
    sys.exit(run_command(run, sys.argv[1:]))
