"""gaussian: embedded tokens with Gaussian noise, x_t = sqrt(alpha_t) x_0 + sqrt(1 - alpha_t) eps.

Variance-preserving diffusion (Ho et al., arXiv 2006.11239; Kingma et al., arXiv 2107.00630) on token embeddings, as in
Plaid (arXiv 2305.18619). The schedule is used inside a finite log-SNR range, so that every term of the variational
bound is finite: at `log_snr_max` a token is all but certain from its own vector, at `log_snr_min` the state is all but
independent of the text. A fixed schedule is cut at the ends of the range; a learned one has ends of its own inside it.
"""

from dataclasses import dataclass

import torch

from diffusion_lm.precision import wide
from diffusion_lm.processes.base import Distribution, Process
from diffusion_lm.random import Noise, Stream
from diffusion_lm.readouts import Readout
from diffusion_lm.schedules.base import NoiseSchedule
from diffusion_lm.shapes import Bool, Float, Hidden, Tensor, Times, Tokens


@dataclass(kw_only=True, slots=True)
class GaussianConfig:
    log_snr_max: float = 3.0
    """ln(alpha / (1 - alpha)) at t = 0; a learned schedule's t = 0 lies below."""
    log_snr_min: float = -7.0
    """ln(alpha / (1 - alpha)) at t = 1; the prior term is at most about D exp(log_snr_min) / 2 nats per token."""

    def __post_init__(self) -> None:
        if not -40 <= self.log_snr_min < self.log_snr_max <= 30:
            raise ValueError(
                f"log-SNR range: got {self.log_snr_min} to {self.log_snr_max}, expected "
                "-40 <= log_snr_min < log_snr_max <= 30"
            )


@dataclass(frozen=True)
class Normal(Distribution):
    """Independent normal distributions of equal variance per position. mean [B, L, D], std [B, #L, 1] float64."""

    mean: Hidden
    std: Float[Tensor, "B #L 1"]

    def sample(self, noise: Noise) -> Hidden:
        draw = noise.normal(Stream.CORRUPT, *self.mean.shape[1:])
        return (self.mean + self.std * draw).to(self.mean.dtype)


class Gaussian(Process):
    """Gaussian noise on token embeddings, over a finite log-SNR range."""

    discrete = False
    bound_objective = "gaussian"

    def __init__(self, config: GaussianConfig, schedule: NoiseSchedule, vocabulary: int) -> None:
        super().__init__(config, schedule.within(config.log_snr_max, config.log_snr_min), vocabulary)
        self.log_snr_max, self.log_snr_min = self.schedule.log_snr_max, self.schedule.log_snr_min

    @property
    def symbols(self) -> int:
        return self.vocabulary

    def alpha(self, t: Times) -> Times:
        return self.schedule.alpha(t)

    def log_snr(self, t: Times) -> Times:
        """ln(alpha_t / (1 - alpha_t)), finite for t in [0, 1]."""
        return self.schedule.log_snr(t)

    def noise_level(self, t: Times) -> Times:
        return self.level_of(self.log_snr(t))

    def level_of(self, log_snr: Times) -> Times:
        """What the network is told about a log-SNR: 0 at log_snr_max, 1 at log_snr_min, also where a learned schedule
        does not use the whole range."""
        return (self.log_snr_max - log_snr) / (self.log_snr_max - self.log_snr_min)

    def encode(self, tokens: Tokens, table: Float[Tensor, "V D"]) -> Hidden:
        return torch.nn.functional.embedding(tokens, table)

    def prior(self, like: Tokens, table: Float[Tensor, "V D"], noise: Noise) -> Hidden:
        return noise.normal(Stream.PRIOR, like.shape[1], table.shape[1]).to(table.dtype)

    def corrupt(self, x: Hidden, t: Times, noise: Noise, s: Times | None = None) -> Hidden:
        ratio = self.alpha(t) if s is None else self.alpha(t) / self.alpha(s)
        return _normal(x, ratio).sample(noise)

    def marginal(self, x_0: Hidden, t: Times) -> Normal:
        return _normal(x_0, self.alpha(t))

    def marginal_at(self, x_0: Hidden, log_snr: Times) -> Normal:
        """q(x_t | x_0) at the time that has this log-SNR."""
        return _normal(x_0, torch.sigmoid(log_snr))

    def reverse(self, x_t: Hidden, prediction: Readout, t: Times, s: Times, table: Float[Tensor, "V D"]) -> Normal:
        """q(x_s | x_t, x_0 = x_0_hat) with x_0_hat = softmax(logits) @ table (Ho et al., equation 7)."""
        alpha_t, alpha_s = self.alpha(t), self.alpha(s)
        ratio = alpha_t / alpha_s
        from_state = torch.sqrt(ratio) * (1 - alpha_s) / (1 - alpha_t)
        from_estimate = torch.sqrt(alpha_s) * (1 - ratio) / (1 - alpha_t)
        std = torch.sqrt((1 - alpha_s) * (1 - ratio) / (1 - alpha_t))
        mean = _channel(from_state, x_t) * x_t + _channel(from_estimate, x_t) * prediction.estimate(table)
        return Normal(mean, std.unsqueeze(-1))

    def decode(self, x: Hidden, prediction: Readout, noise: Noise) -> Tokens:
        return prediction.draw(noise)

    def holds_tokens(self, x: Hidden, t: Times) -> Bool[Tensor, "B"]:
        return torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def token_evidence(
        self, x: Hidden, noise_level: Float[Tensor, "B #L"], table: Float[Tensor, "V D"]
    ) -> Float[Tensor, "B L V"]:
        """ln N(x; sqrt(alpha) e_v, 1 - alpha) up to a constant, for every token v: Plaid's output prior.

        sqrt(alpha) / (1 - alpha) x . e_v - alpha |e_v|^2 / (2 (1 - alpha)), float32 or better.
        """
        log_snr = self.log_snr_max - noise_level.to(torch.float64) * (self.log_snr_max - self.log_snr_min)
        snr = torch.exp(log_snr)
        table = wide(table)
        gain = torch.sqrt(snr * (1 + snr)).to(table.dtype).unsqueeze(-1)
        with torch.autocast(x.device.type, enabled=False):  # bfloat16's error times the gain would be whole nats
            product = x.to(table.dtype) @ table.T
        return gain * product - 0.5 * snr.to(table.dtype).unsqueeze(-1) * table.square().sum(1)


def _channel(value: Times, like: Hidden) -> Float[Tensor, "B #L 1"]:
    return value.to(like.dtype).unsqueeze(-1)


def _normal(x: Hidden, alpha: Times) -> Normal:
    return Normal(_channel(torch.sqrt(alpha), x) * x, torch.sqrt(1 - alpha).unsqueeze(-1))
