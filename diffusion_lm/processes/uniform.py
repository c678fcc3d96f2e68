"""uniform: each token is replaced, with probability 1 - alpha_t, by one drawn uniformly from the vocabulary.

Uniform-state diffusion (D3PM, arXiv 2107.03006; UDLM, arXiv 2412.10193; Duo, arXiv 2506.10892). A position may change
at any time, also after it was "right": there is no mask, and text can be corrected.
"""

from dataclasses import dataclass

import torch

from diffusion_lm.discrete.process import DiscreteProcess, Masses
from diffusion_lm.shapes import Times


@dataclass(kw_only=True, slots=True)
class UniformConfig:
    """The uniform process has nothing to set; its schedule is a part of its own."""


class Uniform(DiscreteProcess):
    """Uniform-state process."""

    bound_objective = "uniform"

    @property
    def symbols(self) -> int:
        return self.vocabulary

    def masses(self, t: Times) -> Masses:
        alpha = self.schedule.alpha(t)
        return Masses(alpha, torch.zeros_like(alpha), (1 - alpha) / self.vocabulary)

    def rates(self, t: Times) -> tuple[Times, Times]:
        rate = -self.schedule.alpha_prime(t) / self.schedule.alpha(t).clamp(min=1e-12) / self.vocabulary
        return torch.zeros_like(rate), rate

    def alpha_prime(self, t: Times) -> Times:
        return self.schedule.alpha_prime(t)
