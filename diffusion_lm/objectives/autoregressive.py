"""autoregressive: next-token cross-entropy, -ln p(x) = sum_i -ln p(x_i | x_1 .. x_{i-1}). Exact, not a bound.

The baseline of every diffusion language model, on the same denoisers with causal mixers: the input of position i is
token i - 1, that of the first a begin marker (the mask id), so all tokens are scored. Every prefix is a prompt here, so
`prompt` has nothing to add.
"""

from dataclasses import dataclass
from typing import Any

import torch

from diffusion_lm.model import DenoisingModel
from diffusion_lm.noisy import Batch, Corrupted, Noisy
from diffusion_lm.objectives.base import Bound, Loss, Objective
from diffusion_lm.random import Noise
from diffusion_lm.shapes import Float, Tensor


@dataclass(kw_only=True, slots=True)
class AutoregressiveConfig:
    """Nothing to set."""

    def unused(self, experiment: Any) -> dict[str, str]:
        """Keys that this objective does not look at; prompt.fraction 0 says what it does."""
        why = "to objective 'autoregressive' every prefix is a prompt, and all tokens are scored"
        prompts = {"prompt": why} if experiment.prompt.fraction else {}
        return {"times": "objective 'autoregressive' draws no times: nothing is noised"} | prompts


class Autoregressive(Objective):
    """Exact negative log-likelihood of a causal denoiser."""

    processes = ("left_to_right",)
    default_schedule = "log_linear"
    default_sampler = "left_to_right"
    causal = True
    blockwise = False
    exact = True

    def forward(self, model: DenoisingModel, batch: Batch | Corrupted) -> Loss:
        loss, losses = self._next_token(model, batch)
        tokens = torch.full_like(losses[:, 0], losses.shape[1])
        return Loss(loss, losses.sum(1), tokens, {"cross_entropy": loss.detach()})

    def bound(self, model: DenoisingModel, batch: Batch, noise: Noise, draws: int) -> Bound:
        """The same whatever `draws` says: nothing is drawn. One level, 0."""
        losses = self._next_token(model, batch)[1].double()
        nll = losses.sum(1)
        level = torch.zeros_like(nll).unsqueeze(1)
        tokens = torch.full_like(nll, losses.shape[1])
        return Bound(nll, tokens, {"next_token": nll}, level.expand(-1, draws), losses.mean(1, True).expand(-1, draws))

    def _next_token(
        self, model: DenoisingModel, batch: Batch | Corrupted
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "B L"]]:
        """The mean to minimise, and every token's loss without gradient. Never all logits at once."""
        tokens = batch.tokens
        level = torch.zeros(len(tokens), 1, dtype=torch.float64, device=tokens.device)
        noisy = Noisy(tokens, level, **batch.surroundings())
        weight = torch.ones(tokens.shape, device=tokens.device)
        rows = torch.arange(tokens.numel(), device=tokens.device)
        total, losses = model.weighted_cross_entropy(noisy, tokens, weight, rows)
        return total / tokens.numel(), losses
