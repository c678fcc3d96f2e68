"""Three ways to write text: block by block and token by token from a cache, and the whole text at once.

A cached writer goes on with `stretch` tokens from a cache of any length; that is what is timed, from a copy of a filled
cache that nobody else has gone on from, as in one long text (an attention cache that is gone on from twice is copied).
The whole text at once has no part that could be timed by itself but a step, of which all cost the same.
"""

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import torch

from diffusion_lm.cache import Cache
from diffusion_lm.config import build, config_class
from diffusion_lm.generation.blocks import Rows, generate_blocks
from diffusion_lm.model import DenoisingModel
from diffusion_lm.noisy import Noisy
from diffusion_lm.random import Noise
from diffusion_lm.samplers.base import Guess, Sample, Sampler, SamplerState
from diffusion_lm.samplers.left_to_right import LeftToRight
from diffusion_lm.shapes import Int, Tensor, Times, Tokens

PREFILL = 1024
"""Tokens that an autoregressive model takes in at once while its cache is filled."""


class CachedWriter(ABC):
    """Text that goes on from a cache. What is after some text is a state of its own, with a `cache`."""

    def __init__(self, model: DenoisingModel, stretch: int, sampler: Sampler) -> None:
        self.model, self.stretch, self.sampler = model, stretch, sampler

    @abstractmethod
    def filled(self, tokens: Tokens) -> Any:
        """After that text [B, T], whole stretches of it or nothing."""

    @abstractmethod
    def go_on(self, state: Any) -> Any:
        """`stretch` tokens more, drawn. The state itself stays as it is, its cache's memory is used."""

    @abstractmethod
    def whole(self, rows: int, length: int, device: str) -> Sample:
        """Texts from the first token to the last, as `generate` writes them."""

    @abstractmethod
    def calls(self, length: int) -> int:
        """Calls of the network for a text of that length."""

    def forked(self, state: Any) -> Any:
        """The same with a cache in memory of its own."""
        fork = copy.copy(state)
        fork.cache = copy.deepcopy(state.cache)
        return fork


class BlockWriter(CachedWriter):
    """A block of `stretch` tokens: `steps` denoising steps, and the pass that takes it into the cache."""

    def __init__(self, model: DenoisingModel, stretch: int, steps: int) -> None:
        super().__init__(model, stretch, build(config_class("samplers", "ancestral")(num_steps=steps), model.process))
        self.steps = steps

    def filled(self, tokens: Tokens) -> Rows:
        length = tokens.shape[1] + 2 * self.stretch  # a block comes after the one that is timed, which is taken in
        prompt = torch.nn.functional.pad(tokens, (0, 2 * self.stretch))
        given = torch.arange(length, device=tokens.device).expand_as(prompt) < tokens.shape[1]
        noise = Noise(0, torch.arange(len(tokens), device=tokens.device))
        rows = Rows(self.sampler, self.model, noise, length, self.stretch, None)
        rows.begin(prompt, given)
        return rows

    def go_on(self, state: Rows) -> Rows:
        rows, end = copy.copy(state), state.block + 1
        while bool((rows.block < end).any()):
            rows.advance()
        return rows

    def whole(self, rows: int, length: int, device: str) -> Sample:
        noise = Noise(0, torch.arange(rows, device=device))
        return generate_blocks(self.sampler, self.model, noise, length, self.stretch)

    def calls(self, length: int) -> int:
        return length // self.stretch * (self.steps + 1) - 1  # the last block is not taken in


@dataclass
class Written:
    """cache: of the text so far without its last token (the begin marker, where there is none); last: that one."""

    cache: Cache
    last: Int[Tensor, "B 1"]


class TokenWriter(CachedWriter):
    """`stretch` tokens, one call of a causal model each."""

    def __init__(self, model: DenoisingModel, stretch: int) -> None:
        sampler: LeftToRight = build(config_class("samplers", "left_to_right")(), model.process)
        super().__init__(model, stretch, sampler)

    def filled(self, tokens: Tokens) -> Written:
        begin = tokens.new_full((len(tokens), 1), self.model.process.mask_id)
        inputs, cache = torch.cat((begin, tokens), 1), Cache.empty(len(tokens), tokens.device)
        for part in inputs[:, :-1].split(PREFILL, 1) if tokens.shape[1] else ():
            cache = self.model.advance(part, cache)[1]
        return Written(cache, inputs[:, -1:])

    def go_on(self, state: Written) -> Written:
        cache, last = state.cache, state.last
        noise = Noise(0, torch.arange(len(last), device=last.device))
        for number in range(self.stretch):
            said, cache = self.model.advance(last, cache)
            last = said.draw(noise.at(number))
        return Written(cache, last)

    def whole(self, rows: int, length: int, device: str) -> Sample:
        return self.sampler.write(self.model, Noise(0, torch.arange(rows, device=device)), length)

    def calls(self, length: int) -> int:
        return length


@dataclass
class Stretch:
    """What is timed of a cached writer: the stretch after some text. `ready` comes before, off the clock."""

    writer: CachedWriter
    state: Any
    fork: Any = None

    def ready(self) -> None:
        """A copy to go on from."""
        self.fork = self.writer.forked(self.state)

    def __call__(self, number: int) -> None:
        self.fork = self.writer.go_on(self.fork)


class WholeTextStep:
    """What is timed of the whole text at once: one of its `steps` steps, network and draws."""

    def __init__(self, model: DenoisingModel, rows: int, length: int, steps: int, device: str) -> None:
        self.model, process = model, model.process
        self.sampler: Sampler = build(config_class("samplers", "ancestral")(num_steps=steps), process)
        position = torch.arange(rows, device=device)
        blank, noise = position.new_zeros(rows, length), Noise(0, position)
        x = process.prior(blank, model.table(), noise)
        self.state = SamplerState(x, torch.zeros_like(position), noise, model.table())

    def ready(self) -> None:
        """Nothing is used up."""

    def __call__(self, number: int) -> None:
        self.sampler.step(replace(self.state, index=self.state.index + number), self._predict)

    def _predict(self, now: SamplerState, t: Times) -> Guess:
        return Guess(self.model(Noisy(now.x, self.model.process.noise_level(t))))


Timed = Stretch | WholeTextStep
