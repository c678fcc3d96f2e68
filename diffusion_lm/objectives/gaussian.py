"""gaussian: diffusion of token embeddings, trained by its variational bound, by cross-entropy, or by both.

With x_0_hat = softmax(logits) @ E and lambda the log-SNR, which falls from lambda_0 to lambda_1,

    -ln p(x) <= E[-ln p(x | z_0)] + KL(q(z_1 | x) || N(0, I)) + 1/2 int e^lambda E|e - x_0_hat|^2 d lambda

(reconstruction, prior and diffusion term; Kingma et al., arXiv 2107.00630, equation 15; Plaid, arXiv 2305.18619,
section 3). Training minimises a weighted sum of the cross-entropy of softmax(logits) at a random time and of this
bound, in one call of the network: most rows estimate the diffusion term, some the reconstruction. The reported bound
is always the variational one, integrated over lambda between the schedule's ends.

A learned schedule (schedules/learned.py) is trained along with the bound alone: cross-entropy at a random time would
draw it to easy times. Its ends get the bound's gradient, its pace that of the squares of the rows' diffusion terms.

Logged: `recoverable_share`, of the drawn times those at which context is not needed (systems of random embeddings spend
most of a cosine there), and `nll_variance`, over the rows of a pass, in squared nats per token.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch

from diffusion_lm.continuous.objective import GaussianObjective, squared_error, variance
from diffusion_lm.model import DenoisingModel
from diffusion_lm.noisy import Batch
from diffusion_lm.objectives.base import Bound, Loss, cross_entropy
from diffusion_lm.random import Noise, Stream, stratified_levels
from diffusion_lm.shapes import Float, Hidden, Tensor


@dataclass(kw_only=True, slots=True)
class GaussianBoundConfig:
    cross_entropy: float = 0.0
    """Weight of the cross-entropy at the drawn time."""
    bound: float = 1.0
    """Weight of the variational bound."""
    reconstruction_share: float = 0.125
    """Share of the rows that estimate the bound's reconstruction term, at t = 0, instead of its diffusion term."""

    def __post_init__(self) -> None:
        weights = (self.cross_entropy, self.bound)
        if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
            raise ValueError(
                f"weights: got cross_entropy {self.cross_entropy} and bound {self.bound}, expected two finite numbers, "
                "none below 0 and one above 0"
            )
        if not 0 < self.reconstruction_share < 1:
            raise ValueError(
                f"reconstruction_share: got {self.reconstruction_share}, expected more than 0 and less than 1"
            )

    def unused(self, experiment: Any) -> dict[str, str]:
        """The share of the bound's rows, where the bound is not trained."""
        return {} if self.bound else {"objective.reconstruction_share": "with objective.bound 0 there are no such rows"}


