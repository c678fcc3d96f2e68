"""gumbel: alpha(t) = sigmoid( beta ln(-ln u) - mu ), u = cut + (1 - 2 cut) t.

With t uniform -log SNR = mu - beta ln(-ln u) has a Gumbel distribution, as far as `cut` allows: without it the ends
would be infinite. LangFlow (arXiv 2604.11748) fits it to where its loss falls, for 768-dimensional embeddings of norm
sqrt(768): mu = 4.723, beta = 0.852, so that -log SNR runs from 2.64 to 14.5. With D dimensions and norm sqrt(D) a
vector tells as much of its token at a log-SNR that is higher by ln(768 / D): take mu lower by that (0.85 for D = 16).
"""

import math
from dataclasses import dataclass

import torch

from diffusion_lm.schedules.base import NoiseSchedule, Time


@dataclass(kw_only=True, slots=True)
class GumbelConfig:
    mu: float = 4.723
    """Most probable -log SNR."""
    beta: float = 0.852
    """Scale of the Gumbel distribution; its standard deviation is 1.28 times this."""
    cut: float = 1e-5
    """Share of the distribution that is left out at either end."""

    def __post_init__(self) -> None:
        if not 1e-12 <= self.cut < 0.5:
            raise ValueError(f"cut: got {self.cut}, expected 1e-12 <= cut < 0.5 (at 0 the ends are infinite)")
        if not 0 < self.beta < math.inf:
            raise ValueError(f"beta: got {self.beta}, expected more than 0")
        low, high = (_quantile(self, u) for u in (self.cut, 1 - self.cut))
        if not -80 <= low < high <= 80:
            raise ValueError(
                f"-log SNR: got {low:g} to {high:g}, expected it between -80 and 80; lower beta, or raise cut"
            )


class Gumbel(NoiseSchedule):
    """-log SNR is the quantile function of a Gumbel distribution."""

    def __init__(self, config: GumbelConfig) -> None:
        super().__init__(config)
        self.alpha_0, self.alpha_1 = (1 / (1 + math.exp(_quantile(config, u))) for u in (config.cut, 1 - config.cut))
        self.share = 1 - 2 * config.cut

    def alpha(self, t: Time) -> Time:
        return torch.sigmoid(self.log_snr(t))

    def alpha_prime(self, t: Time) -> Time:
        log_snr = self.log_snr(t)
        return torch.sigmoid(log_snr) * torch.sigmoid(-log_snr) * self.log_snr_prime(t)

    def inverse(self, alpha: Time) -> Time:
        surprise = torch.exp((torch.logit(alpha) + self.config.mu) / self.config.beta)  # -ln u
        return ((torch.exp(-surprise) - self.config.cut) / self.share).clamp(0.0, 1.0)

    def log_snr(self, t: Time) -> Time:
        return self.config.beta * torch.log(self._surprise(t)) - self.config.mu

    def log_snr_prime(self, t: Time) -> Time:
        surprise = self._surprise(t)
        return -self.config.beta * self.share * torch.exp(surprise) / surprise

    def _surprise(self, t: Time) -> Time:
        """-ln u; in the later half from 1 - u, which has its digits there."""
        u, rest = self.config.cut + self.share * t, self.config.cut + self.share * (1 - t)
        return torch.where(t < 0.5, -torch.log(u), -torch.log1p(-rest))


def _quantile(config: GumbelConfig, u: float) -> float:
    return config.mu - config.beta * math.log(-math.log(u))
