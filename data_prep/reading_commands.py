"""The commands that look at shards, beside `inspect` and `verify`: their arguments, and the functions they call."""

import argparse
from dataclasses import fields
from pathlib import Path


def index(options: argparse.Namespace) -> None:
    """Index DCLM's tokenised shards, so that they can be trained on as they are: all of them are read and checked."""
    from data_prep.index import IndexSettings
    from data_prep.index import index as make
    from data_prep.show import summary

    info, notes = make(IndexSettings(**{f.name: getattr(options, f.name) for f in fields(IndexSettings)}))
    for note in notes:
        print(note)
    print(summary(info))


def trace(options: argparse.Namespace) -> None:
    """Print which sequences, with their documents, a step of a run saw."""
    from data_prep.trace import trace as show

    show(options.run_folder, options.step, options.characters)


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add all of them to the command line."""
    for add in (_add_index, _add_trace):
        add(commands)


def _add_index(commands: argparse._SubParsersAction) -> None:
    make = commands.add_parser("index", help="make DCLM's tokenised shards readable", description=index.__doc__)
    make.add_argument("folder", type=Path, metavar="DIR", help="with shard_00000000.tar or 00000001.tar and so on")
    make.add_argument("--out", type=Path, metavar="DIR", help="where the index goes, default: beside the shards")
    make.add_argument("--tokenizer", required=True, metavar="NAME", help="that made the ids")
    make.add_argument("--eot-id", type=int, default=0, metavar="ID", help="that ends a document, default %(default)s")
    make.add_argument("--pad-id", type=int, required=True, metavar="ID",
                      help="written where a file's text ended: NeoX 50256, GPT-2 50259, Llama-3 128258")  # fmt: skip
    make.add_argument("--vocab-size", type=int, required=True, metavar="N", help="ids from N on are refused")
    make.add_argument("--context", type=int, default=2049, metavar="N", help="ids per member, default %(default)s")
    make.add_argument("--length", type=int, default=1024, metavar="L", help="of a sequence, default %(default)s")
    make.add_argument("--val-shards", type=int, default=1, metavar="N",
                      help="shards held out, the last by name, default %(default)s")  # fmt: skip
    make.add_argument("--processes", type=int, default=1, metavar="N", help="default %(default)s")
    make.add_argument("--repair", action="store_true", help="leave out what is damaged, count what is there")
    make.set_defaults(run=index)


def _add_trace(commands: argparse._SubParsersAction) -> None:
    show = commands.add_parser("trace", help="what a step of a run saw", description=trace.__doc__)
    show.add_argument("run_folder", type=Path, metavar="RUN")
    show.add_argument("--step", type=int, required=True, metavar="K", help="counted from 1, as checkpoints count them")
    show.add_argument("--characters", type=int, default=60, metavar="N", help="of each document, default %(default)s")
    show.set_defaults(run=trace)
