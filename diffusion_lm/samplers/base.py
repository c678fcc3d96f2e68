"""Samplers: one loop, one step per file.

A sampler owns its times; `generate` only calls `step` until every row is done. `predict` is the model, wrapped with
whatever a call needs (given positions, counting). Noise is a pure function of (seed, row key, step), so a row comes out
the same alone or in a batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from diffusion_lm.model import DenoisingModel
from diffusion_lm.noisy import Noisy
from diffusion_lm.processes.base import Process
from diffusion_lm.random import Noise
from diffusion_lm.readouts import Readout
from diffusion_lm.shapes import Float, Given, Int, State, Tensor, Times, Tokens

Predict = Callable[[State, Times], Readout]


@dataclass(frozen=True)
class SamplerState:
    """x: state [B, L] or [B, L, D]. index: next interval of each row's time grid [B]. noise: the rows' keys.

    table: the model's token embeddings [V, D].
    """

    x: State
    index: Int[Tensor, "B"]
    noise: Noise
    table: Float[Tensor, "V D"]


@dataclass(frozen=True)
class Sample:
    """tokens [B, L]; calls: network calls made for every row [B] (NFE)."""

    tokens: Tokens
    calls: Int[Tensor, "B"]


class Sampler(ABC):
    """A rule that takes x_t to x_s."""

    processes: ClassVar[tuple[str, ...]]
    """Names of the processes that it has a meaning for."""

    def __init__(self, config: Any, process: Process) -> None:
        self.config = config
        self.process = process

    @abstractmethod
    def step(self, state: SamplerState, predict: Predict) -> SamplerState:
        """One interval of the time grid for every row."""

    def times(self, state: SamplerState) -> tuple[Times, Times]:
        """The interval's ends t > s of every row, on the uniform grid 1, 1 - 1/T, ..., 0. [B, 1] each"""
        index = state.index.double().unsqueeze(1)
        return 1 - index / self.config.num_steps, 1 - (index + 1) / self.config.num_steps

    def done(self, state: SamplerState) -> bool:
        """Whether all rows have reached t = 0."""
        return bool((state.index >= self.config.num_steps).all())


def check_steps(num_steps: int) -> None:
    """Refuse an empty time grid."""
    if num_steps < 1:
        raise ValueError(f"num_steps: got {num_steps}, expected at least 1")


@torch.no_grad()
def generate(
    sampler: Sampler,
    model: DenoisingModel,
    noise: Noise,
    length: int,
    prompt: Tokens | None = None,
    given: Given | None = None,
) -> Sample:
    """Draw one sequence of `length` tokens per row key of `noise`.

    prompt [B, L] holds the tokens of the given positions `given` [B, L]; they stay as they are.
    """
    process, table = sampler.process, model.table()
    rows, device = len(noise.position), noise.position.device
    blank = torch.zeros(rows, length, dtype=torch.long, device=device)
    clean = process.encode(blank if prompt is None else prompt, table)
    calls = torch.zeros(rows, dtype=torch.long, device=device)

    def keep(x: State) -> State:
        if given is None:
            return x
        return torch.where(given if x.dim() == 2 else given.unsqueeze(-1), clean, x)

    def predict(x: State, t: Times) -> Readout:
        calls.add_(1)
        return model(Noisy(keep(x), process.noise_level(t), given))

    state = SamplerState(process.prior(blank, table, noise), torch.zeros_like(calls), noise, table)
    while not sampler.done(state):
        state = sampler.step(replace(state, x=keep(state.x)), predict)
    x, start = keep(state.x), torch.zeros(rows, 1, dtype=torch.float64, device=device)
    final = noise.at(state.index)
    tokens = x if process.holds_tokens(x) else process.decode(x, predict(x, start), final)
    return Sample(tokens if given is None else torch.where(given, prompt, tokens), calls)
