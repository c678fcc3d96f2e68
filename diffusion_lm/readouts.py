"""Readouts: what a denoising model's last layer means.

An objective names its readout; it belongs to the trained model. `posterior`: softmax(logits) is a distribution over
tokens. `score`: exp(logits), times a known factor, are the ratios p_t(x with token v at i) / p_t(x) of score entropy.
`vector`: the last layer is x_0_hat itself (DIMBA's literal form).

Processes ask a prediction for what they need: a discrete one for a `posterior`, a Gaussian one for an `estimate`, and
for the tokens at the end.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, runtime_checkable

import torch

from diffusion_lm.precision import wide
from diffusion_lm.random import Noise, Stream, categorical
from diffusion_lm.shapes import Float, Hidden, Int, Logits, State, Tensor, Times, Tokens


@runtime_checkable
class ReadsScores(Protocol):
    """What a score needs to know of its process."""

    def posterior_of_scores(self, log_scores: Logits, x_t: State, t: Times) -> Logits:
        """ln p(x_0 | x_t without i) up to a constant."""


class Readout(ABC):
    """What a denoising model says."""

    over_tokens: ClassVar[bool] = True
    """Whether the last layer has an output per token (else one per dimension of the token vectors)."""
    normalised: ClassVar[bool] = True
    """Whether exp(output) is taken over its sum to be a distribution (else it counts by itself)."""

    @abstractmethod
    def posterior(self, process: ReadsScores, x_t: State, t: Times) -> "Prediction":
        """As a distribution over tokens. Raises `TypeError` where it is none."""

    @abstractmethod
    def estimate(self, table: Float[Tensor, "V D"]) -> Hidden:
        """As x_0_hat, for token vectors `table`. Raises `TypeError` where it is none."""

    def draw(self, noise: Noise) -> Tokens:
        """A token for every position. Raises `TypeError` where nothing says which."""
        raise TypeError(f"{type(self).__name__.lower()} says nothing of tokens without its process")

    @abstractmethod
    def guided(self, free: "Readout", weight: float) -> "Readout":
        """What a condition says, more of it: free + (1 + weight) (self - free), `free` being said without it.

        In log space for probabilities and scores (Ho and Salimans, arXiv 2207.12598, equation 6).
        """


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

    def draw(self, noise: Noise, first: int | Int[Tensor, "B"] = 0) -> Tokens:
        """From softmax(logits), with one float64 uniform for every position; `first`: the first one's place in the row,
        or in each.
        """
        probabilities = torch.softmax(self.logits.to(torch.float64), -1)
        return categorical(probabilities, noise.stretch(Stream.TOKEN, first, probabilities.shape[1]))

    def guided(self, free: "Prediction", weight: float) -> "Prediction":
        shown, other = (torch.log_softmax(said.logits, -1) for said in (self, free))
        return Prediction(_further(shown, other, weight))


@dataclass(frozen=True)
class Scores(Readout):
    """ln of the ratios p_t(x with v at i) / p_t(x), over the process's own factor; -inf for the mask and padding."""

    logits: Logits

    normalised = False

    def posterior(self, process: ReadsScores, x_t: State, t: Times) -> Prediction:
        return Prediction(process.posterior_of_scores(self.logits, x_t, t))

    def estimate(self, table: Float[Tensor, "V D"]) -> Hidden:
        raise TypeError("readout 'score' has no x_0_hat")

    def guided(self, free: "Scores", weight: float) -> "Scores":
        return Scores(_further(self.logits, free.logits, weight))


@dataclass(frozen=True)
class Vector(Readout):
    """x_0_hat itself, and the token vectors that it is rounded to."""

    x_0: Hidden
    table: Float[Tensor, "V D"]

    over_tokens = False

    def posterior(self, process: ReadsScores, x_t: State, t: Times) -> Prediction:
        raise TypeError("readout 'vector' is no distribution over tokens")

    def estimate(self, table: Float[Tensor, "V D"]) -> Hidden:
        return self.x_0

    def closeness(self) -> Float[Tensor, "B L V"]:
        """-|x_0_hat - e_v|^2 / 2 for every token v, up to a constant, float32 or better."""
        table = wide(self.table)
        with torch.autocast(table.device.type, enabled=False):
            return wide(self.x_0) @ table.T - 0.5 * table.square().sum(1)

    def draw(self, noise: Noise) -> Tokens:
        """The nearest token."""
        return self.closeness().argmax(-1)

    def guided(self, free: "Vector", weight: float) -> "Vector":
        return replace(self, x_0=self.x_0 + weight * (self.x_0 - free.x_0))


def _further(shown: Float[Tensor, "*n V"], free: Float[Tensor, "*n V"], weight: float) -> Float[Tensor, "*n V"]:
    """shown + weight (shown - free) in log space; what either excludes stays as the condition says it."""
    both = shown.isfinite() & free.isfinite()
    return torch.where(both, shown + weight * (shown - free), shown)


READOUTS: dict[str, type[Readout]] = {"posterior": Prediction, "score": Scores, "vector": Vector}
