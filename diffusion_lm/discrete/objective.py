"""What the objectives over discrete processes share: drawing on the host, and bounds on a grid of noise levels."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import softplus

from diffusion_lm.discrete.process import SMALLEST, DiscreteProcess
from diffusion_lm.model import DenoisingModel
from diffusion_lm.noisy import Batch, Corrupted, Noisy, scored_rows
from diffusion_lm.objectives.base import Bound, Loss, Objective
from diffusion_lm.prompts import draw_given
from diffusion_lm.random import Noise, Stream, stratified_levels
from diffusion_lm.readouts import Readout
from diffusion_lm.shapes import Bool, Float, Rows, Tensor, Times, Tokens

LEAST_NOISE = 1e-3
"""Noise level that training reaches at the least."""
LEAST_SHARE = 0.05
"""Of masks, and of random tokens, at the position that is replaced for certain. More of the rarer kind would make up
for variance that the usual mixtures do not have."""


@dataclass(frozen=True)
class Drawn:
    """States of some rows at a time, drawn so that no weight is large.

    weight: probability of the draw under the process over that under what was drawn from. [B]
    """

    x_t: Tokens
    t: Times
    weight: Rows


Integrand = Callable[[Readout, Drawn], Float[Tensor, "B L"]]
"""Nats per position at a draw: per unit of noise level, or in one step."""


class DiscreteObjective(Objective):
    """An objective whose states are ids."""

    process: DiscreteProcess
    default_schedule = "log_linear"
    t_min: float
    """Smallest time in training."""

    def draw(self, batch: Batch) -> Corrupted:
        noise = self.training_noise.noise(batch.position)
        u, weight = self.training_noise.times(batch.position)
        t = self.training_time(u)
        x_t = self.process.corrupt(batch.tokens, t, noise)
        given = draw_given(self.prompt, noise, batch.tokens.shape[1])
        if given is not None:
            x_t = x_t.where(~given, batch.tokens)
        scored = self.scored(x_t) if given is None else self.scored(x_t) & ~given
        rows, count = scored_rows(scored), self.mean_counted(batch)
        return Corrupted(batch.tokens, x_t, t, weight, given, rows, count, **batch.surroundings())

    def training_time(self, u: Times) -> Times:
        """The time that is trained on, for a draw in [0, 1)."""
        t_min = self.config.t_min
        return t_min + (1 - t_min) * u

    def check(self) -> None:
        times = self.training_noise.time_sampler.config
        most = self.training_time(torch.tensor([[times.low], [times.high]], dtype=torch.float64))
        level = float(self.process.noise_level(most).max())
        if not level >= LEAST_NOISE:
            raise ValueError(
                f"times: got noise levels of at most {level:.3g} in the range that is trained on, expected at least "
                f"{LEAST_NOISE}: with so little noise there is nothing to learn; raise times.high, or objective.t_min"
            )

    def scored(self, x_t: Tokens) -> Bool[Tensor, "B L"]:
        """The positions whose prediction the loss looks at."""
        return self.process.is_masked(x_t) if self.process.absorbing else torch.ones_like(x_t, dtype=torch.bool)

    def predict(self, model: DenoisingModel, drawn: Corrupted) -> Readout:
        """The model's prediction at a training draw."""
        return model(Noisy(drawn.x_t, self.process.noise_level(drawn.t), drawn.given, **drawn.surroundings()))

    def loss_of_masked(self, model: DenoisingModel, drawn: Corrupted, rate: Times, level: Times) -> Loss:
        """rate x the readout's loss of the token, summed over masked positions; the head runs on their rows alone."""
        masked = self.process.is_masked(drawn.x_t)
        weight = (drawn.weight * rate).float() * masked
        noisy = Noisy(drawn.x_t, level, drawn.given, **drawn.surroundings())
        share = weight / drawn.count.unsqueeze(1) / len(weight)
        loss, losses = model.weighted_cross_entropy(noisy, drawn.tokens, share, drawn.rows)
        mean = losses.sum() / masked.sum().clamp(min=1)
        name = "cross_entropy" if self.readout == "posterior" else "score_entropy"
        return Loss(loss, (weight * losses).sum(1), tokens_scored(drawn), {name: mean})

    def loss_of_all(self, prediction: Readout, drawn: Corrupted, losses: Float[Tensor, "B L"]) -> Loss:
        """Losses of all positions, summed over those that are not given."""
        if drawn.given is not None:
            losses = losses.masked_fill(drawn.given, 0.0)
        nll = (drawn.weight.squeeze(1) * losses.sum(1)).float()
        terms = {"cross_entropy": mean_entropy(self.process, prediction, drawn)}
        return Loss((nll / drawn.count).mean(), nll.detach(), tokens_scored(drawn), terms)


def check_t_min(t_min: float) -> None:
    """Refuse a cut that is no time."""
    if not 0 < t_min < 1:
        raise ValueError(f"t_min: got {t_min}, expected 0 < t_min < 1")


