"""mask_uniform: a token is replaced by the mask or by a random token, the shares changing with time (GIDD).

With a the schedule's alpha, c = B (a (1 - a))^(gamma / 2), B = 2^gamma p / (1 - p) and C = 1 + c,

    alpha_t = a / C,   mask_t = (1 - a) / C,   V token_t = c / C.

GIDD (arXiv 2503.04482), equations 6 and 7, with a = 1 - t. p is the share of random tokens at a = 1/2; at both ends
there are none. Rates of arrival: -a' / (a C) at the mask, -(a' c / C) ((1 - gamma / 2) / a + (gamma / 2) / (1 - a)) at
random tokens (derived from the general form in `discrete`). All of it is computed from the log-odds ln(a / (1 - a)):
for small gamma the random tokens are there before 1 - a can be told from 0.
"""

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from diffusion_lm.discrete.process import DiscreteProcess, Masses
from diffusion_lm.shapes import Times


@dataclass(kw_only=True, slots=True)
class MaskUniformConfig:
    uniform_share: float = 0.1
    """Share p of random tokens where a = 1/2 (p_u in the paper); 0 is the masked process."""
    gamma: float = 1.0
    """Exponent of the time course of random tokens. The smaller, the earlier they come: below about 0.5 much of the
    bound lies at noise levels that a schedule passes before the objective's t_min."""

    def __post_init__(self) -> None:
        if not 0 < self.uniform_share < 1:
            raise ValueError(
                f"uniform_share: got {self.uniform_share}, expected more than 0 and less than 1; at 0 and 1 these are "
                "the processes masked and uniform"
            )
        if not 1e-3 <= self.gamma <= 2:
            raise ValueError(f"gamma: got {self.gamma}, expected 0.001 to 2")


class MaskUniform(DiscreteProcess):
    """Mask and uniform noise mixed."""

    bound_objective = "gidd"

    @property
    def symbols(self) -> int:
        return self.vocabulary + 1

    @property
    def reach(self) -> float:
        """Random tokens go as (1 - a)^(gamma / 2): down to 1e-17 of them, whatever B is."""
        return 40 + (40 + abs(math.log(self._scale()))) * 2 / self.config.gamma

    def masses(self, t: Times) -> Masses:
        a, rest, c = self._parts(self.schedule.log_snr(t))
        return Masses(a / (1 + c), rest / (1 + c), c / (1 + c) / self.vocabulary)

    def rates(self, t: Times) -> tuple[Times, Times]:
        log_odds, fall = self._odds(t)
        a, rest, c = self._parts(log_odds)
        half = self.config.gamma / 2
        to_token = c / (1 + c) * ((1 - half) * rest + half * a) / self.vocabulary
        return fall * rest / (1 + c), fall * to_token

    def alpha_prime(self, t: Times) -> Times:
        """a' / C - a C' / C^2 with a' = -f a (1 - a) and C' = c (gamma / 2) f (2 a - 1), f the fall of the log-odds."""
        log_odds, fall = self._odds(t)
        a, rest, c = self._parts(log_odds)
        return -fall * a * (rest * (1 + c) + c * self.config.gamma / 2 * (a - rest)) / (1 + c) ** 2

    def _odds(self, t: Times) -> tuple[Times, Times]:
        """ln(a / (1 - a)), and how fast it falls; at an end where it is infinite nothing arrives any more."""
        log_odds = self.schedule.log_snr(t)
        fall = -self.schedule.log_snr_prime(t)
        return log_odds, fall.where(log_odds.isfinite() & fall.isfinite(), 0.0)

    def _parts(self, log_odds: Times) -> tuple[Times, Times, Times]:
        """a, 1 - a and c, none of them a difference: all digits at both ends."""
        both = logsigmoid(log_odds) + logsigmoid(-log_odds)
        c = self._scale() * torch.exp(self.config.gamma / 2 * both)
        return torch.sigmoid(log_odds), torch.sigmoid(-log_odds), c

    def _scale(self) -> float:
        """B."""
        return 2**self.config.gamma * self.config.uniform_share / (1 - self.config.uniform_share)
