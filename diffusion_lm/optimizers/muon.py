"""muon: momentum whose singular values are made equal, for the trunk's matrices; AdamW for everything else.

    B <- mu B + (1 - mu) g,  O = NS((1 - mu) g + mu B),  W <- W - lr decay W - lr scale O

NS is a Newton-Schulz iteration in bfloat16: of U S V^T it makes nearly U V^T (kellerjordan.github.io/posts/muon; Liu et
al., arXiv 2502.16982, section 2). `scale` is 0.2 sqrt(max(rows, columns)) by default, which gives the step the size of
AdamW's (section 2.2 there): learning rate and weight decay then mean the same for both.

A matrix is one tensor: fused projections (query, key and value; Mamba's in_proj) are orthogonalised as one. Embeddings,
head, norms, biases, convolutions, A_log, D and dt_bias are AdamW's. So are the matrices that the noise level drives,
unless `modulations`: their input is a function of one number, so that their gradients have few directions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.optim import Optimizer

from diffusion_lm.config import choice
from diffusion_lm.optimizers.adamw import adamw
from diffusion_lm.optimizers.base import Member, OptimizerPart, Peak, Together, groups

ADAM_EPS = 1e-8
MODULATIONS = ("conditioning", "modulation")
"""Components of the names of what the noise level drives."""


@dataclass(kw_only=True, slots=True)
class MuonConfig:
    lr: float = 0.0
    """Peak learning rate of the matrices; 0 is training.lr."""
    momentum: float = 0.95
    nesterov: bool = True
    ns_steps: int = 5
    """Newton-Schulz iterations."""
    scale: str = choice("match_rms_adamw", "original")
    """Of a step: like AdamW's, or sqrt(max(1, rows / columns)) as first published, which wants an lr near 0.02."""
    modulations: bool = False
    """Whether the matrices that the noise level drives are Muon's too."""

    def __post_init__(self) -> None:
        if not 0 <= self.lr < math.inf:
            raise ValueError(f"lr: got {self.lr}, expected a positive number, or 0 for training.lr")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum: got {self.momentum}, expected 0 <= momentum < 1")
        if not 1 <= self.ns_steps < 100:
            raise ValueError(f"ns_steps: got {self.ns_steps}, expected 1 to 99")


class Muon(OptimizerPart):
    """PyTorch's Muon beside its AdamW."""

    def make(self, members: Sequence[Member], peak: Peak, own: list[dict]) -> Optimizer:
        config = self.config
        matrices = [member for member in members if self._takes(member)]
        taken = {id(member) for member in matrices}
        others = [member for member in members if id(member) not in taken]
        decayed = groups(matrices, Peak(config.lr or peak.lr, peak.betas, peak.weight_decay))
        for group in decayed:
            group["label"] = ".".join(filter(None, ("muon", group.get("label", ""))))
        muon = torch.optim.Muon(
            decayed,
            momentum=config.momentum,
            nesterov=config.nesterov,
            ns_steps=config.ns_steps,
            adjust_lr_fn=config.scale,
        )
        return Together([adamw(groups(others, peak) + own, peak, ADAM_EPS), muon])

    def _takes(self, member: Member) -> bool:
        driven = any(word in MODULATIONS for word in member.name.split("."))
        return member.matrix and (self.config.modulations or not driven)
