"""The command line: python -m diffusion_lm train | evaluate | generate | describe | convert | benchmark."""

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from diffusion_lm.errors import Parser, run_command

EMA = "which averaged weights: one of training.ema_decays, or 0 for the live ones (training.ema_decay by default)"

FORMATS = sorted(p.stem for p in (Path(__file__).parent / "weights" / "formats").glob("[a-z]*.py") if p.stem != "base")
FOREIGN = (
    "what a foreign file does not say: data.tokenizer=, data.path= (shards to evaluate on), data.length=, "
    "denoiser.conditioning.time_conditioning="
)


Commands = Any  # argparse._SubParsersAction: argparse has no public name for it


def parser() -> argparse.ArgumentParser:
    """The commands and their arguments; nothing heavy is imported for --help."""
    root = Parser(prog="python -m diffusion_lm", description=__doc__)
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (_train, _evaluate, _generate, _describe, _convert, _benchmark):
        for one in command(commands):
            one.add_argument("--json", action="store_true", help="print one JSON object for programs")
    return root


def _train(commands: Commands) -> list[argparse.ArgumentParser]:
    train = commands.add_parser(
        "train",
        help="train an experiment, or go on with a run",
        description="Train EXPERIMENT (a YAML file, a name under experiments/, or RUN/config.yaml). "
        "run=DIR names the run folder; other key=value pairs override the config.",
    )
    train.add_argument("experiment")
    train.add_argument("overrides", nargs="*", default=[], metavar="key=value")
    return [train]


def _evaluate(commands: Commands) -> list[argparse.ArgumentParser]:
    evaluate = commands.add_parser("evaluate", help="the likelihood bound of a run, with its standard error")
    evaluate.add_argument("run", help="a run folder")
    evaluate.add_argument("run_b", nargs="?", metavar="RUN_B", help="another, to compare with sequence by sequence")
    evaluate.add_argument(
        "--data", help="a folder of shards, text files, or a named text set (the run's validation split by default)"
    )
    evaluate.add_argument("--protocol", help="how text is cut into sequences (whole-corpus)")
    evaluate.add_argument("--split", default="val", help="of shards: val, or holdout where whole files were held out")
    evaluate.add_argument("--precision", default="float32", help="float32 or float64")
    evaluate.add_argument("--ema", type=float, metavar="DECAY", help=EMA)
    evaluate.add_argument("--seed", type=int, help="of the noise (the run's own by default)")
    evaluate.add_argument("--out", help="folder of the results (RUN/evaluation/NAME by default)")
    evaluate.add_argument("--draws", type=int, help="stratified noise levels per sequence (the run's own by default)")
    evaluate.add_argument(
        "--samples",
        type=int,
        default=0,
        help="also draw that many texts and count their common 3-grams",
    )
    evaluate.add_argument(
        "--sequences", type=int, default=0, help="sequences at most; 0 is the run's own number, or all"
    )
    return [evaluate]


def _generate(commands: Commands) -> list[argparse.ArgumentParser]:
    generate = commands.add_parser("generate", help="draw text from a run")
    generate.add_argument("run", help="a run folder")
    generate.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="of the sampler: num_steps=64, name=ddim, ..."
    )
    generate.add_argument("--count", type=int, default=1, help="number of texts")
    generate.add_argument("--length", type=int, help="tokens per text (the training length by default)")
    generate.add_argument(
        "--prompt", action="append", default=[], help="what texts begin with; several: --count texts of each"
    )
    generate.add_argument("--block-size", metavar="B", help="tokens of a block (the run's own by default)")
    generate.add_argument("--seed", type=int, default=0)
    generate.add_argument("--ema", type=float, metavar="DECAY", help=EMA)
    return [generate]


def _describe(commands: Commands) -> list[argparse.ArgumentParser]:
    describe = commands.add_parser(
        "describe", help="parts, parameters, FLOPs per token and tokens planned of an experiment"
    )
    describe.add_argument("experiment")
    describe.add_argument("overrides", nargs="*", default=[], metavar="key=value")
    describe.add_argument(
        "--match",
        metavar="SIZE",
        help="size the denoiser: 240M, 0.5B, ... parameters without embeddings and head. "
        "A hybrid comes in whole groups of blocks: one below about 12M needs shorter ones than the usual six "
        "(denoiser.attention_every=2 at 7M, 1 at 1M)",
    )
    describe.add_argument(
        "--match-by",
        choices=("parameters", "flops"),
        default="parameters",
        help="what arms have in common; flops: those of the first arm, which has the size",
    )
    describe.add_argument("--arms", metavar="NAME,...", help="denoisers to size side by side (the experiment's own)")
    describe.add_argument("--d-model", type=int, default=0, help="of all arms, instead of the rule's")
    return [describe]


