"""left_to_right: the tokens are hidden from the end, one after the other, and come back in reading order.

No noise at all: x_t shows the first (1 - t) L tokens, rounded up, and the mask elsewhere. No schedule is asked: a count
of tokens is the time. With one step per token and a causal denoiser whose input is shifted by one position, this is the
autoregressive model, whose likelihood is exact.
"""

from dataclasses import dataclass
from typing import Any

import torch

from diffusion_lm.processes.base import Distribution, Process
from diffusion_lm.random import Noise
from diffusion_lm.readouts import Prediction, Readout
from diffusion_lm.shapes import Bool, Float, Tensor, Times, Tokens


@dataclass(kw_only=True, slots=True)
class LeftToRightConfig:
    """The order has nothing to set."""

    def unused(self, experiment: Any) -> dict[str, str]:
        """Keys that this process does not look at."""
        return {"schedule": "process 'left_to_right' counts tokens and asks no schedule"}


@dataclass(frozen=True)
class Shown(Distribution):
    """Positions in `drawn` hold a token of the prediction, the others what `x` holds."""

    x: Tokens
    drawn: Bool[Tensor, "B L"]
    prediction: Prediction | None

    def probabilities(self, symbols: int) -> Float[Tensor, "B L S"]:
        """The categorical distribution of every position, mask id included."""
        stays = torch.nn.functional.one_hot(self.x, symbols).double()
        if self.prediction is None:
            return stays
        tokens = torch.zeros_like(stays)
        width = min(symbols, self.prediction.logits.shape[-1])
        tokens[..., :width] = self.prediction.probabilities()[..., :width].double()
        return torch.where(self.drawn.unsqueeze(-1), tokens, stays)

    def sample(self, noise: Noise) -> Tokens:
        if self.prediction is None:
            return self.x
        return torch.where(self.drawn, self.prediction.draw(noise), self.x)


class LeftToRight(Process):
    """Tokens in reading order."""

    discrete = True
    shifted = True
    bound_objective = "autoregressive"

    @property
    def symbols(self) -> int:
        return self.vocabulary + 1

    @property
    def mask_id(self) -> int:
        """Id of a position that is not known yet, and of the input before the first token."""
        return self.vocabulary

    def alpha(self, t: Times) -> Times:
        """The share of the tokens that is shown."""
        return 1 - t

    def noise_level(self, t: Times) -> Times:
        """0: a causal network sees how much is known, and what is known is clean."""
        return torch.zeros_like(t)

    def encode(self, tokens: Tokens, table: Float[Tensor, "V D"]) -> Tokens:
        return tokens

    def prior(self, like: Tokens, table: Float[Tensor, "V D"], noise: Noise) -> Tokens:
        return torch.full_like(like, self.mask_id)

    def corrupt(self, x: Tokens, t: Times, noise: Noise, s: Times | None = None) -> Tokens:
        return self.marginal(x, t).sample(noise)

    def marginal(self, x_0: Tokens, t: Times) -> Shown:
        x_t = x_0.masked_fill(~self._known(x_0, t), self.mask_id)
        return Shown(x_t, torch.zeros_like(x_0, dtype=torch.bool), None)

    def reverse(self, x_t: Tokens, prediction: Readout, t: Times, s: Times, table: Float[Tensor, "V D"]) -> Shown:
        """Exact where the step shows one token; more tokens at once are drawn independently of one another."""
        new = self._known(x_t, s) & (x_t == self.mask_id)
        return Shown(x_t, new, prediction)

    def decode(self, x: Tokens, prediction: Readout, noise: Noise) -> Tokens:
        return torch.where(x == self.mask_id, prediction.draw(noise), x)

    def holds_tokens(self, x: Tokens, t: Times) -> Bool[Tensor, "B"]:
        return (x != self.mask_id).all(1)

    def _known(self, x: Tokens, t: Times) -> Bool[Tensor, "B L"]:
        length = x.shape[1]
        count = torch.ceil(self.alpha(t) * length - 1e-9)  # a step's time is a multiple of 1 / L up to rounding
        return torch.arange(length, device=x.device) < count
