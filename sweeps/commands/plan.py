"""plan STUDY: check it and enqueue its design."""

import argparse

from sweeps.commands.base import add_storage, add_study, study_folder

HELP = "check the study and enqueue its design; doing it again adds nothing"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_study(parser)
    add_storage(parser)


def run(arguments: argparse.Namespace) -> int:
    """Start the study if it is not started."""
    from sweeps import experiments, planner

    folder = study_folder(arguments)
    planner.plan(folder, experiments.Core())
    print(f"study '{folder.config.name}': {folder.config.size} trials planned in {folder.path}")
    return 0
