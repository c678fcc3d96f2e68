"""What the discrete processes share: a token is kept, or replaced by the mask or by a random token.

q(x_t | x_0) = alpha_t [x_t = x_0] + mask_t [x_t = mask] + token_t, where token_t is the noise's mass on each single
token (alpha + mask + V token = 1). Tokens jump at the rate -alpha' / alpha, and arrive at state z at the rate
r_t(z) = b'_t(z) - alpha'_t / alpha_t b_t(z), b being the noise's mass on z (GIDD, arXiv 2503.04482, section 3).

The prediction that these processes ask for is the *leave-one-out* posterior p(x_0^i | x_t without position i): the
reverse step and the bounds bring in x_t^i themselves, so their optimum does not depend on it. For a masked position the
two posteriors are the same; elsewhere the network sees x_t^i at its input and has to learn to disregard it.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from diffusion_lm.processes.base import Distribution, Process
from diffusion_lm.random import Noise, Stream
from diffusion_lm.readouts import Prediction, Readout
from diffusion_lm.schedules.base import NoiseSchedule
from diffusion_lm.shapes import Bool, Float, Logits, Tensor, Times, Tokens

SMALLEST = 1e-30
"""Floor of a mass that is divided by; its square root is still a float32."""


@dataclass(frozen=True)
class Masses:
    """alpha, the noise's mass on the mask, and on each single token, per row. [B, 1] float64"""

    alpha: Times
    mask: Times
    token: Times

    def of(self, z: Tokens, mask_id: int) -> Float[Tensor, "B L"]:
        """The noise's mass on the state z."""
        return torch.where(z == mask_id, self.mask, self.token)


@dataclass(frozen=True)
class Replaced(Distribution):
    """Each position is `kept` with probability ``1 - change``, else the mask or (always_mask false) noise of `masses`.

    mask_share: probability that a replaced position is the mask and not a random token.
    """

    kept: Tokens
    change: Times
    mask_share: Times
    process: "DiscreteProcess"

    def probabilities(self, symbols: int) -> Float[Tensor, "B L S"]:
        """The categorical distribution of every position, mask id included."""
        change = self.change.expand(self.kept.shape).unsqueeze(-1)
        kept = torch.nn.functional.one_hot(self.kept, symbols).to(change.dtype)
        return (1 - change) * kept + change * noise_table(self.mask_share, self.process, symbols)

    def sample(self, noise: Noise) -> Tokens:
        change = noise.uniform(Stream.CORRUPT, self.kept.shape[1]) < self.change
        return torch.where(change, self.process.draw_noise(self.kept, self.mask_share, noise), self.kept)


@dataclass(frozen=True)
class Jump(Distribution):
    """p(x_s | x_t): stay at x_t, or with probability `change` a draw of alpha_s prediction + noise of time s.

    In two stages, whether and where to: one draw among all symbols would need T times the resolution.
    """

    x_t: Tokens
    prediction: Prediction
    change: Float[Tensor, "B L"]
    masses: Masses
    process: "DiscreteProcess"

    def probabilities(self, symbols: int) -> Float[Tensor, "B L S"]:
        """The categorical distribution of every position, mask id included."""
        change = self.change.unsqueeze(-1)
        stays = torch.nn.functional.one_hot(self.x_t, symbols).to(change.dtype)
        tokens = torch.zeros_like(stays)
        width = min(symbols, self.prediction.logits.shape[-1])
        tokens[..., :width] = self.prediction.probabilities()[..., :width].to(change.dtype)
        alpha = self.masses.alpha.unsqueeze(-1)
        noise = (1 - alpha) * noise_table(self._mask_share(), self.process, symbols)
        return (1 - change) * stays + change * (alpha * tokens + noise)

    def sample(self, noise: Noise) -> Tokens:
        length = self.x_t.shape[1]
        moved = torch.where(
            noise.uniform(Stream.SOURCE, length) < self.masses.alpha,
            self.prediction.draw(noise),
            self.process.draw_noise(self.x_t, self._mask_share(), noise),
        )
        return torch.where(noise.uniform(Stream.CHANGE, length) < self.change, moved, self.x_t)

    def _mask_share(self) -> Times:
        return self.masses.mask / (1 - self.masses.alpha).clamp(min=SMALLEST)


