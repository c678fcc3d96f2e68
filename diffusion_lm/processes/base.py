"""Processes: how text is corrupted, and how a denoiser's prediction undoes it.

A process is a module over a schedule. It encodes tokens as the state x_0 that it corrupts, draws x_t given x_0 (or
given x_s, s < t), names the marginal q(x_t | x_0), and turns a prediction into the distribution of x_s given x_t.
All noise comes in as `Noise`; schedule arithmetic is float64. The embedding belongs to the model and is handed in as
`table` [V, D], which discrete processes do not look at.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import nn

from diffusion_lm.config import name_of
from diffusion_lm.random import Noise
from diffusion_lm.readouts import Readout
from diffusion_lm.schedules.base import NoiseSchedule
from diffusion_lm.shapes import Bool, Float, State, Tensor, Times, Tokens


class Distribution(ABC):
    """A distribution over states, independent over positions."""

    @abstractmethod
    def sample(self, noise: Noise) -> State:
        """One draw for every row."""


class Process(nn.Module, ABC):
    """Corruption of a sequence of tokens in time t in [0, 1]."""

    discrete: ClassVar[bool]
    """Whether the state is a tensor of ids [B, L] (else embedded tokens [B, L, D])."""
    shifted: ClassVar[bool] = False
    """Whether the network's input at position i is token i - 1, as in next-token models; the first is the mask id."""
    bound_objective: ClassVar[str]
    """The objective whose bound is reported for this process when training minimises another loss."""

    def __init__(self, config: Any, schedule: NoiseSchedule, vocabulary: int) -> None:
        super().__init__()
        if self.discrete and schedule.learned:
            raise ValueError(
                f"schedule '{name_of(schedule.config)}' has no meaning for process '{name_of(config)}': it is trained "
                "by the bound of a Gaussian process; take a fixed schedule"
            )
        self.config = config
        self.schedule = schedule
        self.vocabulary = vocabulary

    @property
    @abstractmethod
    def symbols(self) -> int:
        """Ids that a state can hold: the vocabulary, and the mask where there is one."""

    @abstractmethod
    def alpha(self, t: Times) -> Times:
        """alpha_t of this process: its schedule's, inside the range that the process allows."""

    @abstractmethod
    def noise_level(self, t: Times) -> Times:
        """What the network is told about t: 0 clean, 1 noise."""

    @abstractmethod
    def encode(self, tokens: Tokens, table: Float[Tensor, "V D"]) -> State:
        """x_0 of some tokens."""

    @abstractmethod
    def prior(self, like: Tokens, table: Float[Tensor, "V D"], noise: Noise) -> State:
        """A draw of x_1 of the shape of the tokens `like`."""

    @abstractmethod
    def corrupt(self, x: State, t: Times, noise: Noise, s: Times | None = None) -> State:
        """A draw of x_t given x_s; without `s`, given x_0."""

    @abstractmethod
    def marginal(self, x_0: State, t: Times) -> Distribution:
        """q(x_t | x_0)."""

    @abstractmethod
    def reverse(self, x_t: State, prediction: Readout, t: Times, s: Times, table: Float[Tensor, "V D"]) -> Distribution:
        """p(x_s | x_t) that a prediction of x_0 implies, s < t."""

    def idle(self, x_t: State, t: Times, s: Times, noise: Noise) -> Bool[Tensor, "B"]:
        """Rows that a draw of `reverse` with this noise leaves as they are, whatever the prediction says."""
        return torch.zeros(len(x_t), dtype=torch.bool, device=x_t.device)

    @abstractmethod
    def decode(self, x: State, prediction: Readout, noise: Noise) -> Tokens:
        """Tokens of a state at t = 0, given a prediction made there."""

    @abstractmethod
    def holds_tokens(self, x: State, t: Times) -> Bool[Tensor, "B"]:
        """Rows whose state at time t is text already: no step from there changes it, and nothing is to be decoded."""