def tokens_scored(drawn: Corrupted) -> Rows:
    """Positions per row that are not given, float32."""
    if drawn.given is None:
        return torch.full((len(drawn.tokens),), float(drawn.tokens.shape[1]), device=drawn.tokens.device)
    return (~drawn.given).sum(1).float()


def draw_states(process: DiscreteProcess, x_0: Tokens, t: Times, noise: Noise) -> Drawn:
    """x_t, in half of the draws with one position, chosen uniformly, that is replaced for certain.

    The integrands grow as 1 / m at masked positions when the mask's mass m goes to 0, and as 1 / u at random tokens
    with theirs, u: plain draws have infinite variance. The chosen position is the mask with probability f, the mask's
    share of the noise but not less than `LEAST_SHARE` of either kind that there is. With k masks and n random tokens
    among L positions this draw's weight 2 L / (L + k f / m + n (1 - f) / u) keeps k / m and n / u bounded.
    """
    length = x_0.shape[1]
    masses = process.masses(t)
    total, random = 1 - masses.alpha, process.vocabulary * masses.token
    plain = (masses.mask / total.clamp(min=SMALLEST)).clamp(0.0, 1.0)
    share = torch.where((masses.mask > 0) & (random > 0), plain.clamp(LEAST_SHARE, 1 - LEAST_SHARE), plain)
    choice = noise.uniform(Stream.FORCE, 2)
    place = (choice[:, :1] * length).long()
    forced = (torch.arange(length, device=x_0.device) == place) & (choice[:, 1:] < 0.5)
    replaced = forced | (noise.uniform(Stream.CORRUPT, length) < total)
    x_t = torch.where(replaced, process.draw_noise(x_0, torch.where(forced, share, plain), noise), x_0)
    masked = process.is_masked(x_t)
    of_masks = masked.sum(1, keepdim=True) * share / masses.mask.clamp(min=SMALLEST)
    of_tokens = (replaced & ~masked).sum(1, keepdim=True) * (1 - share) / random.clamp(min=SMALLEST)
    return Drawn(x_t, t, (2 * length / (length + of_masks + of_tokens)).squeeze(1))


def bound_on_levels(
    process: DiscreteProcess,
    integrand: Integrand,
    model: DenoisingModel,
    batch: Batch,
    noise: Noise,
    draws: int,
    end: float = 1.0,
) -> Bound:
    """The integral of `integrand` over the noise level from 0 to `end`, from K stratified levels per row."""
    levels = end * stratified_levels(noise, draws)
    nll, entropy = [], []
    for k in range(draws):
        t = process.time_of(levels[:, k : k + 1])
        drawn = draw_states(process, batch.tokens, t, noise.at(k))
        prediction = model(Noisy(drawn.x_t, levels[:, k : k + 1], **batch.surroundings()))
        nll.append(drawn.weight * integrand(prediction, drawn).sum(1))
        entropy.append(own_entropy(process, prediction, drawn.x_t, t, batch.tokens).mean(1))
    total = end * torch.stack(nll, 1).mean(1)
    tokens = torch.full_like(total, batch.tokens.shape[1])
    return Bound(total, tokens, {"diffusion": total}, levels, torch.stack(entropy, 1))


def own_entropy(
    process: DiscreteProcess, prediction: Readout, x_t: Tokens, t: Times, x_0: Tokens
) -> Float[Tensor, "B L"]:
    """-ln p(x_0^i | x_t) = -ln p(x_0^i | others) - ln q(x_t^i | x_0^i) + ln sum_v p(v | others) q(x_t^i | v), float64.

    The prediction is of p(. | others); what x_t^i itself says of x_0^i comes from the process.
    """
    log_p = torch.log_softmax(prediction.posterior(process, x_t, t).logits, -1)
    masked = process.is_masked(x_t)
    masses = process.masses(t)
    log_beta = torch.log(masses.alpha.clamp(min=SMALLEST)) - torch.log(masses.token.clamp(min=SMALLEST))
    of_x = log_p.gather(-1, x_0.unsqueeze(-1)).squeeze(-1)
    of_z = log_p.gather(-1, x_t.masked_fill(masked, 0).unsqueeze(-1)).squeeze(-1)
    kept = softplus(log_beta, threshold=40) * (x_t == x_0)
    own = softplus(log_beta + of_z.double(), threshold=40) - kept
    return own.masked_fill(masked, 0.0) - of_x


@torch.no_grad()
def mean_entropy(process: DiscreteProcess, prediction: Readout, drawn: Corrupted) -> Float[Tensor, ""]:
    """Mean of `own_entropy` over the positions that are not given, float32: a term to log."""
    losses = own_entropy(process, prediction, drawn.x_t, drawn.t, drawn.tokens)
    if drawn.given is not None:
        losses = losses.masked_fill(drawn.given, 0.0)
    return (losses.sum() / tokens_scored(drawn).sum()).float()
