"""estimate study STUDY, estimate experiment EXPERIMENT: what it would take, and what sbatch would be asked for."""

import argparse
from pathlib import Path

from sweeps.commands.base import add_code, add_storage

HELP = "time a few steps of every arm and say how many hours the whole would take; writes nothing"
KINDS = {"study": "SLURM/sweep.sh", "experiment": "SLURM/train.sh"}

PASSED_ON = {"root": "runs", "storage": None, "code": "own"}
"""Options that go to the script as they were typed, and what they are without that."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=KINDS, help="what is estimated")
    parser.add_argument("name", metavar="NAME", help="a study's or an experiment's YAML file, or its name")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="for an experiment: goes over the file")
    parser.add_argument("--script", help="the script that would be submitted [that of the kind]")
    parser.add_argument("--sbatch", default="", metavar="OPTIONS", help="what would be given to sbatch, as in "
                        "--sbatch='--array=0-15 --nodes=2'")
    parser.add_argument("--root", default="runs", help="the folder that holds the studies' folders [%(default)s]")
    add_storage(parser)
    add_code(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the submission and the table of costs."""
    from sweeps.cluster import estimate, sbatch
    from sweeps.definition import experiments, study

    script = Path(arguments.script or KINDS[arguments.kind])
    options = sbatch.options(script, arguments.sbatch)
    more = [word for name, without in PASSED_ON.items() if (value := getattr(arguments, name)) != without
            for word in (f"--{name}", value)]
    core, width, devices = experiments.Core(), sbatch.width(options), sbatch.devices(options) or 1
    print(sbatch.line(options, script, [arguments.name, *arguments.overrides, *more]), end="\n\n", flush=True)
    if arguments.kind == "study":
        costs = estimate.study(study.load(arguments.name), core, estimate.measure)
    else:
        costs = estimate.experiment(arguments.name, arguments.overrides, core, estimate.measure)
    print(estimate.text(costs, devices, width))
    return 0
