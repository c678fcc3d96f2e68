"""masked: each token is replaced by the mask, on its own, with probability 1 - alpha_t, and then stays masked.

Absorbing-state diffusion (D3PM, arXiv 2107.03006; MDLM, arXiv 2406.07524, section 3). The reverse step unmasks a masked
position with probability (alpha_s - alpha_t) / (1 - alpha_t) and leaves the others as they are.
"""

from dataclasses import dataclass

import torch

from diffusion_lm.discrete.process import SMALLEST, DiscreteProcess, Masses
from diffusion_lm.random import Noise, Stream
from diffusion_lm.shapes import Bool, Float, Given, Int, Tensor, Times, Tokens


@dataclass(kw_only=True, slots=True)
class MaskedConfig:
    """The masked process has nothing to set; its schedule is a part of its own."""


class Masked(DiscreteProcess):
    """Absorbing-state process; the mask id is the first id after the vocabulary."""

    absorbing = True
    bound_objective = "masked"

    @property
    def symbols(self) -> int:
        return self.vocabulary + 1

    def masses(self, t: Times) -> Masses:
        alpha = self.schedule.alpha(t)
        return Masses(alpha, 1 - alpha, torch.zeros_like(alpha))

    def rates(self, t: Times) -> tuple[Times, Times]:
        rate = -self.schedule.alpha_prime(t) / self.schedule.alpha(t).clamp(min=1e-12)
        return rate, torch.zeros_like(rate)

    def alpha_prime(self, t: Times) -> Times:
        return self.schedule.alpha_prime(t)

    def unmasking_rate(self, t: Times) -> Times:
        """-alpha'_t / (1 - alpha_t): weight of the masked bound in continuous time (MDLM, equation 11).

        Finite where 1 - alpha is not told from 0: nothing is masked there.
        """
        return -self.schedule.alpha_prime(t) / (1 - self.schedule.alpha(t)).clamp(min=SMALLEST)

    def unmasking_share(self, t: Times, s: Times) -> Times:
        """(alpha_s - alpha_t) / (1 - alpha_t): the probability that a step back unmasks; its weight in a bound."""
        alpha = self.schedule.alpha(t)
        return (self.schedule.alpha(s) - alpha) / (1 - alpha).clamp(min=SMALLEST)

    def prior(self, like: Tokens, table: Float[Tensor, "V D"], noise: Noise) -> Tokens:
        return torch.full_like(like, self.mask_id)

    def idle(self, x_t: Tokens, t: Times, s: Times, noise: Noise) -> Bool[Tensor, "B"]:
        """Where no mask goes: that and when is in the noise alone, and the prediction says only what comes."""
        jumps = noise.uniform(Stream.CHANGE, x_t.shape[1]) < self.between(t, s).mask / self.masses(t).mask
        tokens = noise.uniform(Stream.SOURCE, x_t.shape[1]) < self.alpha(s)
        return ~(self.is_masked(x_t) & jumps & tokens).any(1)

    def corrupt_exactly(self, x: Tokens, count: Int[Tensor, "B"], noise: Noise, given: Given | None = None) -> Tokens:
        """x_0 with exactly count[b] positions of row b masked, chosen uniformly among those that are not given."""
        place = noise.uniform(Stream.CORRUPT, x.shape[1])
        order = (place if given is None else place + given).argsort(1)
        chosen = torch.arange(x.shape[1], device=x.device) < count[:, None]
        return x.scatter(1, order, torch.where(chosen, self.mask_id, x.gather(1, order)))

    def draw_noise(
        self, like: Tokens, mask_share: Times, noise: Noise, stream: Stream = Stream.REPLACE
    ) -> Tokens:
        return torch.full_like(like, self.mask_id)
