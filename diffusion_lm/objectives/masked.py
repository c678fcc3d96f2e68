"""masked: the continuous-time bound of masked diffusion.

    -ln p(x) <= E_t[ -alpha'_t / (1 - alpha_t) sum_{i masked} -ln p(x_i | x_t) ]

MDLM (arXiv 2406.07524), equation 11. Training draws t from [t_min, 1]: the weight is about 1 / t, and single rows near
0 would dominate the gradient. The reported bound covers the whole range: with u the masked share the integral is du / u
whatever the schedule, and it is estimated with exactly l of L positions masked, (L / l) sum CE with l uniform over 1..L
(LLaDA, arXiv 2502.09992, equation 6), whose expectation is the same and whose variance is finite where that of the
Bernoulli masks is not; at L = 1 nothing is left to draw, and the number is -ln p(x) itself. `estimator: fixed_count`
trains with that estimator too. Beside it stands MDLM's own number, whose range is cut at both ends (log-linear,
eps = 1e-3, t from 1e-3).
"""

from dataclasses import dataclass
from typing import Any

import torch

from diffusion_lm.config import choice
from diffusion_lm.discrete.objective import DiscreteObjective, check_t_min, tokens_scored
from diffusion_lm.model import DenoisingModel
from diffusion_lm.noisy import Batch, Corrupted, Noisy, scored_rows
from diffusion_lm.objectives.base import Bound, Loss
from diffusion_lm.prompts import draw_given
from diffusion_lm.random import Noise, stratified_levels
from diffusion_lm.shapes import Float, Int, Tensor

MDLM_EPS = 1e-3


@dataclass(kw_only=True, slots=True)
class MaskedBoundConfig:
    t_min: float = 1e-3
    """Smallest time in training, as in MDLM; the reported bound has no such cut."""
    estimator: str = choice("bernoulli", "fixed_count")
    """In training: mask every position on its own, or exactly l of them with l uniform over 1..L."""

    def __post_init__(self) -> None:
        check_t_min(self.t_min)

    def unused(self, experiment: Any) -> dict[str, str]:
        """The cut in time, where counts are drawn and no times."""
        why = "objective.estimator=fixed_count draws a number of masks and no time"
        return {"objective.t_min": why} if self.estimator == "fixed_count" else {}


class MaskedBound(DiscreteObjective):
    """Weighted cross-entropy of the masked tokens."""

    processes = ("masked",)
    exact_alone = ("masked",)

    def draw(self, batch: Batch) -> Corrupted:
        return super().draw(batch) if self.config.estimator == "bernoulli" else self._draw_counts(batch)

    def forward(self, model: DenoisingModel, batch: Batch | Corrupted) -> Loss:
        drawn = self.draw(batch) if isinstance(batch, Batch) else batch
        if self.config.estimator == "bernoulli":
            level, rate = self.process.noise_level(drawn.t), self.process.unmasking_rate(drawn.t)
        else:
            level = self.scored(drawn.x_t).sum(1, keepdim=True) / tokens_scored(drawn).unsqueeze(1).double()
            rate = 1 / level
        return self.loss_of_masked(model, drawn, rate, level)

    def bound(self, model: DenoisingModel, batch: Batch, noise: Noise, draws: int) -> Bound:
        length = batch.tokens.shape[1]
        counts = 1 + (stratified_levels(noise, draws) * length).long().clamp(max=length - 1)  # [B, K], over 1..L
        rows = counts.sum(0).tolist()  # the one time that a device is waited for
        means = [self._masked_mean(model, batch, counts[:, k], rows[k], noise.at(k)) for k in range(draws)]
        means = torch.stack(means, 1)
        tokens = means.new_full((len(batch.tokens),), length)
        # (L / l) times the sum over l positions is L times their mean
        nll = length * means.mean(1)
        share = share_of_counts(length, MDLM_EPS * (1 - MDLM_EPS), 1 - MDLM_EPS).to(means.device)
        cut = length * (share[counts - 1] * means).mean(1) / (1 - MDLM_EPS)
        return Bound(nll, tokens, {"diffusion": nll}, counts.double() / length, means, {"mdlm_cut": cut})

    def _masked_mean(
        self, model: DenoisingModel, batch: Batch, count: Int[Tensor, "B"], rows: int, noise: Noise
    ) -> Float[Tensor, "B"]:
        x_t = self.process.corrupt_exactly(batch.tokens, count, noise)
        level = (count.double() / batch.tokens.shape[1]).unsqueeze(1)
        masked = self.process.is_masked(x_t)
        noisy, places = Noisy(x_t, level, **batch.surroundings()), scored_rows(masked, rows)
        _, losses = model.weighted_cross_entropy(noisy, batch.tokens, masked.float(), places)
        return losses.sum(1).double() / count

    def _draw_counts(self, batch: Batch) -> Corrupted:
        noise = self.training_noise.noise(batch.position)
        u, weight = self.training_noise.times(batch.position)
        given = draw_given(self.prompt, noise, batch.tokens.shape[1])
        free = torch.full_like(u, batch.tokens.shape[1]) if given is None else (~given).sum(1, keepdim=True)
        count = 1 + (u * free).long().clamp(max=free.long() - 1)
        x_t = self.process.corrupt_exactly(batch.tokens, count.squeeze(1), noise, given)
        rows, share = scored_rows(self.scored(x_t)), count.double() / free
        drawn = (batch.tokens, x_t, share, weight, given, rows, self.mean_counted(batch))
        return Corrupted(*drawn, **batch.surroundings())


def share_of_counts(length: int, low: float, high: float) -> Float[Tensor, "L"]:
    """Of the integral over u in (0, 1) of sequences with l of L positions masked, the share with low < u < high.

    int l / u Binomial(l; L, u) du is 1, and its part below u is P(Binomial(L, u) >= l); l = 1..L, float64.
    """
    count = torch.arange(length + 1, dtype=torch.float64)
    ways = torch.lgamma(count.new_tensor(length + 1)) - torch.lgamma(count + 1) - torch.lgamma(length - count + 1)

    def tail(u: float) -> Float[Tensor, "L"]:
        chance = torch.exp(ways + torch.xlogy(count, count.new_tensor(u)) + torch.xlogy(length - count, 1 - u))
        return chance.flip(0).cumsum(0).flip(0)[1:]

    return tail(high) - tail(low)
