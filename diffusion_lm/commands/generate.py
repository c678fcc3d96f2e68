"""generate RUN: text from a trained run."""

import argparse
import json
import sys

from diffusion_lm.errors import UserError
from diffusion_lm.evaluation.load import LoadedRun, load_run
from diffusion_lm.evaluation.text import Drawn, draw
from diffusion_lm.experiment import with_overrides
from diffusion_lm.kind import EXACT, cache_caution


def run(arguments: argparse.Namespace) -> int:
    """Print the texts; exit status 0. What is said of the cache goes to standard error."""
    if arguments.block_size is not None:
        arguments.block_size = _number(arguments.block_size)
    for name in ("count", "length", "block_size"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise UserError(f"{name}: got {getattr(arguments, name)}, expected at least 1")
    loaded = load_run(arguments.run, ema=arguments.ema)
    config = with_overrides(loaded.config, [f"sampler.{text}" for text in arguments.overrides])
    if arguments.block_size is not None:
        _check_block_size(loaded, arguments.block_size)
    cache = config.denoiser.cache() if config.block_size else EXACT
    if caution := cache_caution(cache):
        print(caution, file=sys.stderr)
    drawn = draw(
        loaded.model,
        config,
        arguments.count,
        seed=arguments.seed,
        length=arguments.length,
        prompts=arguments.prompt,
        block_size=arguments.block_size,
    )
    print(_costs(drawn), file=sys.stderr)
    facts = {"run": arguments.run, "step": loaded.step, "seed": arguments.seed, "texts": drawn.texts}
    costs = {
        "tokens": drawn.tokens,
        "calls": drawn.calls,
        "tokens_per_call": _tokens_per_call(drawn),
        "cache_bytes": drawn.cache_bytes,
        **({"cache": cache} if drawn.cache_bytes else {}),
    }
    print(json.dumps({**facts, **costs}) if arguments.json else "\n---\n".join(drawn.texts))
    return 0


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UserError(
            f"block_size: got '{text}', expected the tokens of a block (a whole number, like 16); leave it out for the "
            "run's own"
        ) from None


def _check_block_size(run: LoadedRun, size: int) -> None:
    """Refuse blocks where there are none; say that they are not those of the training."""
    trained = run.config.block_size
    if run.model.process.shifted:
        raise UserError(
            f"block_size: got {size}, but {run.folder} is autoregressive and writes token by token; leave it out"
        )
    if not trained:
        raise UserError(
            f"block_size: got {size}, but {run.folder} was trained on whole texts and has never seen a noisy block "
            f"beside the clean ones before it; leave it out, or train a run with block_size={size}"
        )
    if size != trained:
        print(f"block_size: {size}, the run was trained with {trained}", file=sys.stderr)


def _costs(drawn: Drawn) -> str:
    cache = f"cache: {drawn.cache_bytes:,} bytes at the end, " if drawn.cache_bytes else "no cache: "
    return (
        f"{cache}{len(drawn.texts)} texts; {sum(drawn.tokens):,} tokens in {sum(drawn.calls):,} calls of the network, "
        f"{_tokens_per_call(drawn):.2f} per call"
    )


def _tokens_per_call(drawn: Drawn) -> float:
    return sum(drawn.tokens) / max(1, sum(drawn.calls))
