"""AdamW with decay on matrices only, and a linear warm-up followed by a cosine.

A learned noise schedule has a group of its own: its own peak learning rate, no decay, and no part in the norm by which
the network's gradient is clipped (it descends another function, see schedules/learned.py).
"""

import math
from functools import partial

import torch
from torch import Tensor, nn

from diffusion_lm.schedules.base import NoiseSchedule
from diffusion_lm.training.config import TrainingConfig

NEVER_DECAYED = ("A_log", "D", "dt_bias")


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices, which decay; norms, biases, embeddings and Mamba-2's A_log, D and dt_bias, which do not; schedules."""
    schedules = learned_schedules(module)
    apart = {id(parameter) for schedule in schedules for parameter in schedule.parameters()}
    decayed, kept = [], []
    for name, parameter in module.named_parameters():
        if id(parameter) in apart:
            continue
        is_matrix = parameter.dim() >= 2 and name.rpartition(".")[2] not in NEVER_DECAYED
        (decayed if is_matrix and ".embed." not in f".{name}" else kept).append(parameter)
    own = [{"params": list(s.parameters()), "weight_decay": 0.0, "lr": s.config.lr} for s in schedules]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}, *own]


def learned_schedules(module: nn.Module) -> list[NoiseSchedule]:
    """The noise schedules in a module that have parameters."""
    return [part for part in module.modules() if isinstance(part, NoiseSchedule) and part.learned]


def clip_gradients(module: nn.Module, limit: float) -> Tensor:
    """Clip the network's gradient to a norm of `limit` (0 does not clip), and each learned schedule's by itself.

    Returns the norm of the network's before.
    """
    schedules = learned_schedules(module)
    groups = [list(schedule.parameters()) for schedule in schedules]
    apart = {id(parameter) for group in groups for parameter in group}
    network = [parameter for parameter in module.parameters() if id(parameter) not in apart]
    norms = []
    for group in (network, *groups):
        norms.append(nn.utils.get_total_norm([p.grad for p in group if p.grad is not None]))
        if limit:
            nn.utils.clip_grads_with_norm_(group, limit, norms[-1])
    return norms[0]


def lr_factor(step: int, config: TrainingConfig) -> float:
    """Share of the peak learning rate at a step counted from 0."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.min_lr + (1 - config.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def make_optimizer(module: nn.Module, config: TrainingConfig) -> dict:
    """What Lightning's ``configure_optimizers`` returns."""
    groups = parameter_groups(module, config.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(lr_factor, config=config))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
