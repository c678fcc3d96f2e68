"""The whole range of noise levels, for bounds, which depend on a schedule through its ends alone.

Time runs through the log-odds of the schedule's alpha a, ln(a / (1 - a)) = reach (1 - 2 t). Random tokens of
`mask_uniform` grow as (1 - a)^(gamma / 2): small noise levels lie at values of 1 - a that no float near a = 1 tells
from 0 (gamma = 0.1: 1 - a = 1e-26 for a share of 5 %), while their logarithms keep all digits.
"""

import torch

from diffusion_lm.discrete.process import DiscreteProcess
from diffusion_lm.schedules.base import NoiseSchedule, Time


class LogOdds(NoiseSchedule):
    """Log-odds that fall linearly from `reach` to -`reach`; not a choice of a config."""

    alpha_0, alpha_1 = 1.0, 0.0

    def __init__(self, reach: float) -> None:
        super().__init__(None)
        self.reach = reach

    def alpha(self, t: Time) -> Time:
        return torch.sigmoid(self.log_snr(t))

    def alpha_prime(self, t: Time) -> Time:
        log_odds = self.log_snr(t)
        return torch.sigmoid(log_odds) * torch.sigmoid(-log_odds) * self.log_snr_prime(t)

    def inverse(self, alpha: Time) -> Time:
        return (1 - torch.logit(alpha) / self.reach) / 2

    def log_snr(self, t: Time) -> Time:
        return self.reach * (1 - 2 * t)

    def log_snr_prime(self, t: Time) -> Time:
        return torch.full_like(t, -2 * self.reach)


def whole_range(process: DiscreteProcess) -> DiscreteProcess:
    """The process with alpha falling from 1 to 0, up to what a float64 noise level resolves."""
    return process.over(LogOdds(process.reach))
