"""What commands of studies share. Each file beside this one is a command, by its name: `HELP`, `add_arguments(parser)`
and `run(arguments) -> exit code`. They import what is heavy in `run`, so that --help and a typing error do not wait.
"""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sweeps.records.folder import StudyFolder


def add_study(parser: argparse.ArgumentParser) -> None:
    """The study, and the folder of all studies."""
    parser.add_argument("study", metavar="STUDY", help="a YAML file, or its name under sweeps/")
    parser.add_argument("--root", default="runs", help="the folder that holds the studies' folders [%(default)s]")


def add_storage(parser: argparse.ArgumentParser) -> None:
    """--storage, for commands that may start a study."""
    parser.add_argument("--storage", metavar="URL", help="keep a new study in this database: "
                        "postgresql://USER@HOST/NAME, the password in ~/.pgpass; without it SWEEPS_STORAGE says it, "
                        "else the study is a journal in its folder")


def add_code(parser: argparse.ArgumentParser) -> None:
    """--code, for commands that train."""
    parser.add_argument("--code", choices=("own", "new"), default="own", help="own: the copy of the code that the "
                        "study started with, made when it starts; new: a copy of the code here, from now on "
                        "[%(default)s]")


def add_json(parser: argparse.ArgumentParser) -> None:
    """--json, for commands that print."""
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def study_folder(arguments: argparse.Namespace) -> "StudyFolder":
    """The study's folder. Raises `UserError` for a study that cannot be read."""
    from sweeps.definition import study
    from sweeps.records.folder import StudyFolder

    return StudyFolder(study.load(arguments.study), arguments.root, getattr(arguments, "storage", None))
