"""Readouts: what a denoising model's last layer means.

An objective names its readout; it belongs to the trained model. `posterior`: softmax(logits) is a distribution over
tokens. `score`: exp(logits), times a known factor, are the ratios p_t(x with token v at i) / p_t(x) of score entropy.
`vector`: the last layer is x_0_hat itself (DIMBA's literal form).

Processes ask a prediction for what they need: a discrete one for a `posterior`, a Gaussian one for an `estimate`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from diffusion_lm.shapes import Float, Hidden, Logits, State, Tensor, Times


@runtime_checkable
class ReadsScores(Protocol):
    """What a score needs to know of its process."""

    def posterior_of_scores(self, log_scores: Logits, x_t: State, t: Times) -> Logits:
        """ln p(x_0 | x_t without i) up to a constant."""


class Readout(ABC):
    """What a denoising model says."""

    @abstractmethod
    def posterior(self, process: ReadsScores, x_t: State, t: Times) -> "Prediction":
        """As a distribution over tokens. Raises `TypeError` where it is none."""

    @abstractmethod
    def estimate(self, table: Float[Tensor, "V D"]) -> Hidden:
        """As x_0_hat, for token vectors `table`. Raises `TypeError` where it is none."""


@dataclass(frozen=True)
class Prediction(Readout):
    """Unnormalised float32 logits of p(x_0^i | x_t), -inf for the mask id and padded ids. [B, L, V] or rows [R, V]"""

    logits: Float[Tensor, "*n V"]

    def probabilities(self) -> Float[Tensor, "*n V"]:
        """softmax of the logits."""
        return torch.softmax(self.logits, -1)

    def posterior(self, process: ReadsScores, x_t: State, t: Times) -> "Prediction":
        return self

    def estimate(self, table: Float[Tensor, "V D"]) -> Hidden:
        """softmax(logits) @ table, whatever the network's precision."""
        with torch.autocast(table.device.type, enabled=False):
            return self.probabilities()[..., : len(table)] @ table


@dataclass(frozen=True)
class Scores(Readout):
    """ln of the ratios p_t(x with v at i) / p_t(x), over the process's own factor; -inf for the mask and padding."""

    logits: Logits

    def posterior(self, process: ReadsScores, x_t: State, t: Times) -> Prediction:
        return Prediction(process.posterior_of_scores(self.logits, x_t, t))

    def estimate(self, table: Float[Tensor, "V D"]) -> Hidden:
        raise TypeError("readout 'score' has no x_0_hat")


@dataclass(frozen=True)
class Vector(Readout):
    """x_0_hat itself. [B, L, D]"""

    x_0: Hidden

    def posterior(self, process: ReadsScores, x_t: State, t: Times) -> Prediction:
        raise TypeError("readout 'vector' is no distribution over tokens")

    def estimate(self, table: Float[Tensor, "V D"]) -> Hidden:
        return self.x_0


READOUTS: dict[str, type[Readout]] = {"posterior": Prediction, "score": Scores, "vector": Vector}
