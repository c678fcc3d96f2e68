"""best STUDY: the best cell's experiment."""

import argparse
from pathlib import Path

from sweeps.commands.base import add_study, study_folder

HELP = "print the best cell's experiment, or export it as a file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_study(parser)
    parser.add_argument("--metric", help="by what it is the best [the study's first metric]")
    parser.add_argument("--arm", help="the best of this arm (or cell) only")
    parser.add_argument("--kind", help="the best among numbers of this kind only, such as 'masked, continuous time'")
    parser.add_argument("--export", metavar="FILE", type=Path, help="write a new file, such as experiments/NAME.yaml")


def run(arguments: argparse.Namespace) -> int:
    """Print the experiment of the best cell, or write it."""
    from sweeps.analysis import best
    from sweeps.definition import experiments

    folder = study_folder(arguments)
    row = best.find(folder, arguments.metric, arguments.arm, arguments.kind)
    text = best.experiment(folder, row, arguments.metric, experiments.Core())
    if arguments.export is None:
        print(text, end="")
        return 0
    best.export(text, arguments.export)
    print(f"{row.cell} (trial {row.best.number}) as {arguments.export}; train it: python -m diffusion_lm train "
          f"{arguments.export}")
    return 0
