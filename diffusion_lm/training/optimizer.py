"""AdamW with decay on matrices only, and a linear warm-up followed by a cosine."""

import math
from functools import partial

import torch
from torch import nn

from diffusion_lm.training.config import TrainingConfig

NEVER_DECAYED = ("A_log", "D", "dt_bias")


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices, which decay; and norms, biases, embeddings and Mamba-2's A_log, D and dt_bias, which do not."""
    decayed, kept = [], []
    for name, parameter in module.named_parameters():
        is_matrix = parameter.dim() >= 2 and name.rpartition(".")[2] not in NEVER_DECAYED
        (decayed if is_matrix and ".embed." not in f".{name}" else kept).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


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
