"""status STUDY: the state of every trial."""

import argparse

from diffusion_lm.errors import UserError
from sweeps.commands.base import add_json, add_study, study_folder

HELP = "one table: trials, states, jobs, nodes, last step, bound, speed, ETA, hours, restarts, failures by class"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_study(parser)
    add_json(parser)
    parser.add_argument("--watch", metavar="SECONDS", type=float, help="look again every so many seconds until it ends")
    parser.add_argument("--limit", metavar="TRIALS", type=int, default=40,
                        help="show at most so many trials and count the others; 0 shows all [%(default)s]")


def run(arguments: argparse.Namespace) -> int:
    """Print the state of every trial. Raises `UserError`."""
    if arguments.watch is not None and not arguments.watch > 0:
        raise UserError(f"--watch: got {arguments.watch:g}, expected seconds above 0, for example 10")
    if arguments.watch is not None and arguments.json:
        raise UserError("--watch: got --json beside it, expected one of them: leave one out")
    if arguments.limit < 0:
        raise UserError(f"--limit: got {arguments.limit}, expected a number of trials from 0 on; 0 shows all")
    from sweeps.watch import status

    status.show(study_folder(arguments), arguments.json, arguments.limit, arguments.watch)
    return 0
