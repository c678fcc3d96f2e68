"""Text into shards: `python -m data_prep COMMAND`. Imports no torch."""

import argparse
import sys
import time
from dataclasses import fields
from pathlib import Path

from data_prep import reading_commands, writing_commands
from diffusion_lm.errors import Parser, RunError, run_command


def shard(options: argparse.Namespace) -> None:
    """Make a dataset folder."""
    from data_prep.build import Settings
    from data_prep.build import shard as make
    from data_prep.show import summary

    start = time.perf_counter()
    info, notes = make(Settings(**{f.name: getattr(options, f.name) for f in fields(Settings)}))
    for note in notes:
        print(note)
    print(summary(info))
    print(f"{time.perf_counter() - start:.1f} s")


def inspect(options: argparse.Namespace) -> None:
    """Print a dataset's facts and some of its windows as text."""
    from data_prep.show import show

    show(options.folder, options.split, options.windows)


def verify(options: argparse.Namespace) -> None:
    """Hash all shards again."""
    from data_prep.verify import verify as check

    print(check(options.folder))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = Parser(prog="python -m data_prep", description=__doc__)
    commands = root.add_subparsers(required=True, metavar="COMMAND")
    writing_commands.add_commands(commands)
    reading_commands.add_commands(commands)

    make = commands.add_parser("shard", help="turn documents into WebDataset shards", description=shard.__doc__)
    make.add_argument("--source", default="python-docs", metavar="python-docs|PATH",
                      help="the documentation this Python carries (default), or a file or folder of "
                           ".txt, .jsonl, .jsonl.gz, .jsonl.zst")  # fmt: skip
    make.add_argument("--out", type=Path, default=Path("shards/python_docs"), metavar="DIR", help="default %(default)s")
    make.add_argument("--tokenizer", default="bytes", metavar="NAME", help="default %(default)s")
    make.add_argument("--length", type=int, default=128, metavar="L", help="tokens per sequence, default %(default)s")
    make.add_argument("--val-fraction", type=float, default=0.05, metavar="F",
                      help="share of the documents held out, by hash of their text, default %(default)s")  # fmt: skip
    make.add_argument("--records-per-shard", type=int, default=1024, metavar="N",
                      help="records of 64 sequences per shard, default %(default)s")  # fmt: skip
    make.set_defaults(run=shard)

    look = commands.add_parser("inspect", help="facts, and some windows as text", description=inspect.__doc__)
    look.add_argument("folder", type=Path, metavar="DIR")
    look.add_argument("--split", default="train", metavar="train|val", help="default %(default)s")
    look.add_argument("--windows", type=int, default=3, metavar="N", help="default %(default)s")
    look.set_defaults(run=inspect)

    check = commands.add_parser("verify", help="hash all shards against the manifest", description=verify.__doc__)
    check.add_argument("folder", type=Path, metavar="DIR")
    check.set_defaults(run=verify)
    return root


def main(argv: list[str]) -> int:
    """Parse and run; see `run_command` for errors. What the operating system refuses, like room, is a `RunError`."""
    options = parser().parse_args(argv)
    try:
        options.run(options)
    except BrokenPipeError:  # of what is printed: `run_command` knows
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise RunError(
            f"{where}{error.strerror or error}; what is whole under its own name stays: see to that, then run the same "
            "command again"
        ) from None
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
