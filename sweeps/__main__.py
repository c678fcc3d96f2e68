"""The command line of studies: ``python -m sweeps COMMAND STUDY.yaml``. Each file in commands/ is a command."""

import argparse
import sys
from importlib import import_module
from pathlib import Path

from diffusion_lm.errors import Parser, run_command

COMMANDS = sorted(path.stem for path in (Path(__file__).parent / "commands").glob("[a-z]*.py") if path.stem != "base")


def main(argv: list[str]) -> int:
    """Run one command. Returns the exit code: 0, 1 a trial failed, 2 bad input, 75 or 130 stopped and resumable."""
    arguments = _parser().parse_args(argv)
    return arguments.run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m sweeps", description="Studies over experiments: compare arms, "
                                     "search values. Any number of workers share a study, which is in ROOT/NAME.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in COMMANDS:
        command = import_module(f"sweeps.commands.{name}")
        sub = commands.add_parser(name, help=command.HELP, description=command.HELP)
        command.add_arguments(sub)
        sub.set_defaults(run=command.run)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
