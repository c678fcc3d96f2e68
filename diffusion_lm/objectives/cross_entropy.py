"""cross_entropy: the plain cross-entropy of corrupted tokens, as in MaskGIT (arXiv 2202.04200). Not a bound.

Every scored position counts alike, whatever the time: masked positions of a masked state, all positions where tokens
are replaced by others (there with what x_t^i itself says of x_0^i). MaskGIT's loss is the expected sum over the masked
positions (its equation 1); here it stands over the number of masks expected in the global batch at its times, so that
it depends neither on how many happen to be masked nor on how the batch is split. The reported likelihood is the bound
of the process. Bounds weigh small noise levels more; leaving the weights out lowers the gradient's variance.
"""

from dataclasses import dataclass

import torch

from diffusion_lm.discrete.objective import DiscreteObjective, check_t_min, own_entropy
from diffusion_lm.model import DenoisingModel
from diffusion_lm.noisy import Batch, Corrupted
from diffusion_lm.objectives.base import Bound, Loss
from diffusion_lm.random import Noise
from diffusion_lm.shapes import Positions, Rows


@dataclass(kw_only=True, slots=True)
class CrossEntropyConfig:
    t_min: float = 1e-3
    """Smallest time in training."""

    def __post_init__(self) -> None:
        check_t_min(self.t_min)


class CrossEntropy(DiscreteObjective):
    """Unweighted; `nll` is not a bound."""

    processes = ("masked", "uniform", "mask_uniform")
    exact_alone = ("masked",)
    trains_bound = False

    def forward(self, model: DenoisingModel, batch: Batch | Corrupted) -> Loss:
        drawn = self.draw(batch) if isinstance(batch, Batch) else batch
        if self.process.absorbing:
            return self.loss_of_masked(model, drawn, torch.ones_like(drawn.t), self.process.noise_level(drawn.t))
        prediction = self.predict(model, drawn)
        losses = own_entropy(self.process, prediction, drawn.x_t, drawn.t, drawn.tokens)
        return self.loss_of_all(prediction, drawn, losses)

    def counted(self, position: Positions, length: int) -> Rows:
        """Weighed as the row's time is; of masked positions as many as are expected at it."""
        u, weight = self.training_noise.times(position)
        level = self.process.noise_level(self.training_time(u)) if self.process.absorbing else torch.ones_like(u)
        return super().counted(position, length) * (weight * level).squeeze(1).float()

    def bound(self, model: DenoisingModel, batch: Batch, noise: Noise, draws: int) -> Bound:
        return self.bounded_by_process().bound(model, batch, noise, draws)