class GaussianBound(GaussianObjective):
    """Cross-entropy through x_0_hat, the variational bound, or both."""

    @classmethod
    def trains_schedule(cls, config: GaussianBoundConfig) -> bool:
        return config.cross_entropy == 0

    def check(self) -> None:
        sampler = self.training_noise.time_sampler
        low, high = sampler.config.low, sampler.config.high
        if sampler.searches and self.config.cross_entropy:
            raise ValueError(
                f"times 'clipped': got objective.cross_entropy {self.config.cross_entropy}, but the range is searched "
                "by the variance of the bound alone; expected objective.cross_entropy 0, or times=stratified"
            )
        if self.process.schedule.learned and (sampler.searches or (low, high) != (0.0, 1.0)):
            got = "a search for it" if sampler.searches else f"low {low} and high {high}"
            raise ValueError(
                f"times: got {got} with a learned schedule, which would draw the range "
                "to the noise levels that cost least; expected the whole range, 0 to 1, or a fixed schedule"
            )

    def forward(self, model: DenoisingModel, batch: Batch) -> Loss:
        text = self._embedded(model, batch)
        share = self.config.reconstruction_share if self.config.bound else 0.0
        at_start = text.noise.uniform(Stream.RECONSTRUCT, 1) < share
        t, weight = self.training_noise.times(batch.position)
        row_loss: list[Tensor] = []  # known after the forward pass, wanted in the backward pass
        log_snr, slope = self.process.schedule.drawn(t.masked_fill(at_start, 0.0), lambda: 2 * row_loss[0])

        shown = {"answer": text.answer, "beside": batch.surroundings()}
        prediction = self._predict(model, text.x_0, log_snr, text.noise, text.given, **shown)
        entropy = (cross_entropy(prediction.logits, batch.tokens) * text.scored).sum(1)
        error = (squared_error(prediction, text.x_0, text.table) * text.scored).sum(1)
        rate = (-0.5 * weight * slope * torch.exp(log_snr)).squeeze(1).to(torch.float32)
        at_start, tokens, count = at_start.squeeze(1), text.tokens, text.count
        # each term is estimated by its own rows, scaled up by their share
        diffusion = (rate * error / (1 - share)).masked_fill(at_start, 0.0)
        row_loss.append((diffusion / tokens).detach().unsqueeze(1))
        reconstruction = (entropy / max(share, 1e-9)).masked_fill(~at_start, 0.0)
        prior = (self._prior_term(text.x_0) * text.scored).sum(1).to(torch.float32)
        nll = reconstruction + diffusion + prior
        weighted = weight.squeeze(1).to(torch.float32) * entropy
        mean = (weighted.masked_fill(at_start, 0.0) / count).mean() / (1 - share)
        loss = self.config.cross_entropy * mean + self.config.bound * (nll / count).mean()
        terms = {
            "cross_entropy": mean.detach(),
            "nll_variance": variance((nll / tokens).detach()),
            "recoverable_share": self._recoverable(text.table, self.process.log_snr(t)),
        }
        return Loss(loss, nll.detach(), tokens, terms)

    def bound(self, model: DenoisingModel, batch: Batch, noise: Noise, draws: int) -> Bound:
        table = model.table()
        x_0 = self.process.encode(batch.tokens, table)
        start, end = self.process.schedule.ends(x_0)
        log_snr = start - stratified_levels(noise, draws) * (start - end)  # [B, K]
        errors, entropies = [], []
        for k in range(draws):
            at = (log_snr[:, k : k + 1], noise.at(k))
            prediction = self._predict(model, x_0, *at, None, evaluation=True, beside=batch.surroundings())
            errors.append(squared_error(prediction, x_0, table).sum(1).double())
            entropies.append(cross_entropy(prediction.logits, batch.tokens).mean(1).double())
        diffusion = 0.5 * (start - end) * (torch.exp(log_snr) * torch.stack(errors, 1)).mean(1)
        prior = self._prior_term(x_0).sum(1)
        reconstruction = self._reconstruction(model, batch, x_0, noise.at(draws + 1)).sum(1).double()
        tokens = diffusion.new_full(diffusion.shape, batch.tokens.shape[1])
        terms = {"reconstruction": reconstruction, "prior": prior, "diffusion": diffusion}
        levels = self.process.level_of(log_snr)
        return Bound(reconstruction + prior + diffusion, tokens, terms, levels, torch.stack(entropies, 1))

    def _reconstruction(self, model: DenoisingModel, batch: Batch, x_0: Hidden, noise: Noise) -> Float[Tensor, "B L"]:
        """-ln p(x | z_0) per position."""
        start = self.process.schedule.ends(x_0)[0].expand(len(x_0), 1)
        said = self._predict(model, x_0, start, noise, None, evaluation=True, beside=batch.surroundings())
        return cross_entropy(said.logits, batch.tokens)

    def _prior_term(self, x_0: Hidden) -> Float[Tensor, "B L"]:
        """KL(q(z_1 | x) || N(0, I)) per position, 1/2 (alpha |e|^2 - alpha D - D ln(1 - alpha)), float64."""
        log_snr = self.process.schedule.ends(x_0)[1]
        beyond = x_0.double().square().sum(-1) - x_0.shape[-1]
        return 0.5 * (torch.sigmoid(log_snr) * beyond - x_0.shape[-1] * torch.nn.functional.logsigmoid(-log_snr))
