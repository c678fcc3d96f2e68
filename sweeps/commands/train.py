"""train EXPERIMENT: one run as a job that continues itself."""

import argparse
import sys
from pathlib import Path

from sweeps.commands.base import add_code

HELP = "one experiment as a job: all devices of the job, requeued before its time limit, with the code it started with"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", metavar="EXPERIMENT", help="a YAML file, or its name under experiments/")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="goes over the file; run=DIR is the folder")
    add_code(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train, or go on. Returns training's exit status."""
    from sweeps.cluster import launch, single, snapshot
    from sweeps.work import child

    child.hold()
    launch.Allocation.current()
    folder, root = single.places(arguments.experiment, arguments.overrides)
    snapshot.enter(folder, root, arguments.code, snapshot.RUN)
    command = [sys.executable, "-m", "diffusion_lm", "train", arguments.experiment, *arguments.overrides]
    return single.run(command, lambda: _record(folder, arguments.code))


def _record(folder: Path, code: str) -> bool:
    """Name the code in the run's folder, once training has checked everything and made it."""
    from sweeps.cluster import snapshot
    from sweeps.records import trial_files

    if not (folder / trial_files.CONFIG).is_file():
        return False
    snapshot.record(folder, code)
    return True
