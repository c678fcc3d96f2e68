"""evaluate RUN: the likelihood bound in nats per token and bits per byte, with its standard error."""

import argparse
import json
from dataclasses import asdict

import torch

from diffusion_lm.config import name_of
from diffusion_lm.errors import UserError
from diffusion_lm.evaluation.likelihood import evaluate
from diffusion_lm.evaluation.load import load_run
from diffusion_lm.evaluation.ngrams import COMMON, ngram_shares
from diffusion_lm.evaluation.text import draw_tokens
from diffusion_lm.random import Noise


def run(arguments: argparse.Namespace) -> int:
    """Print the bound; exit status 0."""
    if arguments.samples < 0:
        raise UserError(f"samples: got {arguments.samples}, expected 0 or more")
    loaded = load_run(arguments.run)
    draws = loaded.config.evaluation.draws if arguments.draws is None else arguments.draws
    found = evaluate(loaded, draws, arguments.sequences)
    facts = {
        "run": arguments.run,
        "step": loaded.step,
        "process": name_of(loaded.config.process),
        **found.metrics,
        "terms": found.terms,
        "cross_entropy_by_noise_level": found.by_noise_level,
        "sequences": found.sequences,
        "tokens": found.tokens,
        "draws": found.draws,
        "seed": loaded.config.evaluation.seed,
        "precision": "float32",
        "unigram_entropy": loaded.info.unigram_entropy,
        "corpus": loaded.info.corpus_hash,
    }
    if arguments.samples:
        noise = Noise(loaded.config.evaluation.seed, torch.arange(arguments.samples, device=loaded.device))
        drawn = draw_tokens(loaded.model, loaded.config, noise, loaded.config.data.length)
        shares = ngram_shares(drawn.cpu().numpy(), loaded.config.data, loaded.config.evaluation.seed)
        facts["common_3grams"] = asdict(shares)
    if arguments.json:
        print(json.dumps(facts))
        return 0
    print(
        f"{arguments.run} at step {loaded.step}, {facts['process']} process, {found.sequences} sequences of "
        f"{loaded.config.data.length} tokens, {draws} noise levels each, float32"
    )
    print(
        f"  bound       {found.metrics['val/nll']:.4f} ± {found.metrics['val/nll_se']:.4f} nats per token "
        f"(perplexity at most {found.metrics['val/ppl_bound']:.2f}, {found.metrics['val/bpb']:.4f} bits per byte)"
    )
    for name, value in found.terms.items():
        print(f"    {name:<16}{value:.4f}")
    print(f"  unigram     {loaded.info.unigram_entropy:.4f} nats per token, the entropy of the corpus's tokens")
    print(f"  corpus      {loaded.info.name} {loaded.info.corpus_hash[:12]}")
    print(
        "  nats per predicted token by noise level: "
        + "  ".join(f"{level} {value:.2f}" for level, value in found.by_noise_level.items())
    )
    if arguments.samples:
        print(
            f"  3-grams of {arguments.samples} samples that occur at least {COMMON} times in the training text: "
            f"{shares.samples:.1%} (a unigram sampler's {shares.unigram_sampler:.1%}, "
            f"validation text's {shares.validation_text:.1%})"
        )
    return 0
