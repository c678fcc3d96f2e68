"""Drawing text from a model: tokens by the experiment's sampler, decoded by its tokenizer."""

import torch

from diffusion_lm.config import build
from diffusion_lm.data.tokenizers.base import load_tokenizer
from diffusion_lm.errors import UserError
from diffusion_lm.experiment import ExperimentConfig
from diffusion_lm.model import DenoisingModel
from diffusion_lm.random import Noise
from diffusion_lm.samplers.base import generate
from diffusion_lm.shapes import Given, Tokens


def draw_texts(
    model: DenoisingModel,
    config: ExperimentConfig,
    count: int,
    *,
    seed: int,
    length: int | None = None,
    prompt: str = "",
) -> list[str]:
    """`count` texts of `length` tokens (the training length by default), each beginning with `prompt`.

    Text number i depends on (seed, i) alone, not on `count`. Raises `UserError` when the prompt leaves no room.
    """
    length = length or config.data.length
    tokenizer = load_tokenizer(config.data.tokenizer)
    device = model.given.device
    tokens = given = None
    if prompt and config.sampler.guidance and config.prompt.prompted() == 1:
        raise UserError(
            f"guidance: got {config.sampler.guidance} for a model that was trained with a prompt in every sequence; it "
            "has nothing to compare with: train with prompt.fraction below 1 or prompt.dropout above 0"
        )
    if prompt:
        ids = torch.as_tensor(tokenizer.encode_ordinary(prompt).astype("int64"), device=device)
        if len(ids) >= length:
            raise UserError(
                f"prompt: {len(ids)} tokens leave no room in {length}; give a shorter prompt or a larger length"
            )
        tokens = torch.zeros(count, length, dtype=torch.long, device=device)
        tokens[:, : len(ids)] = ids
        given = (torch.arange(length, device=device) < len(ids)).expand(count, length)
    drawn = draw_tokens(model, config, Noise(seed, torch.arange(count, device=device)), length, tokens, given)
    return [tokenizer.decode(row) for row in drawn.cpu().numpy()]


def draw_tokens(
    model: DenoisingModel,
    config: ExperimentConfig,
    noise: Noise,
    length: int,
    prompt: Tokens | None = None,
    given: Given | None = None,
) -> Tokens:
    """One sequence of tokens per row key of `noise`, by the experiment's sampler. [B, L]"""
    sampler = build(config.sampler, model.process)
    was_training = model.training
    model.eval()
    sample = generate(sampler, model, noise, length, prompt, given)
    model.train(was_training)
    return sample.tokens
