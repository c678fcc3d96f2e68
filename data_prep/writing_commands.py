"""The commands that get text and write shards, beside `shard`: their arguments, and the functions they call."""

import argparse
import os
import time
from dataclasses import fields
from functools import partial
from pathlib import Path


def get_vocabulary(options: argparse.Namespace) -> None:
    """Put a tokenizer's vocabulary where it is looked for: from tiktoken's address, a package index, or a file."""
    from data_prep.vocabulary import get_vocabulary as get

    print(get(options.name, options.source, options.to))


def train_tokenizer(options: argparse.Namespace) -> None:
    """Train a byte-level BPE on a text and save it as a tokenizer.json."""
    from data_prep.train_tokenizer import train_tokenizer as train

    print(train(options.source, options.vocab_size, options.out, options.max_bytes))


def tokenize(options: argparse.Namespace) -> None:
    """Turn a large text into shards, part by part, on several processes; the same command goes on where it stopped."""
    from data_prep.plan import TokenizeSettings
    from data_prep.show import summary
    from data_prep.tokenize import tokenize as make

    settings = TokenizeSettings(**{f.name: getattr(options, f.name) for f in fields(TokenizeSettings)})
    start = time.perf_counter()
    say = partial(print, flush=True)
    info = make(settings, processes=options.processes, task=options.task, tasks=options.tasks, say=say,
                on_bad_file=options.on_bad_file)  # fmt: skip
    if info:
        say(summary(info))
    say(f"{time.perf_counter() - start:.1f} s")


def merge(options: argparse.Namespace) -> None:
    """Make one dataset of the parts in a folder, when all are there. `tokenize` does so by itself at its end."""
    from data_prep.merge import merge as make
    from data_prep.show import summary

    print(summary(make(options.folder, options.tokenizer)))


def download(options: argparse.Namespace) -> None:
    """Get DCLM-baseline by global and local shard, or text files from elsewhere; the same command goes on."""
    from data_prep.download import download as get
    from data_prep.origins import GLOBAL_SHARDS, LOCAL_SHARDS, open_origin, parse_numbers, shard_folders
    from diffusion_lm.errors import UserError

    folders = [""]
    if options.global_shard:
        local = parse_numbers("--local-shard", options.local_shard, LOCAL_SHARDS)
        folders = shard_folders(parse_numbers("--global-shard", options.global_shard, GLOBAL_SHARDS), local)
    elif options.origin in ("hub", "commoncrawl") or options.local_shard != "all":
        raise UserError("--global-shard is missing; expected numbers from 1 to 10, or all (some 7 TB in 27,900 files)")
    origin = open_origin(options.origin, options.listing)
    get(origin, folders, options.out, dry_run=options.dry_run, jobs=options.jobs, say=partial(print, flush=True))


def synth(options: argparse.Namespace) -> None:
    """Write shards of sequences whose entropy is known exactly: the floor of every likelihood on them."""
    from data_prep.show import summary
    from data_prep.synth import synth as make
    from diffusion_lm.data.manifest import DATASET_FILE

    sequences, there = {"train": options.train, "val": options.val}, (options.out / DATASET_FILE).exists()
    info = make(options.kind, options.make(options), options.out, seed=options.seed, sequences=sequences)
    if there:
        print(f"{options.out} already holds this dataset; nothing written")
    print(summary(info))


def hidden_markov(options: argparse.Namespace):
    """The source that the options of `synth hmm` describe."""
    from data_prep.sequences import HiddenMarkov

    names = ("states", "symbols", "skew", "length", "seed")
    return HiddenMarkov(**{name: getattr(options, name) for name in names})


def grammar(options: argparse.Namespace):
    """The source that the options of `synth grammar` describe."""
    from data_prep.sequences import Grammar

    names = ("symbols", "rules", "branch", "depth", "skew", "length", "seed")
    return Grammar(**{name: getattr(options, name) for name in names})


