"""left_to_right: one token after the other, each from its exact conditional distribution.

`write` goes on from a cache: the prompts in one call of the network, however long each is, which says the first token
of every text; then one token per call. No row waits for another, so that its calls are those of the row alone. The
inherited steps, which `generate` calls, are the same draws from whole sequences without a cache: for models that have
none, like the exact posteriors that samplers are tested with.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from diffusion_lm.cache import Cache
from diffusion_lm.model import DenoisingModel
from diffusion_lm.random import Noise
from diffusion_lm.readouts import Readout
from diffusion_lm.samplers.ancestral import Ancestral
from diffusion_lm.samplers.base import Sample, SamplerState
from diffusion_lm.shapes import Bool, Given, Int, Tensor, Times, Tokens


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
        place = (~free).long().cumprod(1).sum(1)  # of the next token in each row
        active, lengths = place < length, torch.full_like(place, length)
        calls = active.long()
        said, cache = self._begun(model, tokens, place.clamp(max=length - 1))
        while True:
            at = place.clamp(max=length - 1).unsqueeze(1)
            drawing = active.unsqueeze(1) & free.gather(1, at)
            inputs = said.draw(noise.at(place), place).where(drawing, tokens.gather(1, at))
            tokens = tokens.scatter(1, at, inputs)
            if end is not None:
                lengths = place.where((drawing & (inputs == end)).squeeze(1), lengths)
            place = place + active.long()
            active = active & (place < lengths)
            left = int(active.sum())
            if not left:
                break
            said, cache = model.advance(inputs, cache, active if left < rows else None)
            calls = calls + active.long()
        if end is None:
            return Sample(tokens, calls, None, cache.nbytes())
        written = torch.arange(length, device=device) < lengths.unsqueeze(1)
        return Sample(tokens.where(written, end), calls, lengths, cache.nbytes())

    def _begun(self, model: DenoisingModel, tokens: Tokens, known: Int[Tensor, "B"]) -> tuple[Readout, Cache]:
        """What follows the first `known` tokens of each row, and the cache of them and of what begins a text."""
        inputs = nn.functional.pad(tokens[:, : int(known.max())], (1, 0), value=self.process.mask_id)
        return model.read(inputs, known + 1)
