"""cross_entropy: the plain cross-entropy of corrupted tokens, as in MaskGIT (arXiv 2202.04200). Not a bound.

Every scored position counts alike, whatever the time: masked positions of a masked state, all positions where tokens
are replaced by others (there with what x_t^i itself says of x_0^i). The reported likelihood is the bound of the
process. Bounds weigh small noise levels more; leaving the weights out lowers the gradient's variance.
"""

from dataclasses import dataclass

from diffusion_lm.discrete.objective import (
    DiscreteObjective,
    check_t_min,
    own_entropy,
    tokens_scored,
)
from diffusion_lm.model import DenoisingModel
from diffusion_lm.noisy import Batch, Corrupted, Noisy
from diffusion_lm.objectives.base import Bound, Loss
from diffusion_lm.random import Noise
from diffusion_lm.shapes import Bool, Float, Tensor, Tokens


@dataclass(kw_only=True, slots=True)
class CrossEntropyConfig:
    t_min: float = 1e-3
    """Smallest time in training."""

    def __post_init__(self) -> None:
        check_t_min(self.t_min)


class CrossEntropy(DiscreteObjective):
    """Unweighted; `nll` is not a bound."""

    processes = ("masked", "uniform", "mask_uniform")
    trains_bound = False

    def forward(self, model: DenoisingModel, batch: Batch | Corrupted) -> Loss:
        drawn = self.draw(batch) if isinstance(batch, Batch) else batch
        scored = self.scored(drawn.x_t)
        if drawn.given is not None:
            scored = scored & ~drawn.given
        weight = drawn.weight.float() * scored
        count = weight.sum().clamp(min=1e-6)  # nothing may be masked
        loss, losses = self._weighted(model, drawn, weight / count)
        terms = {"cross_entropy": (weight * losses).sum() / count}
        return Loss(loss, (weight * losses).sum(1), tokens_scored(drawn), terms)

    def scored(self, x_t: Tokens) -> Bool[Tensor, "B L"]:
        return self.process.is_masked(x_t) if self.process.absorbing else super().scored(x_t)

    def _weighted(
        self, model: DenoisingModel, drawn: Corrupted, weight: Float[Tensor, "B L"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "B L"]]:
        """The weighted sum, and every position's cross-entropy without gradient."""
        if self.process.absorbing:
            noisy = Noisy(drawn.x_t, self.process.noise_level(drawn.t), drawn.given, segment=drawn.segment)
            return model.weighted_cross_entropy(noisy, drawn.tokens, weight, drawn.rows)
        losses = own_entropy(self.process, self.predict(model, drawn), drawn.x_t, drawn.t, drawn.tokens).float()
        return (weight * losses).sum(), losses.detach()

    def bound(self, model: DenoisingModel, batch: Batch, noise: Noise, draws: int) -> Bound:
        return self.bounded_by_process().bound(model, batch, noise, draws)
