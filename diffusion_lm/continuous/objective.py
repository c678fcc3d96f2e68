"""What the objectives of a Gaussian process share: states drawn at a log-SNR, and the one call of the network."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from diffusion_lm.model import DenoisingModel
from diffusion_lm.noisy import Batch, Noisy
from diffusion_lm.objectives.base import Objective
from diffusion_lm.precision import wide
from diffusion_lm.prompts import draw_given
from diffusion_lm.random import Noise
from diffusion_lm.readouts import Readout
from diffusion_lm.self_conditioning import with_own_estimate
from diffusion_lm.shapes import Bool, Float, Given, Hidden, Rows, Tensor, Times


@dataclass(frozen=True)
class Embedded:
    """A training batch of a Gaussian process. scored: positions that are not given [B, L]; tokens: their number [B].

    count: what the loss of a row is divided by (`Objective.mean_counted`). answer: x_0 where prompts leak.
    """

    table: Float[Tensor, "V D"]
    x_0: Hidden
    noise: Noise
    given: Given | None
    scored: Bool[Tensor, "B L"]
    tokens: Rows
    count: Rows
    answer: Hidden | None


class GaussianObjective(Objective):
    """An objective of embedded tokens. Networks are called in `_predict` and nowhere else."""

    processes = ("gaussian",)
    default_schedule = "cosine"
    shows_answer = True

    def depends_on(self) -> dict[str, Any]:
        """The log-SNR at t = 0 and t = 1; a learned schedule's own."""
        return {"log_snr_range": [round(float(end.detach()), 6) for end in self.process.schedule.ends(torch.zeros(()))]}

    def _embedded(self, model: DenoisingModel, batch: Batch) -> Embedded:
        """A training batch with its embeddings and its prompts."""
        noise, table = self.training_noise.noise(batch.position), model.table()
        given = draw_given(self.prompt, noise, batch.tokens.shape[1])
        scored = torch.ones_like(batch.tokens, dtype=torch.bool) if given is None else ~given
        x_0 = self.process.encode(batch.tokens, table)
        answer = x_0 if self.prompt.leak else None
        tokens, count = scored.sum(1).to(torch.float32), self.mean_counted(batch)
        return Embedded(table, x_0, noise, given, scored, tokens, count, answer)

    def _predict(
        self,
        model: DenoisingModel,
        x_0: Hidden,
        log_snr: Times,
        noise: Noise,
        given: Given | None,
        *,
        answer: Hidden | None = None,
        evaluation: bool = False,
        beside: Mapping[str, Any] = MappingProxyType({}),
    ) -> Readout:
        """What the network says of x_0 from a state drawn at that log-SNR.

        `beside`: the batch's surroundings. A self-conditioned network sees its own first estimate in a share of the
        rows, in `evaluation` in all of them.
        """
        x_t = self.process.marginal_at(x_0, log_snr).sample(noise)
        if given is not None:
            x_t = torch.where(given.unsqueeze(-1), x_0, x_t)
        noisy = Noisy(x_t, self.process.level_of(log_snr), given, answer=answer, **beside)
        return model(with_own_estimate(model, noisy, None if evaluation else noise))

    def _recoverable(self, table: Float[Tensor, "V D"], log_snr: Times) -> Float[Tensor, ""]:
        """Share of times at which a token can be told from its own noisy vector alone, whatever stands beside it.

        Nearest-neighbour decoding of V random vectors of norm R succeeds at signal-to-noise ratios above 2 ln V / R^2.
        """
        vectors = table[: self.process.vocabulary].detach().double()
        point = 2 * torch.log(torch.full_like(vectors[0, 0], len(vectors))) / vectors.square().sum(1).mean()
        return (log_snr.detach().exp() >= point).to(torch.float32).mean()


def squared_error(prediction: Readout, x_0: Hidden, table: Float[Tensor, "V D"]) -> Float[Tensor, "B L"]:
    """|x_0 - x_0_hat|^2 per position."""
    return (wide(x_0) - prediction.estimate(table)).square().sum(-1)


def variance(per_row: Rows) -> Float[Tensor, ""]:
    """Unbiased variance over rows, 0 for a row alone."""
    return per_row.var() if len(per_row) > 1 else torch.zeros_like(per_row[0])
