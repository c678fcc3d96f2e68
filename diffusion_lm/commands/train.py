"""train EXPERIMENT [key=value ...] [run=DIR]."""

import argparse
import json

from diffusion_lm.experiment import find, load
from diffusion_lm.training.run import Run
from diffusion_lm.training.train import run_folder, train


def run(arguments: argparse.Namespace) -> int:
    """Exit status: 0 finished, 2 bad input, 3 pruned, 75 interrupted and resumable, 130 Ctrl-C and resumable."""
    folders = [text.removeprefix("run=") for text in arguments.overrides if text.startswith("run=")]
    overrides = [text for text in arguments.overrides if not text.startswith("run=")]
    config = load(arguments.experiment, overrides)
    folder = Run(run_folder(config, find(arguments.experiment), folders[-1] if folders else None))
    status = train(config, folder)
    if arguments.json:
        print(json.dumps({"run": str(folder.folder), **(folder.result() or {})}))
    return status
