"""Drawing text from a model: tokens by the experiment's sampler, decoded by its tokenizer.

A model of blocks always writes in blocks, a next-token model token by token, both by their caches, and both end a text
at its end-of-text token; a model of whole texts draws all tokens at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from diffusion_lm.config import build
from diffusion_lm.data.tokenizers.base import Tokenizer, load_tokenizer
from diffusion_lm.errors import UserError
from diffusion_lm.experiment import ExperimentConfig
from diffusion_lm.generation.blocks import generate_blocks
from diffusion_lm.model import DenoisingModel
from diffusion_lm.random import Noise
from diffusion_lm.samplers.base import Sample, generate
from diffusion_lm.shapes import Given, Tokens


@dataclass(frozen=True)
class Drawn:
    """Texts; per text the tokens that were drawn for it and the network calls that it took; bytes of the cache."""

    texts: list[str]
    tokens: list[int]
    calls: list[int]
    cache_bytes: int


def draw_texts(model: DenoisingModel, config: ExperimentConfig, count: int, *, seed: int) -> list[str]:
    """`count` texts of the training length."""
    return draw(model, config, count, seed=seed).texts


def draw(
    model: DenoisingModel,
    config: ExperimentConfig,
    count: int,
    *,
    seed: int,
    length: int | None = None,
    prompts: Sequence[str] = (),
    block_size: int | None = None,
) -> Drawn:
    """`count` texts of `length` tokens (the training length by default), or as many for each prompt that they begin
    with.

    block_size: of the generation, where it is not the one of the training. Text number i depends on (seed, i) and its
    prompt alone, not on `count`. Raises `UserError` when a prompt leaves no room.
    """
    length = config.data.length if length is None else length
    tokenizer = load_tokenizer(config.data.tokenizer)
    device = model.given.device
    noise = Noise(seed, torch.arange(count * max(1, len(prompts)), device=device))
    prompt = given = None
    if any(prompts):
        _check_guidance(config)
        prompt, given = (v.repeat_interleave(count, 0).to(device) for v in _read(prompts, tokenizer, length))
    end = tokenizer.eot_id
    sample = draw_tokens(model, config, noise, length, prompt, given, block_size=block_size, end=end)
    drawn = torch.full_like(noise.position, length) if sample.lengths is None else sample.lengths
    texts = [tokenizer.decode(row[:n]) for row, n in zip(sample.tokens.cpu().numpy(), drawn.tolist(), strict=True)]
    if given is not None:
        drawn = drawn - given.sum(1)
    return Drawn(texts, drawn.tolist(), sample.calls.tolist(), sample.cache_bytes)


def draw_tokens(
    model: DenoisingModel,
    config: ExperimentConfig,
    noise: Noise,
    length: int,
    prompt: Tokens | None = None,
    given: Given | None = None,
    *,
    block_size: int | None = None,
    end: int | None = None,
) -> Sample:
    """One sequence of tokens per row key of `noise`, by the experiment's sampler. end: see `generate_blocks`; models of
    whole texts do not look at it."""
    sampler = build(config.sampler, model.process)
    size = config.block_size if block_size is None else block_size
    was_training = model.training
    model.eval()
    if model.process.shifted:
        sample = sampler.write(model, noise, length, prompt, given, end)
    elif size:
        sample = generate_blocks(sampler, model, noise, length, size, prompt, given, end)
    else:
        sample = generate(sampler, model, noise, length, prompt, given)
    model.train(was_training)
    return sample


def _check_guidance(config: ExperimentConfig) -> None:
    if config.sampler.guidance and config.prompt.prompted() == 1:
        raise UserError(
            f"guidance: got {config.sampler.guidance} for a model that was trained with a prompt in every sequence; it "
            "has nothing to compare with: train with prompt.fraction below 1 or prompt.dropout above 0"
        )


def _read(prompts: Sequence[str], tokenizer: Tokenizer, length: int) -> tuple[Tokens, Given]:
    """The prompts' tokens at the start of rows of `length`, and where they are. [P, L] each"""
    tokens = torch.zeros(len(prompts), length, dtype=torch.long)
    given = torch.zeros_like(tokens, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids = torch.as_tensor(tokenizer.encode_ordinary(prompt).astype("int64"))
        if len(ids) >= length:
            raise UserError(
                f"prompt: {len(ids)} tokens leave no room in {length}; give a shorter prompt or a larger length"
            )
        tokens[row, : len(ids)], given[row, : len(ids)] = ids, True
    return tokens, given
