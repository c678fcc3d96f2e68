"""How a run is trained and evaluated: typed values, no behaviour."""

import math
from dataclasses import dataclass

from diffusion_lm.config import choice


@dataclass(kw_only=True, slots=True)
class TrainingConfig:
    steps: int = 1000
    """Optimiser steps."""
    batch_size: int = 16
    """Sequences per optimiser step, over all devices."""
    micro_batch: int = 0
    """Sequences per device and forward pass; 0 is all of the device's share (no gradient accumulation)."""
    lr: float = 2e-3
    """Peak learning rate."""
    min_lr: float = 0.1
    """Learning rate at the end, as a share of the peak."""
    warmup_steps: int = 100
    """Steps of linear warm-up; then a cosine to min_lr."""
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    """AdamW's, on matrices only."""
    grad_clip: float = 1.0
    """Largest norm of the gradient; 0 does not clip."""
    ema_decay: float = 0.999
    """Decay of the averaged weights that are validated, after a warm-up of (1 + n) / (10 + n); 0 averages nothing."""
    precision: str = choice("auto", "float32", "bfloat16")
    """Of the network; likelihoods are float32 or better whatever it is."""
    accelerator: str = choice("auto", "cpu", "cuda")
    devices: int = 1
    """Devices per node."""
    num_nodes: int = 1
    val_every: int = 250
    """Steps between validations; 0 validates at the end only."""
    checkpoint_every: int = 250
    """Steps between checkpoints, besides those at validations, at interruption and at the end."""
    log_every: int = 10
    """Steps between logged training scalars."""
    samples: int = 2
    """Texts drawn at each validation."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "devices", "num_nodes", "checkpoint_every", "log_every"):
            _at_least(self, name, 1)
        for name in ("micro_batch", "warmup_steps", "weight_decay", "grad_clip", "val_every", "samples"):
            _at_least(self, name, 0)
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr: got {self.lr}, expected a positive number")
        if not 0 <= self.min_lr <= 1:
            raise ValueError(f"min_lr: got {self.min_lr}, expected 0 to 1: it is a share of lr")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay: got {self.ema_decay}, expected 0 <= ema_decay < 1")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: got {list(self.betas)}, expected two numbers with 0 <= beta < 1")

    def rows_per_pass(self) -> int:
        """Sequences per device and forward pass."""
        return self.micro_batch or max(1, self.batch_size // (self.devices * self.num_nodes))


@dataclass(kw_only=True, slots=True)
class EvaluationConfig:
    draws: int = 8
    """Stratified noise levels per sequence."""
    seed: int = 1234
    """Seed of the noise levels and the corruption: equal for all models that are to be compared."""
    batch_size: int = 32
    """Sequences per forward pass."""

    def __post_init__(self) -> None:
        for name in ("draws", "batch_size"):
            _at_least(self, name, 1)


def _at_least(config: object, name: str, least: int) -> None:
    if not getattr(config, name) >= least:
        raise ValueError(f"{name}: got {getattr(config, name)}, expected at least {least}")
