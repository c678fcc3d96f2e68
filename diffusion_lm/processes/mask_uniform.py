"""mask_uniform: a token is replaced by the mask or by a random token, the shares changing with time (GIDD).

With a the schedule's alpha, c = B (a (1 - a))^(gamma / 2), B = 2^gamma p / (1 - p) and C = 1 + c,

    alpha_t = a / C,   mask_t = (1 - a) / C,   V token_t = c / C.

GIDD (arXiv 2503.04482), equations 6 and 7, with a = 1 - t. p is the share of random tokens at a = 1/2; at both ends
there are none. Rates of arrival: -a' / (a C) at the mask, -(a' c / C) ((1 - gamma / 2) / a + (gamma / 2) / (1 - a)) at
random tokens (derived from the general form in `discrete`).
"""

from dataclasses import dataclass

from diffusion_lm.discrete.process import DiscreteProcess, Masses
from diffusion_lm.shapes import Times

SMALL = 1e-12


@dataclass(kw_only=True, slots=True)
class MaskUniformConfig:
    uniform_share: float = 0.1
    """Share p of random tokens where a = 1/2 (p_u in the paper); 0 is the masked process."""
    gamma: float = 1.0
    """Exponent of the time course of random tokens."""

    def __post_init__(self) -> None:
        if not 0 < self.uniform_share < 1:
            raise ValueError(
                f"uniform_share: got {self.uniform_share}, expected more than 0 and less than 1; at 0 and 1 these are "
                "the processes masked and uniform"
            )
        if not 0 < self.gamma <= 2:
            raise ValueError(f"gamma: got {self.gamma}, expected more than 0 and at most 2")


class MaskUniform(DiscreteProcess):
    """Mask and uniform noise mixed."""

    bound_objective = "gidd"

    @property
    def symbols(self) -> int:
        return self.vocabulary + 1

    def masses(self, t: Times) -> Masses:
        a = self.schedule.alpha(t)
        c = self._uniform(a)
        return Masses(a / (1 + c), (1 - a) / (1 + c), c / (1 + c) / self.vocabulary)

    def rates(self, t: Times) -> tuple[Times, Times]:
        a, fall = self.schedule.alpha(t), -self.schedule.alpha_prime(t)
        c = self._uniform(a)
        half = self.config.gamma / 2
        growth = (1 - half) / a.clamp(min=SMALL) + half / (1 - a).clamp(min=SMALL)
        return fall / (a.clamp(min=SMALL) * (1 + c)), fall * c / (1 + c) * growth / self.vocabulary

    def alpha_prime(self, t: Times) -> Times:
        """a' / C - a C' / C^2, C' = c (gamma / 2) a' (1 / a - 1 / (1 - a))."""
        a, slope = self.schedule.alpha(t), self.schedule.alpha_prime(t)
        c = self._uniform(a)
        change = c * self.config.gamma / 2 * slope * (1 / a.clamp(min=SMALL) - 1 / (1 - a).clamp(min=SMALL))
        return slope / (1 + c) - a * change / (1 + c) ** 2

    def _uniform(self, a: Times) -> Times:
        """c."""
        p, gamma = self.config.uniform_share, self.config.gamma
        return 2**gamma * p / (1 - p) * (a * (1 - a)).clamp(min=0.0) ** (gamma / 2)