def noise_table(mask_share: Times, process: "DiscreteProcess", symbols: int) -> Float[Tensor, "B #L S"]:
    """The distribution of a replaced position."""
    table = ((1 - mask_share) / process.vocabulary).unsqueeze(-1).repeat(1, 1, symbols)
    table[..., process.vocabulary :] = 0.0
    if process.symbols > process.vocabulary:
        table[..., process.mask_id] = mask_share
    return table


class DiscreteProcess(Process):
    """A process of ids; variants say the noise's masses and arrival rates."""

    discrete = True
    absorbing: ClassVar[bool] = False
    """Whether noise is the mask alone, so that every token that is not the mask is right."""
    reach: float = 40.0
    """Log-odds of the schedule's alpha beyond which nothing changes in float64."""

    @abstractmethod
    def masses(self, t: Times) -> Masses:
        """alpha_t and the noise's masses."""

    @abstractmethod
    def rates(self, t: Times) -> tuple[Times, Times]:
        """Rates r_t of arrival per unit of t: at the mask, and at each single token. Finite."""

    @abstractmethod
    def alpha_prime(self, t: Times) -> Times:
        """d alpha / d t of this process."""

    @property
    def mask_id(self) -> int:
        """Id of the mask: the first id after the vocabulary (no state holds it where there is none)."""
        return self.vocabulary

    def alpha(self, t: Times) -> Times:
        return self.masses(t).alpha

    def noise_level(self, t: Times) -> Times:
        """The expected share of replaced tokens, 1 - alpha_t."""
        return 1 - self.alpha(t)

    def time_of(self, noise_level: Times) -> Times:
        """The time at which a noise level is reached, by bisection to float64's resolution."""
        low, high = torch.zeros_like(noise_level), torch.ones_like(noise_level)
        for _ in range(60):
            middle = (low + high) / 2
            below = self.noise_level(middle) < noise_level
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return high

    def over(self, schedule: NoiseSchedule) -> "DiscreteProcess":
        """The same process over another schedule."""
        return type(self)(self.config, schedule, self.vocabulary)

    def encode(self, tokens: Tokens, table: Float[Tensor, "V D"]) -> Tokens:
        return tokens

    def prior(self, like: Tokens, table: Float[Tensor, "V D"], noise: Noise) -> Tokens:
        """The noise of t = 1."""
        masses = self.masses(torch.ones(len(like), 1, dtype=torch.float64, device=like.device))
        return self.draw_noise(like, masses.mask / (1 - masses.alpha), noise, Stream.PRIOR)

    def corrupt(self, x: Tokens, t: Times, noise: Noise, s: Times | None = None) -> Tokens:
        return self._from(x, t, s).sample(noise)

    def marginal(self, x_0: Tokens, t: Times) -> Replaced:
        return self._from(x_0, t, None)

    def is_masked(self, x: Tokens) -> Bool[Tensor, "B L"]:
        """Where x holds the mask."""
        return x == self.mask_id

    def between(self, t: Times, s: Times) -> Masses:
        """q(x_t | x_s): alpha is alpha_t / alpha_s, and the noise's masses are those that come in between."""
        later, earlier = self.masses(t), self.masses(s)
        ratio = later.alpha / earlier.alpha
        return Masses(ratio, later.mask - ratio * earlier.mask, later.token - ratio * earlier.token)

    def reverse(self, x_t: Tokens, prediction: Readout, t: Times, s: Times, table: Float[Tensor, "V D"]) -> Jump:
        posterior = prediction.posterior(self, x_t, t)
        change = self.between(t, s).of(x_t, self.mask_id) / self._predicted(posterior, x_t, t)
        return Jump(x_t, posterior, change.clamp(0.0, 1.0), self.masses(s), self)

    def decode(self, x: Tokens, prediction: Readout, noise: Noise) -> Tokens:
        """A draw of x_0 from what the prediction and x itself say of it at t = 0."""
        start = torch.zeros(len(x), 1, dtype=torch.float64, device=x.device)
        posterior, masses = prediction.posterior(self, x, start), self.masses(start)
        change = masses.of(x, self.mask_id) / self._predicted(posterior, x, start)
        change = change.masked_fill(self.is_masked(x), 1.0)
        return torch.where(noise.uniform(Stream.CHANGE, x.shape[1]) < change, posterior.draw(noise), x)

    def holds_tokens(self, x: Tokens, t: Times) -> Bool[Tensor, "B"]:
        return ~(self.is_masked(x) | (self.masses(t).token > 0)).any(1)

    def posterior_of_scores(self, log_scores: Logits, x_t: Tokens, t: Times) -> Logits:
        """ln p(x_0^i | x_t without i) from log ratios of p_t without their `log_score_factor`.

        At a masked position the ratios are alpha / mask times it. Elsewhere p_t(v) is ratio(v) over the sum of the
        ratios (that of x_t itself is 1), and p_t = alpha p_0 + token.
        """
        masses = self.masses(t)
        itself = torch.nn.functional.one_hot(x_t.clamp(max=log_scores.shape[-1] - 1), log_scores.shape[-1]).bool()
        marginal = torch.softmax(log_scores.masked_fill(itself, 0.0).double(), -1)
        # alpha p_0: without the division, for at t = 1 alpha may be 0
        found = (marginal - masses.token.unsqueeze(-1)).clamp(min=1e-12)
        found = found.masked_fill(log_scores == -torch.inf, 0.0).log().to(log_scores.dtype)
        return torch.where(self.is_masked(x_t).unsqueeze(-1), log_scores, found)

    def log_score_factor(self, x_t: Tokens, t: Times) -> Float[Tensor, "B L"]:
        """ln of the known factor of the ratios at x_t: alpha / (mask V) at a masked position, else 1."""
        masses = self.masses(t)
        known = torch.log(masses.alpha.clamp(min=SMALLEST) / (masses.mask.clamp(min=SMALLEST) * self.vocabulary))
        return torch.where(self.is_masked(x_t), known, 0.0)

    def draw_noise(
        self, like: Tokens, mask_share: Times, noise: Noise, stream: Stream = Stream.REPLACE
    ) -> Tokens:
        """What a replaced position holds: the mask with probability `mask_share`, else a random token."""
        draw = noise.uniform(stream, like.shape[1])
        token = (draw - mask_share) / (1 - mask_share).clamp(min=SMALLEST) * self.vocabulary
        return torch.where(draw < mask_share, self.mask_id, token.long().clamp(0, self.vocabulary - 1))

    def _from(self, x: Tokens, t: Times, s: Times | None) -> Replaced:
        masses = self.masses(t) if s is None else self.between(t, s)
        change = 1 - masses.alpha
        return Replaced(x, change, (masses.mask / change.clamp(min=SMALLEST)).clamp(0.0, 1.0), self)

    def _predicted(self, posterior: Prediction, z: Tokens, t: Times) -> Float[Tensor, "B L"]:
        """q_t(z) with the prediction in place of x_0: alpha p(z) + noise's mass on z, float64."""
        probabilities = torch.softmax(posterior.logits.double(), -1)
        masked = self.is_masked(z)
        of_z = probabilities.gather(-1, z.masked_fill(masked, 0).unsqueeze(-1)).squeeze(-1).masked_fill(masked, 0.0)
        masses = self.masses(t)
        return (masses.alpha * of_z + masses.of(z, self.mask_id)).clamp(min=SMALLEST)
