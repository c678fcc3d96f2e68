"""masked: each token is replaced by the mask, on its own, with probability 1 - alpha_t, and then stays masked.

Absorbing-state diffusion (D3PM, arXiv 2107.03006; MDLM, arXiv 2406.07524, section 3). The reverse step unmasks a masked
position with probability rho = (alpha_s - alpha_t) / (1 - alpha_t) and leaves the others as they are.
"""

from dataclasses import dataclass

import torch

from diffusion_lm.processes.base import Distribution, Prediction, Process
from diffusion_lm.random import Noise, Stream, categorical
from diffusion_lm.shapes import Bool, Float, Int, Tensor, Times, Tokens


@dataclass(kw_only=True, slots=True)
class MaskedConfig:
    """The masked process has nothing to set; its schedule is a part of its own."""


@dataclass(frozen=True)
class MaskedState(Distribution):
    """Each position is `kept` with probability ``1 - change``, else the mask."""

    kept: Tokens
    change: Times
    mask_id: int

    def probabilities(self, symbols: int) -> Float[Tensor, "B L S"]:
        """The categorical distribution of every position, mask id included."""
        change = self.change.expand(self.kept.shape).unsqueeze(-1)
        kept = torch.nn.functional.one_hot(self.kept, symbols).to(change.dtype)
        masked = torch.nn.functional.one_hot(torch.full_like(self.kept, self.mask_id), symbols).to(change.dtype)
        return (1 - change) * kept + change * masked

    def sample(self, noise: Noise) -> Tokens:
        change = noise.uniform(Stream.CORRUPT, self.kept.shape[1]) < self.change
        return torch.where(change, self.mask_id, self.kept)


@dataclass(frozen=True)
class Unmasking(Distribution):
    """Masked positions of `x_t` become a token of `prediction` with probability `rho`; the others stay."""

    x_t: Tokens
    prediction: Prediction
    rho: Times
    mask_id: int

    def probabilities(self, symbols: int) -> Float[Tensor, "B L S"]:
        """The categorical distribution of every position, mask id included."""
        rho = self.rho.expand(self.x_t.shape).unsqueeze(-1)
        stays = torch.nn.functional.one_hot(self.x_t, symbols).to(rho.dtype)
        tokens = torch.zeros_like(stays)
        width = min(symbols, self.prediction.logits.shape[-1])
        tokens[..., :width] = self.prediction.probabilities()[..., :width].to(rho.dtype)
        return torch.where((self.x_t == self.mask_id).unsqueeze(-1), rho * tokens + (1 - rho) * stays, stays)

    def sample(self, noise: Noise) -> Tokens:
        # Two stages, which positions and then which token: one draw among V + 1 would need T times the resolution.
        change = (noise.uniform(Stream.CHANGE, self.x_t.shape[1]) < self.rho) & (self.x_t == self.mask_id)
        return torch.where(change, draw_tokens(self.prediction, noise), self.x_t)


def draw_tokens(prediction: Prediction, noise: Noise) -> Tokens:
    """A token for every position from softmax(logits), with one float64 uniform each."""
    probabilities = torch.softmax(prediction.logits.to(torch.float64), -1)
    return categorical(probabilities, noise.uniform(Stream.TOKEN, probabilities.shape[1]))


class Masked(Process):
    """Absorbing-state process; the mask id is the first id after the vocabulary."""

    discrete = True

    @property
    def symbols(self) -> int:
        return self.vocabulary + 1

    @property
    def mask_id(self) -> int:
        """Id of the mask."""
        return self.vocabulary

    def alpha(self, t: Times) -> Times:
        return self.schedule.alpha(t)

    def noise_level(self, t: Times) -> Times:
        """The expected masked share, 1 - alpha_t."""
        return 1 - self.schedule.alpha(t)

    def unmasking_rate(self, t: Times) -> Times:
        """-alpha'_t / (1 - alpha_t): weight of the masked bound in continuous time (MDLM, equation 11)."""
        return -self.schedule.alpha_prime(t) / (1 - self.schedule.alpha(t))

    def encode(self, tokens: Tokens, table: Float[Tensor, "V D"]) -> Tokens:
        return tokens

    def prior(self, like: Tokens, table: Float[Tensor, "V D"], noise: Noise) -> Tokens:
        return torch.full_like(like, self.mask_id)

    def corrupt(self, x: Tokens, t: Times, noise: Noise, s: Times | None = None) -> Tokens:
        before = 1.0 if s is None else self.alpha(s)
        return MaskedState(x, 1 - self.alpha(t) / before, self.mask_id).sample(noise)

    def corrupt_exactly(self, x: Tokens, count: Int[Tensor, "B"], noise: Noise) -> Tokens:
        """x_0 with exactly count[b] positions of row b masked, chosen uniformly."""
        rank = noise.uniform(Stream.CORRUPT, x.shape[1]).argsort(1).argsort(1)
        return torch.where(rank < count[:, None], self.mask_id, x)

    def marginal(self, x_0: Tokens, t: Times) -> MaskedState:
        return MaskedState(x_0, 1 - self.alpha(t), self.mask_id)

    def is_masked(self, x: Tokens) -> Bool[Tensor, "B L"]:
        """Where x holds the mask."""
        return x == self.mask_id

    def reverse(
        self, x_t: Tokens, prediction: Prediction, t: Times, s: Times, table: Float[Tensor, "V D"]
    ) -> Unmasking:
        alpha_t, alpha_s = self.alpha(t), self.alpha(s)
        return Unmasking(x_t, prediction, (alpha_s - alpha_t) / (1 - alpha_t), self.mask_id)

    def decode(self, x: Tokens, prediction: Prediction, noise: Noise) -> Tokens:
        return torch.where(self.is_masked(x), draw_tokens(prediction, noise), x)

    def holds_tokens(self, x: Tokens) -> bool:
        return not bool(self.is_masked(x).any())
