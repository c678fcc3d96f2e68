"""`python -m data_prep trace RUN --step K`: which sequences an optimiser step saw, where they lie, and their text."""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np

from diffusion_lm.data import batches
from diffusion_lm.data.info import TokenDataConfig
from diffusion_lm.data.open import open_order, open_tokens
from diffusion_lm.data.segments import segments
from diffusion_lm.data.tokenizers.base import Tokenizer, load_tokenizer
from diffusion_lm.errors import UserError

CONFIG = "config.yaml"
RESULT = "result.json"


def trace(run: Path, step: int, characters: int) -> None:
    """Print a line per sequence and one per document in it. Step K is the K-th, the one after which logs and
    checkpoints say K. It follows from the run's config and its changes of batch size. Raises `UserError`."""
    if step < 1 or characters < 1:
        raise UserError(f"--step {step}, --characters {characters}: both must be 1 or more")
    config, seed, batch, steps = _read(run)
    if step > steps:
        raise UserError(f"--step {step}: {run} is a run of {steps} steps; expected 1 to {steps}")
    reached = _reached(run)
    tokens = open_tokens(config, "train")
    if not len(tokens):
        raise UserError(f"{tokens.info.path}: no train sequences")
    positions = np.array(batches.positions(batches.read(run, batch), step))
    indices = open_order(config, tokens, seed).indices_at(positions)
    tokenizer = load_tokenizer(config.tokenizer)
    found = tokens.read(indices)
    sees = "saw" if reached is None or step <= reached else f"(not reached: the run ended at {reached}) would see"
    print(
        f"{run}: step {step} {sees} positions {positions[0]} to {positions[-1]}, epoch {positions[0] // len(tokens)}, "
        f"of {len(tokens):,} sequences; corpus {tokens.info.corpus_hash[:12]}"
    )
    for position, index, row in zip(positions.tolist(), indices.tolist(), found.rows):
        left_out = ", damaged: the next whole one was taken" if index in found.skipped else ""
        print(f"\nposition {position}: sequence {index} ({tokens.place(index)}){left_out}")
        for head in document_heads(row, tokenizer, characters):
            print(f"  {head}")


def document_heads(row: np.ndarray, tokenizer: Tokenizer, characters: int) -> list[str]:
    """The pieces of documents in a window `row` [L]: how many tokens each has, and how it begins."""
    numbers = segments(row[None], tokenizer.eot_id)[0]
    heads = []
    for number in range(1, int(numbers.max()) + 1):
        piece = row[numbers == number]
        text = tokenizer.decode(piece[: 8 * characters])
        heads.append(f"{len(piece):5} tokens  {text[:characters]!r}")
    return heads


def _reached(run: Path) -> int | None:
    """The step at which the run ended, where it says so."""
    try:
        return int(json.loads((run / RESULT).read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read(run: Path) -> tuple[TokenDataConfig, int, int, int]:
    """The run's data, seed, sequences per step and steps, without building its model."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    path = run / CONFIG
    if not path.is_file():
        raise UserError(f"{run}: no {CONFIG} in it; expected the folder of a run, like runs/NAME")
    try:
        tree = OmegaConf.to_container(OmegaConf.load(path))
        known = {f.name for f in fields(TokenDataConfig)}
        config = TokenDataConfig(**{name: value for name, value in tree["data"].items() if name in known})
        return config, int(tree["seed"]), int(tree["training"]["batch_size"]), int(tree["training"]["steps"])
    except (OmegaConfBaseException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not the config of a run ({error!r}); give the folder that `train` made") from None
