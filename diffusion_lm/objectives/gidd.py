"""gidd: the bound of mask-and-uniform diffusion, with GIDD's training weights (arXiv 2503.04482, sections 3 and 4).

The bound is that of `uniform`, which holds for any mixture of mask and random tokens. Its weights w_t(z, x_0) =
r_t(z) / q_t(z | x_0) vary over orders of magnitude. `clamp` limits them in training; `dynamic` divides them by the
weight of a random token at the same time: for gamma = 1 that leaves 2 at a mask, 1 at a random token and w / (1 + w),
w = B / V sqrt((1 - a) / a), at the right one (the paper's dynamic weights, which have w itself there, for small w). The
reported bound always has the true ones. All weights are float64.
"""

from dataclasses import dataclass
from typing import Any

from diffusion_lm.config import choice
from diffusion_lm.discrete.divergence import jump_weight
from diffusion_lm.discrete.objective import check_t_min
from diffusion_lm.discrete.process import SMALLEST
from diffusion_lm.noisy import Corrupted
from diffusion_lm.objectives.uniform import UniformBound
from diffusion_lm.shapes import Float, Tensor


@dataclass(kw_only=True, slots=True)
class GiddConfig:
    weighting: str = choice("elbo", "clamp", "dynamic")
    """Of the divergence in training: the bound's own; that, at most max_weight; or relative to a random token's."""
    max_weight: float = 10.0
    """Limit of `clamp`."""
    t_min: float = 1e-3
    """Smallest time in training."""

    def __post_init__(self) -> None:
        check_t_min(self.t_min)
        if not self.max_weight > 0:
            raise ValueError(f"max_weight: got {self.max_weight}, expected more than 0")

    def unused(self, experiment: Any) -> dict[str, str]:
        """The limit of weights, where nothing is limited."""
        why = f"objective.weighting={self.weighting} limits no weight, only clamp does"
        return {} if self.weighting == "clamp" else {"objective.max_weight": why}


class Gidd(UniformBound):
    """The bound of mask-and-uniform noise."""

    processes = ("mask_uniform", "uniform")

    def training_weight(self, drawn: Corrupted) -> Float[Tensor, "B L"]:
        weight = jump_weight(self.process, drawn.tokens, drawn.x_t, drawn.t)
        return WEIGHTINGS[self.config.weighting](self, weight, drawn)

    def _own(self, weight: Float[Tensor, "B L"], drawn: Corrupted) -> Float[Tensor, "B L"]:
        return weight

    def _limited(self, weight: Float[Tensor, "B L"], drawn: Corrupted) -> Float[Tensor, "B L"]:
        return weight.clamp(max=self.config.max_weight)

    def _relative(self, weight: Float[Tensor, "B L"], drawn: Corrupted) -> Float[Tensor, "B L"]:
        _, to_token = self.process.rates(drawn.t)
        return weight * self.process.masses(drawn.t).token / to_token.clamp(min=SMALLEST)


WEIGHTINGS = {"elbo": Gidd._own, "clamp": Gidd._limited, "dynamic": Gidd._relative}
