"""logistic: alpha(t) = sigmoid( location + scale ln((1 - u) / u) ), u = cut + (1 - 2 cut) t.

With t uniform the log-SNR has a logistic distribution, as far as `cut` allows: without it the ends would be infinite.
scale = 2 is the schedule of flow matching along straight lines; scale = 1 is alpha = 1 - u; location moves it to
where the loss falls (Kingma and Gao, "Understanding diffusion objectives as the ELBO", arXiv 2303.00848).
"""

import math
from dataclasses import dataclass

import torch

from diffusion_lm.schedules.base import NoiseSchedule, Time


@dataclass(kw_only=True, slots=True)
class LogisticConfig:
    location: float = 0.0
    """Log-SNR at t = 1/2."""
    scale: float = 2.0
    """Scale of the logistic distribution; its standard deviation is 1.81 times this."""
    cut: float = 1e-5
    """Share of the distribution that is left out at either end."""

    def __post_init__(self) -> None:
        if not 1e-12 <= self.cut < 0.5:
            raise ValueError(f"cut: got {self.cut}, expected 1e-12 <= cut < 0.5 (at 0 the ends are infinite)")
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale: got {self.scale}, expected more than 0")
        reach = self.scale * math.log((1 - self.cut) / self.cut)
        if not abs(self.location) + reach <= 80:
            raise ValueError(
                f"log-SNR: got {self.location:g} - {reach:g} to {self.location:g} + {reach:g}, expected it between -80 "
                "and 80; lower scale, or raise cut"
            )


class Logistic(NoiseSchedule):
    """The log-SNR is the quantile function of a logistic distribution, turned round."""

    def __init__(self, config: LogisticConfig) -> None:
        super().__init__(config)
        reach = config.scale * math.log((1 - config.cut) / config.cut)
        self.alpha_0, self.alpha_1 = (1 / (1 + math.exp(-config.location - v)) for v in (reach, -reach))
        self.share = 1 - 2 * config.cut

    def alpha(self, t: Time) -> Time:
        return torch.sigmoid(self.log_snr(t))

    def alpha_prime(self, t: Time) -> Time:
        log_snr = self.log_snr(t)
        return torch.sigmoid(log_snr) * torch.sigmoid(-log_snr) * self.log_snr_prime(t)

    def inverse(self, alpha: Time) -> Time:
        u = torch.sigmoid((self.config.location - torch.logit(alpha)) / self.config.scale)
        return ((u - self.config.cut) / self.share).clamp(0.0, 1.0)

    def log_snr(self, t: Time) -> Time:
        u, rest = self._place(t)
        return self.config.location + self.config.scale * (torch.log(rest) - torch.log(u))

    def log_snr_prime(self, t: Time) -> Time:
        u, rest = self._place(t)
        return -self.config.scale * self.share / (u * rest)

    def _place(self, t: Time) -> tuple[Time, Time]:
        """u and 1 - u, each with all its digits."""
        return self.config.cut + self.share * t, self.config.cut + self.share * (1 - t)
