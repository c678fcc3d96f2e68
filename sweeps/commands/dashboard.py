"""dashboard [STUDY]: TensorBoard and the Optuna dashboard, on loopback."""

import argparse
from pathlib import Path

HELP = "serve TensorBoard and the Optuna dashboard on this machine's loopback, until stopped"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", metavar="STUDY", nargs="?", help="a YAML file, or its name under sweeps/; without it "
                        "TensorBoard shows all of --root")
    parser.add_argument("--root", default="runs", help="the folder that holds the studies' folders [%(default)s]")


def run(arguments: argparse.Namespace) -> int:
    """Serve until told to stop."""
    from diffusion_lm.errors import UserError
    from sweeps.cluster import serve
    from sweeps.commands.base import study_folder
    from sweeps.records import storage

    if arguments.study is None:
        if not Path(arguments.root).is_dir():
            raise UserError(f"--root: {arguments.root}: no such folder; name the folder that holds the runs")
        return serve.run([serve.tensorboard(Path(arguments.root))], Path(arguments.root))
    folder = study_folder(arguments)
    folder.require()
    pages = [serve.tensorboard(folder.path), serve.optuna(storage.address(folder), folder.path / "artifacts")]
    return serve.run(pages, folder.path)
