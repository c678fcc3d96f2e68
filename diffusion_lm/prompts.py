"""Given positions in training: in a share of the sequences a random part is clean, marked and not scored.

`prefix`: the first n tokens, n uniform over 1..L - 1. `spans`: 1 to 3 spans (at most L - 1), their number uniform; each
starts at any position and has 1 to max(1, (L - 1) // 3) tokens, both uniform, and is cut off at the end; they may
overlap. At least one position is left to predict.

In a share `dropout` of the prompted sequences the prompt is hidden: the sequence is an ordinary one, noised everywhere
at its own level and scored everywhere. So the unconditional network of guidance is the one whose bound is reported, for
every process alike. Hiding by pure noise instead would need a marker of its own: unmarked, random tokens (or vectors)
among positions of a lower noise level are evidence, and learning to distrust them spoils the predictions of ordinary
sequences. An ordinary sequence is what `fraction` below 1 leaves too; `dropout` is for text that always has a prompt.
"""

from dataclasses import dataclass
from typing import Any

import torch

from diffusion_lm.config import choice
from diffusion_lm.random import Noise, Stream
from diffusion_lm.shapes import Float, Given, Tensor

SPANS = 3


@dataclass(kw_only=True, slots=True)
class PromptConfig:
    fraction: float = 0.1
    """Share of training sequences with given positions."""
    kind: str = choice("prefix", "spans")
    """What is given: the beginning, or a few spans anywhere."""
    dropout: float = 0.0
    """Share of these sequences whose prompt is hidden all the same."""
    leak: bool = False
    """In training show a prompt encoder the answer itself, as DIMBA's paper does, and no longer when sampling."""

    def __post_init__(self) -> None:
        for name in ("fraction", "dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 0 to 1")

    def unused(self, experiment: Any) -> dict[str, str]:
        """Keys that say something about prompts, where there are none."""
        if experiment.block_size == 1 and self.fraction:
            return {"prompt": "a block of one token (block_size=1) has nothing that could be given"}
        if self.fraction == 0:
            return dict.fromkeys(("prompt.kind", "prompt.dropout"), "with prompt.fraction 0 no prompt is drawn")
        return {"prompt.kind": "with prompt.dropout 1 every prompt is hidden"} if self.dropout == 1 else {}

    def prompted(self) -> float:
        """Share of the sequences that show a prompt."""
        return self.fraction * (1 - self.dropout)


def draw_given(config: PromptConfig, noise: Noise, length: int) -> Given | None:
    """The given positions of a batch [B, L], or None when the config asks for no prompts."""
    if config.fraction == 0 or length < 2:
        return None
    draw = noise.uniform(Stream.PROMPT, 2)
    prompted = (draw[:, :1] < config.fraction) & (draw[:, 1:] >= config.dropout)
    return prompted & KINDS[config.kind](noise, length)


def _prefix(noise: Noise, length: int) -> Given:
    end = 1 + _below(noise.uniform(Stream.PROMPT_LENGTH, 1), length - 1)
    return torch.arange(length, device=end.device) < end


def _spans(noise: Noise, length: int) -> Given:
    draw = noise.uniform(Stream.PROMPT_LENGTH, 1 + 2 * SPANS)
    count = 1 + _below(draw[:, :1], min(SPANS, length - 1))
    start = _below(draw[:, 1 : 1 + SPANS], length).unsqueeze(-1)
    size = 1 + _below(draw[:, 1 + SPANS :], max(1, (length - 1) // SPANS)).unsqueeze(-1)
    place = torch.arange(length, device=start.device)
    inside = (start <= place) & (place < start + size)  # [B, SPANS, L]
    used = torch.arange(SPANS, device=start.device) < count
    return (inside & used.unsqueeze(-1)).any(1)


def _below(uniform: Float[Tensor, "B n"], end: int) -> Float[Tensor, "B n"]:
    """Whole numbers 0..end - 1."""
    return (uniform * end).floor()


KINDS = {"prefix": _prefix, "spans": _spans}
