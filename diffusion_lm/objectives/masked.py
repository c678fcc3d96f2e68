"""masked: the continuous-time bound of masked diffusion.

    -ln p(x) <= E_t[ -alpha'_t / (1 - alpha_t) sum_{i masked} -ln p(x_i | x_t) ]

MDLM (arXiv 2406.07524), equation 11. Training draws t stratified over the global batch from [t_min, 1]: the weight is
about 1 / t, and single rows near 0 would dominate the gradient. The reported bound covers the whole range: with u the
masked share the integral is du / u whatever the schedule, and it is estimated with exactly l of L positions masked,
(L / l) sum CE with l uniform over 1..L (LLaDA, arXiv 2502.09992, equation 6), whose expectation is the same and whose
variance is finite where that of the Bernoulli masks is not.
"""

from dataclasses import dataclass

import torch

from diffusion_lm.model import DenoisingModel
from diffusion_lm.noisy import Batch, Noisy
from diffusion_lm.objectives.base import Bound, Loss, Objective, cross_entropy
from diffusion_lm.prompts import draw_given
from diffusion_lm.random import Noise, stratified_levels
from diffusion_lm.shapes import Float, Int, Tensor


@dataclass(kw_only=True, slots=True)
class MaskedBoundConfig:
    t_min: float = 1e-3
    """Smallest time in training, as in MDLM; the reported bound has no such cut."""

    def __post_init__(self) -> None:
        if not 0 < self.t_min < 1:
            raise ValueError(f"t_min: got {self.t_min}, expected 0 < t_min < 1")


class MaskedBound(Objective):
    """Weighted cross-entropy of the masked tokens."""

    processes = ("masked",)
    default_schedule = "log_linear"

    def forward(self, model: DenoisingModel, batch: Batch) -> Loss:
        noise = self.training_noise.noise(batch)
        t = self.config.t_min + (1 - self.config.t_min) * self.training_noise.times(batch)
        x_t = self.process.corrupt(batch.tokens, t, noise)
        given = draw_given(self.prompt, noise, batch.tokens.shape[1])
        if given is not None:
            x_t = x_t.where(~given, batch.tokens)
        prediction = model(Noisy(x_t, self.process.noise_level(t), given))
        masked = self.process.is_masked(x_t)
        losses = (cross_entropy(prediction.logits, batch.tokens) * masked).sum(1)
        nll = self.process.unmasking_rate(t).squeeze(1).to(losses.dtype) * losses
        tokens = (batch.tokens.new_ones(batch.tokens.shape) if given is None else ~given).sum(1).to(losses.dtype)
        mean = losses.sum() / masked.sum().clamp(min=1)
        return Loss(nll.sum() / tokens.sum(), nll, tokens, {"cross_entropy": mean.detach()})

    def bound(self, model: DenoisingModel, batch: Batch, noise: Noise, draws: int) -> Bound:
        length = batch.tokens.shape[1]
        counts = 1 + (stratified_levels(noise, draws) * length).long().clamp(
            max=length - 1
        )  # [B, K], uniform over 1..L
        means = torch.stack([self._masked_mean(model, batch, counts[:, k], noise.at(k)) for k in range(draws)], 1)
        tokens = means.new_full((len(batch.tokens),), length)
        # (L / l) times the sum over l positions is L times their mean
        nll = length * means.mean(1)
        return Bound(nll, tokens, {"diffusion": nll}, counts / length, means)

    def _masked_mean(
        self, model: DenoisingModel, batch: Batch, count: Int[Tensor, "B"], noise: Noise
    ) -> Float[Tensor, "B"]:
        x_t = self.process.corrupt_exactly(batch.tokens, count, noise)
        level = (count / batch.tokens.shape[1]).double().unsqueeze(1)
        losses = cross_entropy(model(Noisy(x_t, level)).logits, batch.tokens)
        return (losses * self.process.is_masked(x_t)).sum(1).double() / count
