"""Given positions in training: in a share of the sequences a random prefix is clean, marked and not scored."""

from dataclasses import dataclass

import torch

from diffusion_lm.random import Noise, Stream
from diffusion_lm.shapes import Given


@dataclass(kw_only=True, slots=True)
class PromptConfig:
    fraction: float = 0.1
    """Share of training sequences with a given prefix; its length is uniform between 1 and L - 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise ValueError(f"fraction: got {self.fraction}, expected 0 to 1")


def draw_given(config: PromptConfig, noise: Noise, length: int) -> Given | None:
    """The given positions of a batch [B, L], or None when the config asks for no prompts."""
    if config.fraction == 0 or length < 2:
        return None
    prompted = noise.uniform(Stream.PROMPT, 1) < config.fraction
    prefix = 1 + (noise.uniform(Stream.PROMPT_LENGTH, 1) * (length - 1)).floor()
    return prompted & (torch.arange(length, device=prefix.device) < prefix)
