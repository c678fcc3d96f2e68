"""What texts drawn at the end of a training run come to: gen/..., for studies of samplers.

None says alone that text is good: shares of 3-grams are high for a phrase that is repeated, which the entropy shows,
and the entropy is high for noise, which the shares show. Read them together, with `gen/calls` for the price.

* gen/common_3grams: share of the drawn 3-grams that are common in the training text (`ngrams`).
* gen/entropy: of the token frequencies of each text, in nats, averaged over the texts (the measure beside generated
  perplexity in MDLM, SEDD and Duo).
* gen/reference_3grams: of texts that go on from a prompt, the share of their 3-grams that the prompt's own continuation
  has, each counted at most as often as there (BLEU's modified precision for n = 3; Papineni et al., ACL 2002).
* gen/calls: calls of the network per text.
"""

from collections import Counter

import numpy as np
import torch

from diffusion_lm.data.open import open_tokens
from diffusion_lm.evaluation.ngrams import ORDER, ngram_shares
from diffusion_lm.evaluation.text import draw_tokens
from diffusion_lm.experiment import ExperimentConfig
from diffusion_lm.model import DenoisingModel
from diffusion_lm.random import Noise


def generated(model: DenoisingModel, config: ExperimentConfig) -> dict[str, float]:
    """Draw `evaluation.samples` texts of the training length and measure them, without what was given of each.

    The draws depend on the weights and on the experiment's seed alone. A prompt is the beginning of a validation text.
    """
    count, length = config.evaluation.samples, config.data.length
    device = model.given.device
    noise = Noise(config.seed, torch.arange(count, device=device))
    start = int(config.evaluation.prompt * length)
    if not start:
        sample = draw_tokens(model, config, noise, length)
    else:
        texts = torch.as_tensor(_validation_texts(config, count), device=device)
        given = (torch.arange(length, device=device) < start).expand(count, -1)
        sample = draw_tokens(model, config, noise, length, texts, given)
    drawn = sample.tokens.cpu().numpy()[:, start:]
    found = {
        "gen/common_3grams": ngram_shares(drawn, config.data, config.evaluation.seed).samples,
        "gen/entropy": float(np.mean([entropy(row) for row in drawn])),
        "gen/calls": float(sample.calls.double().mean()),
    }
    if start:
        reference = texts.cpu().numpy()[:, start:]
        found["gen/reference_3grams"] = precision(drawn, reference)
    return found


def entropy(tokens: np.ndarray) -> float:
    """Of the frequencies of a text's tokens [L], in nats."""
    _, counts = np.unique(tokens, return_counts=True)
    shares = counts / len(tokens)
    return float(-(shares * np.log(shares)).sum())


def precision(drawn: np.ndarray, reference: np.ndarray) -> float:
    """BLEU's modified 3-gram precision of texts [n, L] against one reference each [n, M]."""
    hits = total = 0
    for row, own in zip(drawn, reference, strict=True):
        found, there = _counts(row), _counts(own)
        hits += (found & there).total()
        total += found.total()
    return hits / total


def _counts(tokens: np.ndarray) -> Counter[tuple[int, ...]]:
    return Counter(zip(*(tokens[k:].tolist() for k in range(ORDER)), strict=False))


def _validation_texts(config: ExperimentConfig, count: int) -> np.ndarray:
    """As many validation texts, from the first on, round again where there are fewer."""
    tokens = open_tokens(config.data, "val")
    return tokens.read(np.arange(count) % len(tokens)).rows.astype(np.int64)
