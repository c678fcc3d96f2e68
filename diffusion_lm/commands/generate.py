"""generate RUN: text from a trained run."""

import argparse
import json

from diffusion_lm.errors import UserError
from diffusion_lm.evaluation.load import load_run
from diffusion_lm.evaluation.text import draw_texts
from diffusion_lm.experiment import with_overrides


def run(arguments: argparse.Namespace) -> int:
    """Print the texts; exit status 0."""
    if arguments.count < 1 or arguments.length < 0:
        raise UserError(
            f"count {arguments.count} and length {arguments.length}: expected at least 1 text and no negative length"
        )
    loaded = load_run(arguments.run, ema=arguments.ema)
    config = with_overrides(loaded.config, [f"sampler.{text}" for text in arguments.overrides])
    texts = draw_texts(
        loaded.model,
        config,
        arguments.count,
        seed=arguments.seed,
        length=arguments.length or None,
        prompt=arguments.prompt,
    )
    print(
        json.dumps({"run": arguments.run, "step": loaded.step, "seed": arguments.seed, "texts": texts})
        if arguments.json
        else "\n---\n".join(texts)
    )
    return 0
