"""gaussian: diffusion of token embeddings, trained by cross-entropy or by its variational bound.

With x_0_hat = softmax(logits) @ E and lambda the log-SNR,

    -ln p(x) <= E[-ln p(x | z_0)] + KL(q(z_1 | x) || N(0, I)) + 1/2 int e^lambda E|e - x_0_hat|^2 d lambda

(reconstruction, prior and diffusion term; Kingma et al., arXiv 2107.00630, equation 15; Plaid, arXiv 2305.18619,
section 3). Training minimises a weighted sum of the cross-entropy of softmax(logits) at a random time and of this
bound, in one call of the network: most rows estimate the diffusion term, some the reconstruction. The reported bound
is always the variational one, integrated over lambda on the process's log-SNR range.
"""

from dataclasses import dataclass

import torch

from diffusion_lm.model import DenoisingModel
from diffusion_lm.noisy import Batch, Noisy
from diffusion_lm.objectives.base import Bound, Loss, Objective, cross_entropy
from diffusion_lm.prompts import draw_given
from diffusion_lm.random import Noise, Stream, stratified_levels
from diffusion_lm.readouts import Prediction
from diffusion_lm.shapes import Float, Hidden, Tensor, Times


@dataclass(kw_only=True, slots=True)
class GaussianBoundConfig:
    cross_entropy: float = 0.0
    """Weight of the cross-entropy at the drawn time."""
    bound: float = 1.0
    """Weight of the variational bound."""
    reconstruction_share: float = 0.125
    """Share of the rows that estimate the bound's reconstruction term, at t = 0, instead of its diffusion term."""

    def __post_init__(self) -> None:
        if self.cross_entropy < 0 or self.bound < 0 or self.cross_entropy + self.bound == 0:
            raise ValueError(
                f"weights: got cross_entropy {self.cross_entropy} and bound {self.bound}, expected none below 0 "
                "and one above 0"
            )
        if not 0 < self.reconstruction_share < 1:
            raise ValueError(
                f"reconstruction_share: got {self.reconstruction_share}, expected more than 0 and less than 1"
            )


class GaussianBound(Objective):
    """Cross-entropy through x_0_hat, the variational bound, or both."""

    processes = ("gaussian",)
    default_schedule = "cosine"

    def forward(self, model: DenoisingModel, batch: Batch) -> Loss:
        noise = self.training_noise.noise(batch)
        share = self.config.reconstruction_share if self.config.bound else 0.0
        at_start = noise.uniform(Stream.RECONSTRUCT, 1) < share
        t, weight = self.training_noise.times(batch)
        t = t.masked_fill(at_start, 0.0)
        table = model.table()
        x_0 = self.process.encode(batch.tokens, table)
        given = draw_given(self.prompt, noise, batch.tokens.shape[1])
        scored = torch.ones_like(batch.tokens, dtype=torch.bool) if given is None else ~given

        prediction = self._predict(model, x_0, t, noise, given)
        tokens = scored.sum(1).to(torch.float32)
        entropy = (cross_entropy(prediction.logits, batch.tokens) * scored).sum(1)
        error = (self._squared_error(prediction, x_0, table) * scored).sum(1)
        rate = -0.5 * weight * self.process.log_snr_prime(t) * torch.exp(self.process.log_snr(t))
        rate = rate.squeeze(1).to(torch.float32)
        at_start = at_start.squeeze(1)
        # each term is estimated by its own rows, scaled up by their share
        terms = torch.where(at_start, entropy / max(share, 1e-9), rate * error / (1 - share))
        nll = terms + self._prior_term(x_0).to(torch.float32) * tokens
        mean = entropy.masked_fill(at_start, 0.0).sum() / (1 - share) / tokens.sum()
        loss = self.config.cross_entropy * mean + self.config.bound * nll.sum() / tokens.sum()
        return Loss(loss, nll.detach(), tokens, {"cross_entropy": mean.detach()})

    def bound(self, model: DenoisingModel, batch: Batch, noise: Noise, draws: int) -> Bound:
        table = model.table()
        x_0 = self.process.encode(batch.tokens, table)
        levels = stratified_levels(noise, draws)
        span = self.process.log_snr_max - self.process.log_snr_min
        log_snr = self.process.log_snr_max - levels * span  # [B, K]
        errors, entropies = [], []
        for k in range(draws):
            prediction = self._predict(model, x_0, self.process.time_of(log_snr[:, k : k + 1]), noise.at(k), None)
            errors.append(self._squared_error(prediction, x_0, table).sum(1).double())
            entropies.append(cross_entropy(prediction.logits, batch.tokens).mean(1).double())
        diffusion = 0.5 * span * (torch.exp(log_snr) * torch.stack(errors, 1)).mean(1)
        length = batch.tokens.shape[1]
        prior = (self._prior_term(x_0) * length).expand(len(batch.tokens))
        reconstruction = self._reconstruction(model, batch, x_0, noise.at(draws + 1)).sum(1).double()
        tokens = diffusion.new_full(diffusion.shape, length)
        terms = {"reconstruction": reconstruction, "prior": prior, "diffusion": diffusion}
        return Bound(reconstruction + prior + diffusion, tokens, terms, levels, torch.stack(entropies, 1))

    def _predict(self, model: DenoisingModel, x_0: Hidden, t: Times, noise: Noise, given: Tensor | None) -> Prediction:
        x_t = self.process.corrupt(x_0, t, noise)
        if given is not None:
            x_t = torch.where(given.unsqueeze(-1), x_0, x_t)
        return model(Noisy(x_t, self.process.noise_level(t), given))

    def _squared_error(self, prediction: Prediction, x_0: Hidden, table: Float[Tensor, "V D"]) -> Float[Tensor, "B L"]:
        return (x_0.float() - prediction.estimate(table)).square().sum(-1)

    def _reconstruction(self, model: DenoisingModel, batch: Batch, x_0: Hidden, noise: Noise) -> Float[Tensor, "B L"]:
        """-ln p(x | z_0) per position."""
        start = torch.zeros(len(x_0), 1, dtype=torch.float64, device=x_0.device)
        return cross_entropy(self._predict(model, x_0, start, noise, None).logits, batch.tokens)

    def _prior_term(self, x_0: Hidden) -> Float[Tensor, ""]:
        """KL(q(z_1 | x) || N(0, I)) per position, which is the same for all: every embedding has squared norm D.

        1/2 (alpha |e|^2 - alpha D - D ln(1 - alpha)) = -D ln(1 - alpha) / 2.
        """
        alpha = self.process.alpha(torch.ones(1, 1, dtype=torch.float64, device=x_0.device)).squeeze()
        return -0.5 * x_0.shape[-1] * torch.log1p(-alpha)
