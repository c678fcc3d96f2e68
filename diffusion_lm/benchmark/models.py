"""What generation and training steps are timed with: denoisers of one size, in whole models with random weights."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch

from diffusion_lm.config import build, config_class, name_of, part_class, variants
from diffusion_lm.errors import UserError, unknown
from diffusion_lm.mixers.base import MixerConfig
from diffusion_lm.model import DenoisingModel, ModelConfig
from diffusion_lm.sizing import fitted

MLP_UNIT = 8
ADVICE = "more --layers, another --d-model, or a comparison without it (--denoisers, --autoregressive)"
CAUSAL = {"attention": ("attention", {"causal": True}), "mamba": ("mamba2", {})}
"""The mixer of each family that sees the past alone, and its options."""


def check_names(key: str, names: Sequence[str]) -> None:
    """Refuse what is no denoiser, what comes twice, and what cannot go on from a cache."""
    for number, name in enumerate(names):
        if name not in variants("denoisers"):
            raise unknown(f"{key}: no variant", name, variants("denoisers"))
        if name in names[:number]:
            raise ValueError(f"{key}: got {name} twice, expected each denoiser once")
        if part_class(config_class("denoisers", name)()).encodes_prompts:
            raise ValueError(
                f"{key}: got {name}, which tells every block of the whole prompt; expected transformer, mamba, hybrid "
                "or dit"
            )


def first_of(name: str, layers: int) -> Any:
    """The config of the denoiser that sets the size. Raises `UserError` for a depth that it refuses."""
    try:
        return config_class("denoisers", name)(n_layers=layers)
    except ValueError as error:
        raise UserError(f"benchmark: layers: got {layers}: '{name}' refuses: {error}") from None


def causal(denoiser: Any) -> Any:
    """The denoiser's config with mixers that see the past alone."""
    changes = {}
    for field in fields(denoiser):
        value = getattr(denoiser, field.name)
        if isinstance(value, MixerConfig):
            name, options = CAUSAL[value.family()]
            changes[field.name] = config_class("mixers", name)(**options)
    return replace(denoiser, **changes)


def matched(first: Any, others: Sequence[Any], d_model: int) -> list[Any]:
    """`others` with as many parameters as `first`: depth and MLP width by the rule of `describe --match`.

    Raises `UserError` where none fits, or where d_model does not fit a denoiser.
    """

    def parameters(denoiser: Any) -> float:
        return float(denoiser.parameters(d_model))

    for denoiser in (first, *others):
        check_width(denoiser, d_model)
    return [fitted(other, d_model, parameters(first), parameters, MLP_UNIT, ADVICE) for other in others]


def check_width(denoiser: Any, d_model: int) -> None:
    """Raise `UserError` for a d_model that the denoiser refuses."""
    try:
        with torch.device("meta"):  # no memory
            build(denoiser, d_model)
    except ValueError as error:
        raise UserError(f"benchmark: d_model: got {d_model}: '{name_of(denoiser)}' refuses: {error}") from None


def model_of(denoiser: Any, process: str, d_model: int, vocabulary: int, device: str) -> DenoisingModel:
    """A model with random weights over ids, in evaluation."""
    schedule = build(config_class("schedules", "log_linear")())
    over = build(config_class("processes", process)(), schedule, vocabulary)
    return DenoisingModel(ModelConfig(d_model=d_model), denoiser, over).to(device).eval()
