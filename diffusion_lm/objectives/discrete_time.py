"""discrete_time: the bound of a chain of T steps, for masked, uniform and mask_uniform noise.

    -ln p(x) <= E[-ln p(x | x_0)] + T E_i sum_positions KL(q(x_s | x_t, x) || p(x_s | x_t)) + KL(q_1(. | x) || p_1),

t = i / T, s = (i - 1) / T (D3PM, arXiv 2107.03006, equation 1; for masked noise MDLM, equation 8). More steps give a
tighter bound, with the continuous-time one as the limit. Unlike that one it depends on the schedule. The prior p_1 is
the noise of t = 1 with what is left of alpha spread evenly over the vocabulary. Over masks a step's divergence is
(alpha_s - alpha_t) / (1 - alpha_t) times the cross-entropy of the masked tokens, and the head runs on their rows alone.
"""

from dataclasses import dataclass
from typing import Any

import torch

from diffusion_lm.config import name_of, to_tree
from diffusion_lm.discrete.divergence import prior_divergence, step_divergence
from diffusion_lm.discrete.objective import DiscreteObjective, Drawn, draw_states, own_entropy
from diffusion_lm.kind import steps
from diffusion_lm.model import DenoisingModel
from diffusion_lm.noisy import Batch, Corrupted, Noisy, scored_rows
from diffusion_lm.objectives.base import Bound, Loss
from diffusion_lm.random import Noise, stratified_levels
from diffusion_lm.shapes import Float, Tensor, Times


@dataclass(kw_only=True, slots=True)
class DiscreteTimeConfig:
    num_steps: int = 1000
    """T."""

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps: got {self.num_steps}, expected at least 1")


class DiscreteTime(DiscreteObjective):
    """The bound in T steps, in training and in evaluation."""

    processes = ("masked", "uniform", "mask_uniform")

    @classmethod
    def over(cls, config: DiscreteTimeConfig) -> str:
        return steps(config.num_steps)

    def depends_on(self) -> dict[str, Any]:
        schedule = self.process.schedule.config
        made_by = {"num_steps": self.config.num_steps, "schedule": {"name": name_of(schedule), **to_tree(schedule)}}
        return super().depends_on() | made_by

    def training_time(self, u: Times) -> Times:
        return self._step_end(u)

    def forward(self, model: DenoisingModel, batch: Batch | Corrupted) -> Loss:
        drawn = self.draw(batch) if isinstance(batch, Batch) else batch
        s, steps = self._before(drawn.t), self.config.num_steps
        if self.process.absorbing:
            rate = steps * self.process.unmasking_share(drawn.t, s)
            return self.loss_of_masked(model, drawn, rate, self.process.noise_level(drawn.t))
        posterior = self.predict(model, drawn)
        step = step_divergence(self.process, posterior, drawn.tokens, drawn.x_t, drawn.t, s)
        return self.loss_of_all(posterior, drawn, steps * step)

    def bound(self, model: DenoisingModel, batch: Batch, noise: Noise, draws: int) -> Bound:
        process, length = self.process, batch.tokens.shape[1]
        u = stratified_levels(noise, draws)
        nll, entropy = [], []
        for k in range(draws):
            t = self._step_end(u[:, k : k + 1])
            drawn = draw_states(process, batch.tokens, t, noise.at(k))
            step, losses = self._step(model, batch, drawn)
            nll.append(drawn.weight * self.config.num_steps * step.sum(1))
            entropy.append(losses.mean(1))
        diffusion = torch.stack(nll, 1).mean(1)
        end = process.masses(torch.ones_like(u[:, :1]))
        prior = length * prior_divergence(end, process.vocabulary).squeeze(1)
        reconstruction = self._reconstruction(model, batch, noise.at(draws + 1))
        terms = {"reconstruction": reconstruction, "prior": prior, "diffusion": diffusion}
        tokens = torch.full_like(diffusion, length)
        level = process.noise_level(self._step_end(u))
        return Bound(reconstruction + prior + diffusion, tokens, terms, level, torch.stack(entropy, 1))

    def _step_end(self, u: Times) -> Times:
        """The later end of the step in which a time falls."""
        steps = self.config.num_steps
        return (1 + (u * steps).floor().clamp(max=steps - 1)) / steps

    def _before(self, t: Times) -> Times:
        """The earlier end of the step that ends at t."""
        return (t - 1 / self.config.num_steps).clamp(min=0.0)

    def _step(
        self, model: DenoisingModel, batch: Batch, drawn: Drawn
    ) -> tuple[Float[Tensor, "B L"], Float[Tensor, "B L"]]:
        """The divergence of a step, and -ln p(x | x_t), per position."""
        process, s = self.process, self._before(drawn.t)
        if process.absorbing:
            losses = self._masked_entropy(model, batch, drawn)
            return process.unmasking_share(drawn.t, s) * losses, losses
        posterior = model(Noisy(drawn.x_t, process.noise_level(drawn.t), **batch.surroundings()))
        step = step_divergence(process, posterior, batch.tokens, drawn.x_t, drawn.t, s)
        return step, own_entropy(process, posterior, drawn.x_t, drawn.t, batch.tokens)

    def _masked_entropy(self, model: DenoisingModel, batch: Batch, drawn: Drawn) -> Float[Tensor, "B L"]:
        """-ln p(x | x_t) at masked positions, 0 elsewhere; the head runs on their rows, which are counted here."""
        masked = self.process.is_masked(drawn.x_t)
        noisy = Noisy(drawn.x_t, self.process.noise_level(drawn.t), **batch.surroundings())
        _, losses = model.weighted_cross_entropy(noisy, batch.tokens, masked.float(), scored_rows(masked))
        return losses.double()

    def _reconstruction(self, model: DenoisingModel, batch: Batch, noise: Noise) -> Float[Tensor, "B"]:
        """-ln p(x | x_0) of the state at t = 0; nothing where alpha_0 is 1."""
        start = torch.zeros(len(batch.tokens), 1, dtype=torch.float64, device=batch.tokens.device)
        if float(self.process.alpha(start[:1])) == 1.0:
            return start.squeeze(1)
        drawn = draw_states(self.process, batch.tokens, start, noise)
        if self.process.absorbing:
            return drawn.weight * self._masked_entropy(model, batch, drawn).sum(1)
        prediction = model(Noisy(drawn.x_t, self.process.noise_level(start), **batch.surroundings()))
        return drawn.weight * own_entropy(self.process, prediction, drawn.x_t, start, batch.tokens).sum(1)