def _convert(commands: Commands) -> list[argparse.ArgumentParser]:
    convert = commands.add_parser(
        "convert",
        help="weights of a run, or that others trained, as a folder of safetensors",
        description="Write the weights in SOURCE as a folder with model.safetensors, the experiment, the facts and a "
        "model card. evaluate, generate and describe take that folder where they take a run.",
    )
    convert.add_argument("format", metavar="FORMAT", help=f"what SOURCE is: {' | '.join(FORMATS)}")
    convert.add_argument("source", metavar="SOURCE", help="a run folder, a checkpoint, or a Hugging Face folder")
    convert.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=FOREIGN)
    convert.add_argument("--out", required=True, metavar="FOLDER", help="the new folder")
    convert.add_argument("--ema", type=float, metavar="DECAY", help="which averaged weights; 0 for the live ones")
    convert.add_argument(
        "--vocabulary", type=int, metavar="IDS", help="ids of the tokenizer, where this project does not have it"
    )
    return [convert]


def _numbers(thing: argparse.ArgumentParser, *names: str) -> None:
    """Options that are whole numbers; those that are not given are as the thing's config has them."""
    for name in names:
        thing.add_argument(f"--{name.replace('_', '-')}", type=int, default=argparse.SUPPRESS)


def _benchmark(commands: Commands) -> list[argparse.ArgumentParser]:
    benchmark = commands.add_parser("benchmark", help="speed and memory of a part, its variants side by side")
    things = benchmark.add_subparsers(dest="thing", required=True, metavar="THING")
    head = things.add_parser("head", help="a training step with the head on the scored rows, against all rows")
    _numbers(head, "layers", "d_model", "batch", "length", "vocabulary", "repeats", "threads")
    denoiser = things.add_parser("denoiser", help="time per token by length, of denoisers with equally many parameters")
    denoiser.add_argument("--denoisers", nargs="+", default=argparse.SUPPRESS, metavar="NAME")
    denoiser.add_argument("--lengths", nargs="+", type=int, default=argparse.SUPPRESS, metavar="L")
    _numbers(denoiser, "attention_limit", "layers", "d_model", "tokens", "repeats", "threads")
    denoiser.add_argument("--mode", choices=("forward", "training"), default=argparse.SUPPRESS)
    denoiser.add_argument("--clock", choices=("wall", "processor"), default=argparse.SUPPRESS)
    denoiser.add_argument("--out", default="runs/benchmark/denoiser", metavar="DIR", help="default %(default)s")
    scan = things.add_parser("scan", help="the state-space scan against mamba-ssm's, and a layer both ways")
    _numbers(scan, "batch", "length", "heads", "head_dim", "d_state", "n_groups", "chunk_size", "repeats", "threads")
    scan.add_argument("--kernel", choices=("torch", "mamba_ssm"), default=argparse.SUPPRESS)
    scan.add_argument("--device", choices=("cpu", "cuda"), default=argparse.SUPPRESS)
    generation = things.add_parser("generation", help="time per generated token by length: blocks, whole texts, tokens")
    blocks = things.add_parser("blocks", help="a training step in blocks over one of whole texts")
    for thing in (generation, blocks):
        thing.add_argument("--denoisers", nargs="+", default=argparse.SUPPRESS, metavar="NAME")
    generation.add_argument("--autoregressive", nargs="*", default=argparse.SUPPRESS, metavar="NAME")
    generation.add_argument("--lengths", nargs="+", type=int, default=argparse.SUPPRESS, metavar="L")
    _numbers(generation, "block_size", "steps", "full_limit", "whole_limit", "full_repeats", "rows")
    _numbers(generation, "layers", "d_model", "vocabulary")
    blocks.add_argument("--block-sizes", nargs="+", type=int, default=argparse.SUPPRESS, metavar="S")
    _numbers(blocks, "length", "batch", "layers", "d_model", "vocabulary")
    for name, thing in (("generation", generation), ("blocks", blocks)):
        _numbers(thing, "repeats", "threads")
        thing.add_argument("--clock", choices=("wall", "processor"), default=argparse.SUPPRESS)
        thing.add_argument("--out", default=f"runs/benchmark/{name}", metavar="DIR", help="default %(default)s")
    for thing in (head, denoiser, generation, blocks):
        thing.add_argument("--precision", choices=("float32", "bfloat16"), default=argparse.SUPPRESS)
        thing.add_argument("--device", choices=("cpu", "cuda"), default=argparse.SUPPRESS)
    data = things.add_parser("data", help="reading shards, beside webdataset")
    _numbers(data, "sequences", "length", "batch", "repeats")
    data.add_argument("--clock", choices=("processor", "wall"), default=argparse.SUPPRESS)
    tokenization = things.add_parser("tokenization", help="text to shards by several processes and by one")
    _numbers(tokenization, "megabytes", "files", "processes", "vocabulary", "repeats")
    return [head, denoiser, scan, generation, blocks, data, tokenization]


def main(argv: list[str]) -> int:
    """Parse and run one command; returns the exit status."""
    root = parser()
    arguments, more = root.parse_known_args(argv)
    if any(text.startswith("-") for text in more) or (more and "overrides" not in arguments):
        root.error(f"unrecognized arguments: {' '.join(more)}")
    if more:  # argparse takes positional arguments in one go; here key=value may also follow an option
        arguments.overrides += more
    # OpenMP threads that wait sleep, not spin: on cores shared with other jobs spinning made a step 3 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return import_module(f"diffusion_lm.commands.{arguments.command}").run(arguments)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
