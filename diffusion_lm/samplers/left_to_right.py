"""left_to_right: one token after the other, each from its exact conditional distribution.

`write` goes on from a cache: the prompt in one call of the network, then one token per call, whatever came before. The
inherited steps, which `generate` calls, are the same draws from whole sequences without a cache: for models that have
none, like the exact posteriors that samplers are tested with.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from diffusion_lm.cache import Cache
from diffusion_lm.model import DenoisingModel
from diffusion_lm.random import Noise
from diffusion_lm.samplers.ancestral import Ancestral
from diffusion_lm.samplers.base import Sample, SamplerState
from diffusion_lm.shapes import Bool, Given, Tensor, Times, Tokens


@dataclass(kw_only=True, slots=True)
class LeftToRightConfig:
    """Nothing to set: the number of steps is the number of tokens, and every call sees the prompt."""

    guidance: ClassVar[float] = 0.0


class LeftToRight(Ancestral):
    """The reverse chain with one position per step."""

    processes = ("left_to_right",)

    def times(self, state: SamplerState) -> tuple[Times, Times]:
        index, length = state.index.double().unsqueeze(1), state.x.shape[1]
        return 1 - index / length, 1 - (index + 1) / length

    def ended(self, state: SamplerState) -> Bool[Tensor, "B"]:
        return state.index >= state.x.shape[1]

    @torch.no_grad()
    def write(
        self,
        model: DenoisingModel,
        noise: Noise,
        length: int,
        prompt: Tokens | None = None,
        given: Given | None = None,
        end: int | None = None,
    ) -> Sample:
        """Draw one text of `length` tokens per row key of `noise`, by the model's cache.

        prompt [B, L] holds the tokens of the given positions `given` [B, L], whose number may differ from row to row.
        end: an id that ends the row that draws it, whatever is given after it; the other rows go on.
        """
        rows, device = len(noise.position), noise.position.device
        tokens = torch.zeros(rows, length, dtype=torch.long, device=device)
        free = torch.ones_like(tokens, dtype=torch.bool) if given is None else ~given
        tokens = tokens if prompt is None else prompt.where(~free, tokens)
        first = int((~free).all(0).cumprod(0).sum())  # tokens that all rows are given, for one call
        inputs = torch.cat((tokens.new_full((rows, 1), self.process.mask_id), tokens[:, :first]), 1)
        cache, calls = Cache.empty(rows, device), torch.zeros_like(noise.position)
        lengths = torch.full_like(calls, length)
        for place in range(first, length):
            said, cache = model.advance(inputs, cache)
            calls += lengths == length
            at = slice(place, place + 1)
            inputs = said.draw(noise.at(place), place).where(free[:, at], tokens[:, at])
            tokens[:, at] = inputs
            if end is not None:
                ended = (inputs == end) & free[:, at] & (lengths == length).unsqueeze(1)
                lengths = lengths.where(~ended.squeeze(1), place)
                if int(lengths.max()) < length:
                    break
        if end is None:
            return Sample(tokens, calls, None, cache.nbytes())
        written = torch.arange(length, device=device) < lengths.unsqueeze(1)
        return Sample(tokens.where(written, end), calls, lengths, cache.nbytes())
