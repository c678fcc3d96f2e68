"""dimba_literal: DIMBA's training loss as its paper has it (Allafi, April 2025, sections 3.2 and 3.3). No bound.

    loss = E_k[ |x_0 - Denoiser(x_k)|^2 / D ],  x_k = sqrt(abar_k) x_0 + sqrt(1 - abar_k) eps,  k uniform over 1..T,

the network's last layer being x_0_hat itself (readout `vector`). abar_k is the product of 1 - beta_k with
beta_k = min(1 - alpha(k / T) / alpha((k - 1) / T), 0.999), the clip of Nichol and Dhariwal (arXiv 2102.09672, section
3.2), alpha being the schedule on the process's log-SNR range. The experiments of experiments/dimba switch
`prompt.leak` on and `model.normalise_embeddings` off besides.

Nothing says how probable a token is, so there is no likelihood: reported are, over k, the mean squared error per
dimension, the share of tokens to which x_0_hat is rounded rightly, and the spread of a sequence's embeddings, the root
mean squared distance from their mean per dimension: near 1 at the start, 0 when they have collapsed to a point.
"""

from dataclasses import dataclass

import torch

from diffusion_lm.continuous.objective import GaussianObjective, squared_error, variance
from diffusion_lm.model import DenoisingModel
from diffusion_lm.noisy import Batch
from diffusion_lm.objectives.base import Loss, cross_entropy
from diffusion_lm.objectives.dimba import check_weight
from diffusion_lm.random import Noise, stratified_levels
from diffusion_lm.shapes import Rows, Times


@dataclass(kw_only=True, slots=True)
class DimbaLiteralConfig:
    timesteps: int = 1000
    """T, the number of noise levels."""
    max_beta: float = 0.999
    """Largest share of the signal's power that a step takes away."""
    cross_entropy: float = 0.0
    """Weight of the anchor: the cross-entropy of softmax(-|x_0_hat - e_v|^2 / 2) over tokens v. The paper has none."""

    def __post_init__(self) -> None:
        check_weight(self.cross_entropy)
        if self.timesteps < 1:
            raise ValueError(f"timesteps: got {self.timesteps}, expected at least 1")
        if not 0 < self.max_beta < 1:
            raise ValueError(f"max_beta: got {self.max_beta}, expected more than 0 and less than 1")


class DimbaLiteral(GaussianObjective):
    """Squared error alone, at whole numbers of steps."""

    readout = "vector"
    trains_bound = False
    reports_bound = False
    blockwise = False
    headline = ("val/mse", "val/rounding_accuracy", "val/embedding_spread")

    def forward(self, model: DenoisingModel, batch: Batch) -> Loss:
        text = self._embedded(model, batch)
        t, weight = self.training_noise.times(batch.position)
        log_snr = self.log_snr_of_step(t)
        shown = {"answer": text.answer, "beside": batch.surroundings()}
        said = self._predict(model, text.x_0, log_snr, text.noise, text.given, **shown)
        error = squared_error(said, text.x_0, text.table) / text.x_0.shape[-1]
        anchor = cross_entropy(said.closeness(), batch.tokens)
        weight = weight.float() * text.scored
        losses = (weight * (error + self.config.cross_entropy * anchor)).sum(1)
        share = weight / text.count.unsqueeze(1) / len(weight)
        terms = {
            "mse": (share * error).sum().detach(),
            "nll_variance": variance((losses / text.tokens).detach()),
            "recoverable_share": self._recoverable(text.table, log_snr),
        }
        return Loss((losses / text.count).mean(), losses.detach(), text.tokens, terms)

    def log_snr_of_step(self, t: Times) -> Times:
        """ln(abar_k / (1 - abar_k)) for k = ceil(t T), at least 1."""
        steps = self.config.timesteps
        grid = torch.arange(steps + 1, dtype=torch.float64, device=t.device).unsqueeze(1) / steps
        alpha = self.process.alpha(grid).squeeze(1)
        kept = (alpha[1:] / alpha[:-1]).clamp(min=1 - self.config.max_beta)
        abar = alpha[0] * kept.cumprod(0)
        return torch.logit(abar[(t * steps).ceil().long().clamp(1, steps) - 1])

    def bound(self, model: DenoisingModel, batch: Batch, noise: Noise, draws: int) -> None:
        return None

    def measures(self, model: DenoisingModel, batch: Batch, noise: Noise, draws: int) -> dict[str, Rows]:
        table = model.table()
        x_0 = self.process.encode(batch.tokens, table)
        levels = stratified_levels(noise, draws)
        errors, right = [], []
        for k in range(draws):
            log_snr = self.log_snr_of_step(levels[:, k : k + 1])
            said = self._predict(model, x_0, log_snr, noise.at(k), None, evaluation=True, beside=batch.surroundings())
            errors.append(squared_error(said, x_0, table).mean(1) / table.shape[1])
            right.append((said.draw(noise) == batch.tokens).float().mean(1))
        spread = (x_0 - x_0.mean(1, keepdim=True)).square().mean((1, 2)).sqrt()
        mse, accuracy = (torch.stack(values, 1).mean(1) for values in (errors, right))
        return {"mse": mse, "rounding_accuracy": accuracy, "embedding_spread": spread}
