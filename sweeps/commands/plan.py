"""plan STUDY: check it and enqueue its design."""

import argparse

from sweeps.commands.base import add_code, add_storage, add_study, study_folder

HELP = "check the study and enqueue its design; doing it again adds nothing"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_study(parser)
    add_storage(parser)
    add_code(parser)


def run(arguments: argparse.Namespace) -> int:
    """Start the study if it is not started."""
    from sweeps.cluster import snapshot

    folder = study_folder(arguments)
    snapshot.enter(folder.path, folder.path.parent, arguments.code)
    from sweeps.definition import experiments, facts, planner

    core = experiments.Core()
    planner.plan(folder, core)
    snapshot.record(folder.path, arguments.code)
    print(f"study '{folder.config.name}': {folder.config.size} trials planned in {folder.path}")
    for line in facts.lines(folder, core):
        print(f"  {line}")
    return 0
