"""run STUDY: a worker."""

import argparse

from sweeps.commands.base import add_storage, add_study, study_folder

HELP = "plan, then work on the study's trials until none is left"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_study(parser)
    add_storage(parser)


def run(arguments: argparse.Namespace) -> int:
    """Plan, work, and write the report if this worker ended the study."""
    from sweeps import experiments, planner, report, worker

    folder = study_folder(arguments)
    core = experiments.Core()
    code = worker.Worker(folder, planner.plan(folder, core), core).run()
    report.close(folder)
    return code
