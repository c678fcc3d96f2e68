"""train EXPERIMENT [key=value ...] [run=DIR]."""

import argparse
import json
import sys
from contextlib import nullcontext, redirect_stdout

from diffusion_lm.errors import UserError
from diffusion_lm.experiment import EXPORTED, find, load
from diffusion_lm.training.failure import refused_once
from diffusion_lm.training.run import Run
from diffusion_lm.training.train import run_folder, train
from diffusion_lm.weights.folder import is_export


def run(arguments: argparse.Namespace) -> int:
    """Exit status: 0 finished, 2 bad input, 3 pruned, 75 interrupted and resumable, 130 Ctrl-C and resumable."""
    folders = [text.removeprefix("run=") for text in arguments.overrides if text.startswith("run=")]
    overrides = [text for text in arguments.overrides if not text.startswith("run=")]
    if "" in folders:
        raise UserError("run=: got nothing, expected a folder, like run=runs/NAME")
    if is_export(arguments.experiment):
        raise UserError(
            f"{arguments.experiment}: got a folder of weights, expected an experiment; "
            f"training.from_pretrained={arguments.experiment} starts one from these weights, and "
            f"{arguments.experiment}/{EXPORTED} is the one that they are of"
        )
    with refused_once():
        config = load(arguments.experiment, overrides)
    folder = Run(run_folder(config, find(arguments.experiment), folders[-1] if folders else None))
    with redirect_stdout(sys.stderr) if arguments.json else nullcontext():
        status = train(config, folder)
    if arguments.json:
        print(json.dumps({"run": str(folder.folder), **(folder.result() or {})}))
    return status
