"""convert FORMAT SOURCE --out FOLDER: weights of a run, or that others trained, as a folder of safetensors."""

import argparse
import json
import shlex
import sys
from pathlib import Path

from diffusion_lm.errors import UserError
from diffusion_lm.weights.folder import check_new, write_folder
from diffusion_lm.weights.formats.base import Options, load_format


def run(arguments: argparse.Namespace) -> int:
    """Read, check and write; exit status 0."""
    if arguments.vocabulary is not None and arguments.vocabulary < 1:
        raise UserError(f"vocabulary: got {arguments.vocabulary}, expected at least 1")
    out = Path(arguments.out)
    check_new(out)
    source = Path(arguments.source)
    found = load_format(arguments.format).read(
        source, Options(arguments.overrides, arguments.ema, arguments.vocabulary)
    )
    found.facts.setdefault("source", {"format": arguments.format, "path": str(source)})
    command = shlex.join(["python", "-m", "diffusion_lm", *sys.argv[1:]])
    facts = write_folder(out, found, command)
    if arguments.json:
        print(json.dumps({"out": str(out), **facts}))
        return 0
    print(f"{out}: {facts['parameters']['total']:,} parameters, {facts['weights']} weights of {source}")
    for note in facts["notes"]:
        print(f"  note        {note}")
    return 0
