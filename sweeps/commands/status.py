"""status STUDY: the state of every trial."""

import argparse

from sweeps.commands.base import add_json, add_study, study_folder

HELP = "one table: trials, states, last step, bound, speed, worker"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_study(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the state of every trial."""
    from sweeps import status

    status.show(study_folder(arguments), as_json=arguments.json)
    return 0
