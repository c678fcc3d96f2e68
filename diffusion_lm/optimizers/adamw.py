"""adamw: Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2), PyTorch's fused form.

    m <- b1 m + (1 - b1) g,  v <- b2 v + (1 - b2) g^2,  w <- w - lr (m_hat / (sqrt(v_hat) + eps) + decay w)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.optim import Optimizer

from diffusion_lm.optimizers.base import Member, OptimizerPart, Peak, groups


@dataclass(kw_only=True, slots=True)
class AdamwConfig:
    eps: float = 1e-8
    """Added to the root of the second moment."""

    def __post_init__(self) -> None:
        if not 0 < self.eps < 1:
            raise ValueError(f"eps: got {self.eps}, expected more than 0 and less than 1")


class Adamw(OptimizerPart):
    """AdamW for everything."""

    def make(self, members: Sequence[Member], peak: Peak, own: list[dict]) -> Optimizer:
        return adamw(groups(members, peak) + own, peak, self.config.eps)


def adamw(parameters: list[dict], peak: Peak, eps: float) -> torch.optim.AdamW:
    """PyTorch's AdamW in its fused form, which CPU and CUDA both have."""
    return torch.optim.AdamW(parameters, lr=peak.lr, betas=peak.betas, eps=eps, fused=True)
