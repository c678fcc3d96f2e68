"""How a run is trained and evaluated: typed values, no behaviour."""

import math
from dataclasses import dataclass, field, fields
from typing import Any

from diffusion_lm.config import choice, name_of, part


@dataclass(kw_only=True, slots=True)
class TrainingConfig:
    steps: int = 1000
    """Optimiser steps."""
    batch_size: int = 16
    """Sequences per optimiser step, over all devices."""
    from_pretrained: str = ""
    """Folder of a run, or of weights that `convert` made, whose weights training starts from; empty: random ones. Block
    by block, for example, from a model of whole texts."""
    pretrained_weights: str = choice("averaged", "live")
    """Which of that run's weights."""
    micro_batch: int = 0
    """Sequences per device and forward pass; 0 is all of the device's share (no gradient accumulation)."""
    optimizer: Any = part("optimizers", "adamw")
    lr: float = 2e-3
    """Peak learning rate."""
    lr_multipliers: dict[str, float] = field(default_factory=dict)
    """Multiples of the peak learning rate for parts of the model, by the beginning of their parameters' names: embed,
    head, denoiser.stack. The longest that fits a name counts; 0 freezes."""
    lr_schedule: Any = part("lr_schedules", "cosine")
    """What comes after the warm-up."""
    min_lr: float = 0.1
    """Learning rate at the end, as a share of the peak."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's."""
    weight_decay: float = 0.1
    """On matrices only, decoupled: times the learning rate."""
    decay_embeddings: bool = False
    """Whether the token table, and what else makes the trunk's input, decays too."""
    grad_clip: float = 1.0
    """Largest norm of the gradient; 0 does not clip."""
    ema_decay: float = 0.999
    """Decay of the averaged weights that are validated, after a warm-up of (1 + n) / (10 + n); 0 averages nothing."""
    ema_decays: tuple[float, ...] = ()
    """More decays of averages that are kept in the checkpoint, for `evaluate --ema DECAY`. Each takes the memory of the
    model's parameters once more, on the device and in the checkpoint."""
    precision: str = choice("auto", "float32", "bfloat16")
    """Of the network; likelihoods are float32 or better whatever it is."""
    accelerator: str = choice("auto", "cpu", "cuda")
    devices: int = 1
    """Devices per node."""
    num_nodes: int = 1
    strategy: str = choice("auto", "ddp", "fsdp")
    """How devices share the work. ddp: each holds the whole model. fsdp: each holds a share of every parameter, of its
    gradient and of the optimiser's state, and gathers a block's while it runs. auto: ddp."""
    compile: bool = False
    """Compile the denoiser's blocks: a wait at the start, then faster steps."""
    compile_backend: str = choice("inductor", "aot_eager", "eager")
    """What torch.compile makes of the blocks; the others than inductor are for finding faults."""
    checkpoint_activations: bool = False
    """Keep each block's input alone for the backward pass and compute the rest again: less memory, more time."""
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
        for prefix, multiple in self.lr_multipliers.items():
            if not 0 <= multiple < math.inf:
                raise ValueError(f"lr_multipliers: got {multiple} for '{prefix}', expected 0 or a positive number")
        self.lr_schedule.check(self.steps, self.warmup_steps)
        _check_averages(self.ema_decay, self.ema_decays)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: got {list(self.betas)}, expected two numbers with 0 <= beta < 1")
        if self.strategy != "auto" and self.devices * self.num_nodes == 1:
            raise ValueError(
                f"strategy: got {self.strategy} for one device; expected auto, or devices=2 or more to share the work"
            )

    def unused(self, experiment: Any) -> dict[str, str]:
        """Keys of what is switched off."""
        found = {}
        if not self.from_pretrained:
            found["training.pretrained_weights"] = "without training.from_pretrained the weights are random"
        if not self.lr_schedule.falls():
            why = f"the learning rate of lr_schedule '{name_of(self.lr_schedule)}' does not fall"
            found["training.min_lr"] = f"{why} with these keys" if fields(self.lr_schedule) else why
        if not self.compile:
            found["training.compile_backend"] = "with training.compile=false nothing is compiled"
        if not self.weight_decay:
            found["training.decay_embeddings"] = "with training.weight_decay 0 nothing decays"
        return found

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
    samples: int = 0
    """Texts drawn after the last validation for the numbers gen/... (evaluation/generated.py); 0 reports none."""
    prompt: float = 0.0
    """Share of each of these texts that is given, the beginning of a validation text."""

    def __post_init__(self) -> None:
        for name in ("draws", "batch_size"):
            _at_least(self, name, 1)
        _at_least(self, "samples", 0)
        if not 0 <= self.prompt < 1:
            raise ValueError(f"prompt: got {self.prompt}, expected 0 or more and less than 1: a share of each text")

    def unused(self, experiment: Any) -> dict[str, str]:
        """The prompt of texts that are not drawn."""
        return {} if self.samples else {"evaluation.prompt": "with evaluation.samples 0 no text is drawn for numbers"}


def _at_least(config: object, name: str, least: int) -> None:
    if not getattr(config, name) >= least:
        raise ValueError(f"{name}: got {getattr(config, name)}, expected at least {least}")


def _check_averages(first: float, others: tuple[float, ...]) -> None:
    if not 0 <= first < 1:
        raise ValueError(f"ema_decay: got {first}, expected 0 <= ema_decay < 1")
    if not all(0 < decay < 1 for decay in others):
        raise ValueError(f"ema_decays: got {list(others)}, expected numbers with 0 < decay < 1")
    if others and not first:
        raise ValueError(f"ema_decays: got {list(others)} with ema_decay 0; expected one of them as ema_decay")
    if len({first, *others}) <= len(others):
        raise ValueError(f"ema_decays: got {list(others)} beside ema_decay {first}, expected every decay once")
