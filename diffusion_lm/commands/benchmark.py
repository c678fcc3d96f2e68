"""benchmark THING: speed and memory of one thing, its variants side by side. A thing is a file of `benchmark/`."""

import argparse
import json
from dataclasses import fields
from importlib import import_module
from pathlib import Path

from diffusion_lm.config import config_class
from diffusion_lm.errors import UserError
from diffusion_lm.training.result import git_commit


def run(arguments: argparse.Namespace) -> int:
    """Print the table; exit status 0."""
    thing = import_module(f"diffusion_lm.benchmark.{arguments.thing}")
    settings = config_class("benchmark", arguments.thing)
    given = {f.name: getattr(arguments, f.name) for f in fields(settings) if f.name in arguments}
    try:
        config = settings(**given)
    except ValueError as error:
        raise UserError(f"benchmark {arguments.thing}: {error}") from None
    found = {**thing.measure(config), "git": git_commit()}
    if "out" in arguments:
        thing.write(found, Path(arguments.out))
    print(json.dumps(found) if arguments.json else thing.table(found))
    return 0
