"""Which parameters decay, which are matrices, at what share of the learning rate; the optimiser made of them.

Matrices decay; norms, biases, Mamba-2's A_log, D and dt_bias and, unless asked for, embeddings do not.

A learned noise schedule has a group of its own: its own peak learning rate, no decay, and no part in the norm by which
the network's gradient is clipped (it descends another function, see schedules/learned.py).
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from diffusion_lm.config import build
from diffusion_lm.errors import did_you_mean
from diffusion_lm.optimizers.base import Member, Peak
from diffusion_lm.schedules.base import NoiseSchedule
from diffusion_lm.training.config import TrainingConfig

NEVER_DECAYED = ("A_log", "D", "dt_bias")
"""Names of Mamba-2's vectors; some options make two or three dimensions of them."""
TRUNK = "denoiser"
EMBEDDING = "embed"


def members(module: nn.Module, config: TrainingConfig) -> list[Member]:
    """The network's parameters, by their names in the model. Raises `ValueError` for a prefix that none has."""
    apart = {id(parameter) for schedule in learned_schedules(module) for parameter in schedule.parameters()}
    named = {
        name.removeprefix("model."): parameter
        for name, parameter in module.named_parameters()
        if id(parameter) not in apart
    }
    for prefix in config.lr_multipliers:
        if not any(_below(name, prefix) for name in named):
            raise ValueError(_nothing_there(prefix, named))
    return [_member(name, parameter, config) for name, parameter in named.items()]


def _member(name: str, parameter: nn.Parameter, config: TrainingConfig) -> Member:
    is_matrix, is_embedding = _is_matrix(name, parameter), EMBEDDING in name.split(".")[:-1]
    part = max((prefix for prefix in config.lr_multipliers if _below(name, prefix)), key=len, default="")
    return Member(
        name,
        parameter,
        decays=is_matrix and (config.decay_embeddings or not is_embedding),
        matrix=is_matrix and not is_embedding and parameter.dim() == 2 and _below(name, TRUNK),
        part=part,
        multiplier=config.lr_multipliers.get(part, 1.0),
    )


def _is_matrix(name: str, parameter: Tensor) -> bool:
    """By shape, and by name where an option makes a matrix of what is one number per channel."""
    *path, leaf = name.split(".")
    in_norm = bool(path) and "norm" in path[-1]
    return parameter.dim() >= 2 and leaf not in NEVER_DECAYED and not leaf.endswith("bias") and not in_norm


def _below(name: str, prefix: str) -> bool:
    return f"{name}.".startswith(f"{prefix}.")


def _nothing_there(prefix: str, named: dict[str, nn.Parameter]) -> str:
    paths = [name.split(".") for name in named]
    places = sorted({".".join(path[:end]) for path in paths for end in range(1, len(path) + 1)})
    within = next((place for place in places if "." in place), places[0])
    return (
        f"lr_multipliers: got '{prefix}', with which no parameter's name begins; expected "
        f"{', '.join(place for place in places if '.' not in place)} or a part of these, like {within}"
        f"{did_you_mean(prefix, places)}"
    )


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
        norm = nn.utils.get_total_norm([p.grad for p in group if p.grad is not None])
        norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)  # over the shares of all devices
        if limit:
            nn.utils.clip_grads_with_norm_(group, limit, norms[-1])
    return norms[0]


def lr_factor(step: int, config: TrainingConfig) -> float:
    """Share of the peak learning rate at a step counted from 0."""
    return build(config.lr_schedule, config.steps, config.warmup_steps, config.min_lr).factor(step)


def make_optimizer(module: nn.Module, config: TrainingConfig) -> dict:
    """What Lightning's ``configure_optimizers`` returns."""
    own = [
        {"params": list(s.parameters()), "weight_decay": 0.0, "lr": s.config.lr, "label": "schedule"}
        for s in learned_schedules(module)
    ]
    peak = Peak(config.lr, config.betas, config.weight_decay)
    optimizer = build(config.optimizer).make(members(module, config), peak, own)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(lr_factor, config=config))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The learning rate of the first group, and those of groups with a label: a part, or what steps them."""
    first, *rest = optimizer.param_groups
    labelled = {f"train/lr_{group['label']}": group["lr"] for group in rest if "label" in group}
    return {"train/lr": first["lr"], **labelled}
