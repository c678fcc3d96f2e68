"""report STUDY: the comparison."""

import argparse

from sweeps.commands.base import add_json, add_study, study_folder

HELP = "compare the arms: table, plots, sample text"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_study(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the comparison and write report.md, the plots and the dashboard's note."""
    from sweeps.analysis import report

    report.show(study_folder(arguments), as_json=arguments.json)
    return 0
