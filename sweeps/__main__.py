"""The command line of studies: ``python -m sweeps plan|run|status|report STUDY.yaml``."""

import argparse
import sys

from diffusion_lm.errors import Parser, run_command


def main(argv: list[str]) -> int:
    """Run one command. Returns the exit code: 0, 1 a trial failed, 2 bad input, 75 or 130 stopped and resumable."""
    arguments = _parser().parse_args(argv)
    return arguments.command(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m sweeps", description="Studies over experiments: compare arms, "
                                     "search values. Any number of workers share a study, which is in ROOT/NAME.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command, text in ((plan, "check the study and enqueue its design; doing it again adds nothing"),
                          (run, "plan, then work on the study's trials until none is left"),
                          (status, "one table: trials, states, last step, bound, speed, worker"),
                          (report, "compare the arms: table, plots, sample text")):
        sub = commands.add_parser(command.__name__, help=text, description=text)
        sub.add_argument("study", metavar="STUDY", help="a YAML file, or its name under sweeps/")
        sub.add_argument("--root", default="runs", help="the folder that holds the studies' folders [%(default)s]")
        if command in (status, report):
            sub.add_argument("--json", action="store_true", help="print JSON for programs")
        sub.set_defaults(command=command)
    return parser


# The imports stand in the commands so that --help and a typing error do not wait for Optuna.


def plan(arguments: argparse.Namespace) -> int:
    """Start the study if it is not started."""
    from sweeps import experiments, planner

    folder = _folder(arguments)
    planner.plan(folder, experiments.Core())
    print(f"study '{folder.config.name}': {folder.config.size} trials planned in {folder.path}")
    return 0


def run(arguments: argparse.Namespace) -> int:
    """Plan, work, and write the report if this worker ended the study."""
    from sweeps import experiments, planner, report, worker

    folder = _folder(arguments)
    core = experiments.Core()
    code = worker.Worker(folder, planner.plan(folder, core), core).run()
    report.close(folder)
    return code


def status(arguments: argparse.Namespace) -> int:
    """Print the state of every trial."""
    from sweeps import status

    status.show(_folder(arguments), as_json=arguments.json)
    return 0


def report(arguments: argparse.Namespace) -> int:
    """Print the comparison and write report.md, the plots and the dashboard's note."""
    from sweeps import report

    report.show(_folder(arguments), as_json=arguments.json)
    return 0


def _folder(arguments: argparse.Namespace):
    from sweeps import study
    from sweeps.folder import StudyFolder

    return StudyFolder(study.load(arguments.study), arguments.root)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
