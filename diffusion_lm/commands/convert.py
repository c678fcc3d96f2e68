"""convert FORMAT SOURCE --out FOLDER: weights of a run, or that others trained, as a folder of safetensors."""

import argparse
import json
import shlex
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
    facts = write_folder(out, found, _command(arguments))
    if arguments.json:
        print(json.dumps({"out": str(out), **facts}))
        return 0
    print(f"{out}: {facts['parameters']['total']:,} parameters, {facts['weights']} weights of {source}")
    for note in facts["notes"]:
        print(f"  note        {note}")
    return 0


def _command(arguments: argparse.Namespace) -> str:
    """What was typed, for the card."""
    words = ["python", "-m", "diffusion_lm", "convert", arguments.format, arguments.source, *arguments.overrides]
    for name in ("out", "ema", "vocabulary"):
        value = getattr(arguments, name)
        words += [] if value is None else [f"--{name}", f"{value:g}" if isinstance(value, float) else str(value)]
    return shlex.join(words)
