"""Samplers: one loop, one step per file.

A sampler owns its times; `generate` only calls `step` until every row is done. `predict` is the model, wrapped with
whatever a call needs (given positions, guidance, counting). Noise is a pure function of (seed, row key, step), so a row
comes out the same alone or in a batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from diffusion_lm.errors import UserError
from diffusion_lm.model import DenoisingModel
from diffusion_lm.noisy import Noisy
from diffusion_lm.processes.base import Process
from diffusion_lm.random import Noise
from diffusion_lm.readouts import Readout
from diffusion_lm.shapes import Bool, Float, Given, Hidden, Int, State, Tensor, Times, Tokens


@dataclass(frozen=True)
class SamplerState:
    """x: state [B, L] or [B, L, D]. index: next interval of each row's time grid [B]. noise: the rows' keys.

    table: the model's token embeddings [V, D]. estimates: what each network call of the last step said of x_0, for a
    model that is shown its own estimates; empty at the start and for other models.
    """

    x: State
    index: Int[Tensor, "B"]
    noise: Noise
    table: Float[Tensor, "V D"]
    estimates: tuple[Hidden, ...] = ()


@dataclass(frozen=True)
class Guess:
    """prediction: what a step works with. estimates: what goes into the next `SamplerState`."""

    prediction: Readout
    estimates: tuple[Hidden, ...] = ()


Predict = Callable[[SamplerState, Times], Guess]


@dataclass(frozen=True)
class Sample:
    """tokens [B, L]; calls: network calls made for every row [B] (NFE).

    lengths: tokens of every row before its end of text [B], None where no end was looked for. cache_bytes: what the
    network's cache held at the end, 0 without one.
    """

    tokens: Tokens
    calls: Int[Tensor, "B"]
    lengths: Int[Tensor, "B"] | None = None
    cache_bytes: int = 0


@dataclass(kw_only=True, slots=True)
class SamplerConfig:
    """Fields of every sampler on a grid of times."""

    num_steps: int = 128
    """Intervals of the time grid."""
    guidance: float = 0.0
    """Weight w of guidance by the prompt; 0 is the conditional model. Above 0 a step makes two network calls."""

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps: got {self.num_steps}, expected at least 1")
        if not 0 <= self.guidance < float("inf"):
            raise ValueError(f"guidance: got {self.guidance}, expected 0 or more")


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

    def ahead(self, state: SamplerState) -> SamplerState:
        """Every row at its next interval that can change it. A sampler that can tell saves the network's calls."""
        return state

    def ended(self, state: SamplerState) -> Bool[Tensor, "B"]:
        """Rows that have reached t = 0."""
        return state.index >= self.config.num_steps

    def done(self, state: SamplerState) -> bool:
        """Whether all rows have."""
        return bool(self.ended(state).all())


class Network:
    """The model as `generate` calls it: given positions in their place, calls counted, guided by the prompt.

    Guidance (Ho and Salimans, arXiv 2207.12598, equation 6) is ln p = ln p_free + (1 + w) (ln p_shown - ln p_free),
    normalised, where p_free comes from a second call that sees the prompt as unprompted training rows do: noised to
    the row's level, by a draw of its own at every step, and not marked. So the prompt guides most at high noise.

    What is mixed are the predictions of x_0^i from the other positions, for every process. By Bayes' rule their ratio
    is the likelihood ratio of the prompt for a token at i, so that p stands for the model whose distribution of x_0^i
    is tilted by it, and the process's own reverse step follows. That x_t^i is left out makes no difference: it is a
    factor of both, once in the mixture. (UDLM, arXiv 2412.10193, mixes p(x_s | x_t) itself, which also moves the times
    at which tokens change; mixed scores are rates in Nisonoff et al., arXiv 2406.01572.)
    """

    def __init__(
        self, sampler: Sampler, model: DenoisingModel, noise: Noise, clean: State, given: Given | None
    ) -> None:
        self.process, self.guidance = sampler.process, sampler.config.guidance
        self.model, self.noise, self.clean, self.given = model, noise, clean, given
        self.calls = torch.zeros_like(noise.position)

    def keep(self, x: State) -> State:
        """x with the given positions clean."""
        return self._put(self.clean, x)

    def predict(self, state: SamplerState, t: Times) -> Guess:
        """The guided prediction."""
        shown = self._call(state, 0, self.keep(state.x), t, self.given)
        if not self.guidance:
            return Guess(shown, self._estimates(state, shown))
        hidden = self.process.corrupt(self.clean, t, self.noise.at(state.index))
        free = self._call(state, 1, self._put(hidden, state.x), t, None)
        return Guess(shown.guided(free, self.guidance), self._estimates(state, shown, free))

    def _call(self, state: SamplerState, number: int, x: State, t: Times, given: Given | None) -> Readout:
        self.calls += 1
        estimate = state.estimates[number] if state.estimates else None
        return self.model(Noisy(x, self.process.noise_level(t), given, estimate))

    def _estimates(self, state: SamplerState, *said: Readout) -> tuple[Hidden, ...]:
        """Each call is shown its own: an estimate that knows the prompt would tell the call that must not."""
        if not self.model.self_conditioning:
            return ()
        return tuple(readout.estimate(state.table).to(state.x.dtype) for readout in said)

    def _put(self, prompt: State, x: State) -> State:
        if self.given is None:
            return x
        return torch.where(self.given if x.dim() == 2 else self.given.unsqueeze(-1), prompt, x)


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
    guidance = sampler.config.guidance
    if guidance and given is None:
        raise UserError(f"guidance: got {guidance} and no prompt to be guided by; give one, or leave it 0")
    process, table = sampler.process, model.table()
    rows, device = len(noise.position), noise.position.device
    blank = torch.zeros(rows, length, dtype=torch.long, device=device)
    network = Network(sampler, model, noise, process.encode(blank if prompt is None else prompt, table), given)

    state = SamplerState(process.prior(blank, table, noise), torch.zeros_like(noise.position), noise, table)
    while not sampler.done(state):
        state = sampler.step(replace(state, x=network.keep(state.x)), network.predict)
    state = replace(state, x=network.keep(state.x))
    x, start = state.x, torch.zeros(rows, 1, dtype=torch.float64, device=device)
    if not bool(process.holds_tokens(x, start).all()):
        x = process.decode(x, network.predict(state, start).prediction, noise.at(state.index))
    return Sample(x if given is None else torch.where(given, prompt, x), network.calls)
