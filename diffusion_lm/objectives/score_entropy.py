"""score_entropy: SEDD (arXiv 2310.16834), for absorbing (masked) and uniform noise, with a readout of its own.

The network gives the ratios s(v) = p_t(x with v at i) / p_t(x), positive and not normalised. With rho the true ratios
given x_0 and r the rate of arrival at the present state z,

    -ln p(x) <= E_t[ sum_i r_t(z) sum_{v != z} (s(v) - rho(v) ln s(v) + rho(v) (ln rho(v) - 1)) ]

(equation 10 with the process's rates). The network's output is ln s minus the known factor: alpha / (mask V) at a
masked position, 1 elsewhere, so that an untrained one starts from the uniform prediction. With normalised outputs this
would be the masked bound under another name: at a masked position the loss is, with the right weight,

    sum_v s'(v) / V - ln s'(x_0) + ln V - 1 = CE + e^y - y - 1,   y = ln mean_v s'(v),

s' being the network's output without the factor, and CE the cross-entropy of softmax(ln s'). Training over masks runs
the head on the masked rows alone, as that bound does. At t = 0 the ratios are infinite, so tokens are drawn from the
posterior that they imply.

For uniform noise the rate grows as 1 / alpha while nothing forces the ratios to 1, so the integral down to alpha = 0 is
infinite for all but perfect networks: the bound is that of a chain that starts at alpha = `UNIFORM_END`, with the KL
divergence between the noise there and the uniform prior as a term of its own.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from diffusion_lm.discrete.divergence import prior_divergence
from diffusion_lm.discrete.objective import (
    DiscreteObjective,
    Drawn,
    bound_on_levels,
    check_t_min,
)
from diffusion_lm.discrete.process import SMALLEST, DiscreteProcess
from diffusion_lm.discrete.whole_range import whole_range
from diffusion_lm.model import DenoisingModel
from diffusion_lm.noisy import Batch, Corrupted
from diffusion_lm.objectives.base import Bound, Loss
from diffusion_lm.random import Noise
from diffusion_lm.readouts import Readout
from diffusion_lm.shapes import Float, Tensor, Times, Tokens

UNIFORM_END = 1e-3
"""alpha at which the chain of uniform noise starts, in training and in the reported bound, as in SEDD."""


@dataclass(kw_only=True, slots=True)
class ScoreEntropyConfig:
    t_min: float = 1e-3
    """Smallest time in training."""

    def __post_init__(self) -> None:
        check_t_min(self.t_min)


class ScoreEntropy(DiscreteObjective):
    """Denoising score entropy, weighted as the process jumps."""

    processes = ("masked", "uniform")
    readout = "score"

    def depends_on(self) -> dict[str, Any]:
        return super().depends_on() | ({} if self.process.absorbing else {"alpha_end": UNIFORM_END})

    def check(self) -> None:
        last = float(self._last_time(torch.zeros((), dtype=torch.float64)))
        if not last > self.config.t_min:
            raise ValueError(
                f"t_min: got {self.config.t_min}, expected less than {last:.3g}, the time at which this schedule "
                f"reaches alpha = {UNIFORM_END}, where score entropy over uniform noise ends; lower objective.t_min, "
                "or take a schedule that begins with less noise"
            )
        super().check()

    def training_time(self, u: Times) -> Times:
        return self.config.t_min + (self._last_time(u) - self.config.t_min) * u

    def _last_time(self, like: Tensor) -> Times:
        """1, or where the chain of uniform noise ends: at alpha = 0 its weights would be infinite."""
        end = torch.full((1, 1), 1 - UNIFORM_END, dtype=torch.float64, device=like.device)
        return torch.ones_like(end) if self.process.absorbing else self.process.time_of(end)

    def forward(self, model: DenoisingModel, batch: Batch | Corrupted) -> Loss:
        drawn = self.draw(batch) if isinstance(batch, Batch) else batch
        if self.process.absorbing:
            rate, level = self.process.unmasking_rate(drawn.t), self.process.noise_level(drawn.t)
            return self.loss_of_masked(model, drawn, rate, level)
        prediction = self.predict(model, drawn)
        losses = score_entropy(self.process, prediction, drawn.tokens, drawn.x_t, drawn.t)
        return self.loss_of_all(prediction, drawn, losses)

    def bound(self, model: DenoisingModel, batch: Batch, noise: Noise, draws: int) -> Bound:
        process = whole_range(self.process)

        def nats(prediction: Readout, drawn: Drawn) -> Float[Tensor, "B L"]:
            losses = score_entropy(process, prediction, batch.tokens, drawn.x_t, drawn.t)
            return losses / -process.alpha_prime(drawn.t)

        end = 1.0 if process.absorbing else 1 - UNIFORM_END
        found = bound_on_levels(process, nats, model, batch, noise, draws, end)
        masses = process.masses(process.time_of(torch.full((1, 1), end, dtype=torch.float64, device=found.nll.device)))
        prior = (batch.tokens.shape[1] * prior_divergence(masses, process.vocabulary)).squeeze(1).expand_as(found.nll)
        return replace(found, nll=found.nll + prior, terms=found.terms | {"prior": prior})


def score_entropy(
    process: DiscreteProcess, prediction: Readout, x_0: Tokens, x_t: Tokens, t: Times
) -> Float[Tensor, "B L"]:
    """Rate of loss per position, nats per unit of t, float64.

    Sums over tokens v other than x_t are split: rho differs from its common value `low` at v = x_0 alone.
    """
    masses, (to_mask, to_token) = process.masses(t), process.rates(t)
    masked = process.is_masked(x_t)
    rate = torch.where(masked, to_mask, to_token)
    same = x_t == x_0
    here = (masses.of(x_t, process.mask_id) + masses.alpha * same).clamp(min=SMALLEST)
    low, high = masses.token / here, (masses.token + masses.alpha) / here
    factor = process.log_score_factor(x_t, t)

    v = process.vocabulary
    logits = prediction.logits[..., :v]
    itself = torch.arange(v, device=x_t.device) == x_t.unsqueeze(-1)
    log_sum = torch.logsumexp(logits.masked_fill(itself, -torch.inf), -1).double() + factor
    log_total = logits.masked_fill(itself, 0.0).sum(-1, dtype=torch.float64) + (v - 1 + masked) * factor
    log_of_x = logits.gather(-1, x_0.unsqueeze(-1)).squeeze(-1).double() + factor
    # v = x_0 is among the others unless x_t is x_0 itself
    extra = (high - low).masked_fill(same, 0.0)
    known = (v - 1 + masked.double() - (~same).double()) * _entropy_constant(low)
    known = known + _entropy_constant(high).masked_fill(same, 0.0)
    return rate * (torch.exp(log_sum) - low * log_total - extra * log_of_x + known)


def _entropy_constant(rho: Float[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """rho (ln rho - 1), 0 at 0."""
    return torch.xlogy(rho, rho) - rho
