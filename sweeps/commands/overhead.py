"""overhead: what a study costs beside training."""

import argparse

from diffusion_lm.errors import UserError

HELP = "measure claim and tell by the size of the study, and what a trial costs outside training"
SMALLEST = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 2000], help="sizes of studies [100 2000]")
    parser.add_argument("--repeats", type=int, default=20, help="trials per study that are timed [%(default)s]")
    parser.add_argument("--storage", metavar="URL", help="measure this database too: postgresql://USER@HOST/NAME")
    parser.add_argument("--study", metavar="STUDY", help="train this small study too, with one worker, in a temporary "
                        "folder: what a trial costs outside training")


def run(arguments: argparse.Namespace) -> int:
    """Print what was measured."""
    from sweeps.watch import overhead

    least = max(SMALLEST, 2 * arguments.repeats + 10)
    if min(arguments.trials) < least or arguments.repeats < 1:
        raise UserError(f"--trials: got {' '.join(map(str, arguments.trials))} with {arguments.repeats} repeats, "
                        f"expected at least {least} trials and 1 repeat: half of a study's trials are finished before")
    overhead.show(arguments.trials, arguments.repeats, arguments.storage, arguments.study)
    return 0
