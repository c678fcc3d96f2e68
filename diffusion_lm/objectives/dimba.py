"""dimba: mean squared error of x_0_hat, DIMBA's loss (Allafi, April 2025, section 3.3), anchored. Not a bound.

    loss = E_t[ |x_0 - x_0_hat|^2 / D + w CE(x_0_hat) ],  x_0_hat = softmax(logits) @ E,

per token, with every time weighing alike. The squared error alone is 0 for embeddings that are all the same. Anchors
against that, each with a switch: the cross-entropy of the predicted tokens, `cross_entropy` (Difformer, arXiv
2212.09412); embeddings of a fixed norm, `model.normalise_embeddings`; and, against copying, a prompt encoder that does
not see the answer, `prompt.leak: false`. `model.self_conditioning` shows the network its own estimate. The reported
bound is the Gaussian process's. The paper's own form, without any of them: dimba_literal.
"""

import math
from dataclasses import dataclass

from diffusion_lm.continuous.objective import GaussianObjective, squared_error, variance
from diffusion_lm.model import DenoisingModel
from diffusion_lm.noisy import Batch
from diffusion_lm.objectives.base import Bound, Loss, cross_entropy
from diffusion_lm.random import Noise


@dataclass(kw_only=True, slots=True)
class DimbaConfig:
    cross_entropy: float = 1.0
    """Weight of the cross-entropy that anchors x_0_hat to tokens; 0 leaves it out."""

    def __post_init__(self) -> None:
        check_weight(self.cross_entropy)


def check_weight(cross_entropy: float) -> None:
    """Refuse an impossible weight of the anchor."""
    if not 0 <= cross_entropy < math.inf:
        raise ValueError(f"cross_entropy: got {cross_entropy}, expected 0 or more")


class Dimba(GaussianObjective):
    """Squared error of the estimated embeddings, and an anchor."""

    trains_bound = False

    def forward(self, model: DenoisingModel, batch: Batch) -> Loss:
        text = self._embedded(model, batch)
        t, weight = self.training_noise.times(batch.position)
        log_snr = self.process.log_snr(t)
        shown = {"answer": text.answer, "beside": batch.surroundings()}
        said = self._predict(model, text.x_0, log_snr, text.noise, text.given, **shown)
        error = squared_error(said, text.x_0, text.table) / text.x_0.shape[-1]
        entropy = cross_entropy(said.logits, batch.tokens)
        weight = weight.float() * text.scored
        losses = (weight * (error + self.config.cross_entropy * entropy)).sum(1)
        share = weight / text.count.unsqueeze(1) / len(weight)
        terms = {
            "mse": (share * error).sum().detach(),
            "cross_entropy": (share * entropy).sum().detach(),
            "nll_variance": variance((losses / text.tokens).detach()),
            "recoverable_share": self._recoverable(text.table, log_snr),
        }
        return Loss((losses / text.count).mean(), losses.detach(), text.tokens, terms)

    def bound(self, model: DenoisingModel, batch: Batch, noise: Noise, draws: int) -> Bound:
        return self.bounded_by_process().bound(model, batch, noise, draws)
