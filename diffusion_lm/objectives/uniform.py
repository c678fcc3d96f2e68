"""uniform: the continuous-time bound of uniform-state diffusion, in Duo's form without one-hots.

    -ln p(x) <= E_t[ sum_i r_t / q_t(z | x_0) (KL(q_t(. | x_0) || q_t(. | prediction)) + rho - ln rho - 1) ]

UDLM (arXiv 2412.10193, equation 14) and Duo (arXiv 2506.10892) write the same with x_bar = V alpha x + 1 - alpha. Every
position counts, not only the replaced ones. The optimum is the leave-one-out posterior p(x_0^i | x_t without i), with
which the bound is the entropy; with the plain posterior p(x_0^i | x_t) it stays above. So the network must disregard
its own input at position i when it predicts there.
"""

from dataclasses import dataclass

from diffusion_lm.discrete.divergence import jump_divergence, jump_weight
from diffusion_lm.discrete.objective import (
    DiscreteObjective,
    Drawn,
    bound_on_levels,
    check_t_min,
)
from diffusion_lm.discrete.whole_range import whole_range
from diffusion_lm.model import DenoisingModel
from diffusion_lm.noisy import Batch, Corrupted
from diffusion_lm.objectives.base import Bound, Loss
from diffusion_lm.random import Noise
from diffusion_lm.readouts import Readout
from diffusion_lm.shapes import Float, Tensor


@dataclass(kw_only=True, slots=True)
class UniformBoundConfig:
    t_min: float = 1e-3
    """Smallest time in training, where the weight of a replaced token is about 1 / t."""

    def __post_init__(self) -> None:
        check_t_min(self.t_min)


class UniformBound(DiscreteObjective):
    """The bound of every jump, weighted as the process jumps."""

    processes = ("uniform",)

    def forward(self, model: DenoisingModel, batch: Batch | Corrupted) -> Loss:
        drawn = self.draw(batch) if isinstance(batch, Batch) else batch
        prediction, process = self.predict(model, drawn), self.process
        posterior = prediction.posterior(process, drawn.x_t, drawn.t)
        cost = jump_divergence(process, posterior, drawn.tokens, drawn.x_t, drawn.t)
        return self.loss_of_all(prediction, drawn, self.training_weight(drawn) * cost)

    def training_weight(self, drawn: Corrupted) -> Float[Tensor, "B L"]:
        """Weight of a position's divergence: the bound's own."""
        return jump_weight(self.process, drawn.tokens, drawn.x_t, drawn.t)

    def bound(self, model: DenoisingModel, batch: Batch, noise: Noise, draws: int) -> Bound:
        process = whole_range(self.process)

        def nats(prediction: Readout, drawn: Drawn) -> Float[Tensor, "B L"]:
            posterior = prediction.posterior(process, drawn.x_t, drawn.t)
            rate = jump_weight(process, batch.tokens, drawn.x_t, drawn.t) / -process.alpha_prime(drawn.t)
            return rate * jump_divergence(process, posterior, batch.tokens, drawn.x_t, drawn.t)

        return bound_on_levels(process, nats, model, batch, noise, draws)