def recall(options: argparse.Namespace):
    """The source that the options of `synth recall` describe."""
    from data_prep.sequences import Recall

    return Recall(keys=options.keys, values=options.values, pairs=options.pairs, length=options.length)


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add all of them to the command line."""
    for add in (_add_download, _add_tokenize, _add_merge, _add_get_vocabulary, _add_train_tokenizer, _add_synth):
        add(commands)


def _add_download(commands: argparse._SubParsersAction) -> None:
    get = commands.add_parser("download", help="DCLM-baseline, or text from any URL", description=download.__doc__)
    get.add_argument("--from", dest="origin", default="hub", metavar="hub|commoncrawl|URL",
                     help="the Hugging Face hub (default), or a base that fsspec can read")  # fmt: skip
    get.add_argument("--global-shard", default="", metavar="1,3-5|all", help="of 1 to 10; not needed with a URL")
    get.add_argument("--local-shard", default="all", metavar="0,2-4|all", help="of 0 to 9, default %(default)s")
    get.add_argument("--listing", metavar="URL", help="a file of paths, where the server lists no folders")
    get.add_argument("--out", type=Path, required=True, metavar="DIR")
    get.add_argument("--jobs", type=int, default=4, metavar="N", help="files at a time, default %(default)s")
    get.add_argument("--dry-run", action="store_true", help="print files and bytes, and get nothing")
    get.set_defaults(run=download)


def _add_tokenize(commands: argparse._SubParsersAction) -> None:
    make = commands.add_parser("tokenize", help="a large text into shards, in parallel", description=tokenize.__doc__)
    make.add_argument("--source", dest="sources", action="append", required=True, metavar="PATH",
                      help="a file or folder, as of shard, also .parquet; may be given several times")  # fmt: skip
    make.add_argument("--out", type=Path, required=True, metavar="DIR")
    make.add_argument("--tokenizer", default="gpt2", metavar="NAME|PATH/tokenizer.json", help="default %(default)s")
    make.add_argument("--length", type=int, default=1024, metavar="L", help="tokens per sequence, default %(default)s")
    make.add_argument("--val-fraction", type=float, default=0.001, metavar="F",
                      help="share of documents held out by a hash of their text, default %(default)s")  # fmt: skip
    make.add_argument("--hold-out", action="append", default=[], metavar="PATTERN",
                      help="of paths inside a source: these files make the split holdout; may be repeated")  # fmt: skip
    make.add_argument("--records-per-shard", type=int, default=1024, metavar="N",
                      help="records of 64 sequences per shard, default %(default)s")  # fmt: skip
    make.add_argument("--files-per-part", type=int, default=1, metavar="N",
                      help="input files that are packed together, by one process, default %(default)s")  # fmt: skip
    make.add_argument(
        "--processes", type=int, default=len(os.sched_getaffinity(0)), metavar="N", help="default: one per core"
    )
    make.add_argument("--on-bad-file", choices=("error", "skip"), default="error",
                      help="a cut or damaged one ends the work (default), or is left out, counted, told")  # fmt: skip
    make.add_argument("--task", type=int, default=0, metavar="I", help="which of --tasks this is, from 0")
    make.add_argument("--tasks", type=int, default=1, metavar="N", help="that share the parts, default %(default)s")
    make.set_defaults(run=tokenize)


def _add_merge(commands: argparse._SubParsersAction) -> None:
    make = commands.add_parser("merge", help="the parts of tokenize into one dataset", description=merge.__doc__)
    make.add_argument("folder", type=Path, metavar="DIR")
    make.add_argument("--tokenizer", metavar="NAME|PATH/tokenizer.json", help="default: the one of the parts")
    make.set_defaults(run=merge)


def _add_get_vocabulary(commands: argparse._SubParsersAction) -> None:
    get = commands.add_parser(
        "get-vocabulary", help="put GPT-2's vocabulary where it is looked for", description=get_vocabulary.__doc__
    )
    get.add_argument("name", metavar="gpt2")
    get.add_argument("--from", dest="source", type=Path, metavar="FILE", help="default: tiktoken's address, then pip")
    get.add_argument("--to", type=Path, metavar="FILE", help="default: ~/.cache/diffusion_lm/gpt2.tiktoken")
    get.set_defaults(run=get_vocabulary)


def _add_train_tokenizer(commands: argparse._SubParsersAction) -> None:
    train = commands.add_parser("train-tokenizer", help="a BPE of a text", description=train_tokenizer.__doc__)
    train.add_argument("--source", required=True, metavar="python-docs|PATH", help="as of shard")
    train.add_argument("--vocab-size", type=int, default=50257, metavar="N", help="ids, default %(default)s")
    train.add_argument("--out", type=Path, required=True, metavar="PATH/tokenizer.json")
    train.add_argument("--max-bytes", type=int, default=0, metavar="N", help="of text that is read; 0 = all (default)")
    train.set_defaults(run=train_tokenizer)


# kind: help, the source, its options with their defaults
SYNTHETIC = {
    "hmm": ("a hidden Markov source", hidden_markov, {"states": 16, "symbols": 32, "skew": 1.0}),
    "grammar": ("a grammar of fixed depth", grammar, {"symbols": 16, "rules": 4, "branch": 2, "depth": 5, "skew": 0.0}),
    "recall": ("multi-query associative recall (MQAR)", recall, {"keys": 64, "values": 64, "pairs": 8}),
}


def _add_synth(commands: argparse._SubParsersAction) -> None:
    make = commands.add_parser("synth", help="sequences of known entropy", description=synth.__doc__)
    kinds = make.add_subparsers(required=True, dest="kind", metavar="hmm|grammar|recall")
    for kind, (what, source, own) in SYNTHETIC.items():
        one = kinds.add_parser(kind, help=what, description=source.__doc__)
        one.add_argument("--out", type=Path, required=True, metavar="DIR")
        for name, default in {**own, "length": 128, "seed": 0, "train": 20_000, "val": 1_000}.items():
            one.add_argument(f"--{name}", type=type(default), default=default, metavar="N", help="default %(default)s")
        one.set_defaults(run=synth, make=source)
