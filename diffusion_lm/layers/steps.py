"""The step sizes dt of a state-space layer: softplus(dt + dt_bias) within limits, and mamba-ssm's starting values."""

import math
from typing import Any

import torch
from torch.nn import functional as F

from diffusion_lm.precision import wide
from diffusion_lm.shapes import Float, Tensor


def check_steps(config: Any) -> None:
    """Refuse bounds that are no bounds."""
    low, high = config.dt_min, config.dt_max
    if not 0 < low <= high < math.inf:
        raise ValueError(f"dt_min, dt_max: got {low}, {high}, expected two numbers above 0, the second no less")
    if config.dt_init_floor <= 0:
        raise ValueError(f"dt_init_floor: got {config.dt_init_floor}, expected a number above 0")
    low, high = config.dt_limit
    if not 0 <= low < high:
        raise ValueError(f"dt_limit: got {low}, {high}, expected two numbers of at least 0, the second larger")


@torch.no_grad()
def start_steps(dt_bias: Tensor, config: Any) -> None:
    """softplus(dt_bias) log-uniform from dt_min to dt_max, at least dt_init_floor."""
    step = torch.empty_like(dt_bias).uniform_(math.log(config.dt_min), math.log(config.dt_max)).exp_()
    step.clamp_(min=config.dt_init_floor)
    dt_bias.copy_(step + torch.log(-torch.expm1(-step)))


def steps(
    dt: Float[Tensor, "B L H"], dt_bias: Float[Tensor, "H"], limit: tuple[float, float]
) -> Float[Tensor, "B L H"]:
    """Float32 at least."""
    dt = F.softplus(wide(dt) + wide(dt_bias))
    return dt if tuple(limit) == (0.0, math.inf) else dt.clamp(*limit)
