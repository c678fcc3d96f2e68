"""retry STUDY: failed cells once more."""

import argparse

from sweeps.commands.base import add_study, study_folder

HELP = "ask again for failed trials: new ones with the same parameters and seed, which stand for them in the report"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_study(parser)
    parser.add_argument("--trial", type=int, nargs="+", default=(), metavar="N", help="these trials alone")
    parser.add_argument("--cell", metavar="NAME", help="those of one cell, as status and report name it")
    parser.add_argument("--class", dest="kind", metavar="CLASS",
                        help="those that failed by one class: out_of_memory, not_finite, node, time, disk, input, code")


def run(arguments: argparse.Namespace) -> int:
    """Enqueue them; workers that run take them up, else start one."""
    from sweeps.records import storage
    from sweeps.work import retry

    folder = study_folder(arguments)
    asked = retry.ask_again(folder, storage.load(folder), numbers=arguments.trial, cell=arguments.cell,
                            kind=arguments.kind)
    for trial in asked:
        seed = f" seed {trial.user_attrs['seed']}" if "seed" in trial.user_attrs else ""
        print(f"trial {trial.number} ({trial.user_attrs['cell']}{seed}) is asked for again")
    print(f"study '{folder.config.name}': {len(asked)} trials wait; start a worker to train them" if asked else
          f"study '{folder.config.name}': no failed trial to ask for again")
    return 0
