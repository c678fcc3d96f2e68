"""Sizes of denoisers that are to be compared: equal by construction.

A size counts the parameters outside the token table, its projection and the head: 240M says the same of a model of
bytes and of one with a large vocabulary. (The DiffuMamba paper, arXiv 2511.15927, names 240M, 0.5B and 1.3B and does
not say what they count.) The totals of arms with one d_model, vocabulary and head then agree too.

The rule, for a size N:

* d_model, for all arms: (64 N / 12)^(1/3), rounded to a multiple of 128 from 100M on, of 64 below. That makes a
  Transformer of 12 d_model^2 per block 64 times as wide as deep (the optimum is broad: Kaplan et al., arXiv 2001.08361,
  figure 5); width and depth grow together.
* depth and MLP width, for each arm: for every number of whole groups of blocks the multiple of 64 (from 1B on), 32
  (from 100M on) or 8 channels that comes nearest to N; of those within a quarter of a percent, so that any two arms
  agree within half a percent, the one whose width is nearest to the denoiser's own `mlp_expansion`.

By operations: the first arm has N parameters, the others its floating-point operations per token of a forward pass,
token table and head, which are the same, left out.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from diffusion_lm.config import build, config_class, defaults, name_of, part_class, to_tree
from diffusion_lm.data.tokenizers.base import vocabulary_size
from diffusion_lm.errors import UserError
from diffusion_lm.experiment import ExperimentConfig
from diffusion_lm.mixers.base import MixerConfig
from diffusion_lm.model import embedding_parameters, model_parameters

TOLERANCE = 0.0025
ASPECT, PER_BLOCK = 64, 12
MANY, HUGE = 10**8, 10**9
MOST_LAYERS = 512
SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}
SOLVED = ("n_layers", "mlp_width")
ADVICE = "a larger --match, another --d-model, or fewer blocks to a group"
CARRIED = ("mlp", "mlp_bias", "norm", "conditioning")

Measure = Callable[[Any], float]
"""From a denoiser's config to what is matched."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """A denoiser's config of a size, and the overrides that make an experiment of it."""

    denoiser: Any
    overrides: list[str]


def parse_size(text: str) -> int:
    """240M, 0.5B, 1.3B, 1200000, 2e6. Raises `UserError`."""
    found = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)([KMB]?)", text.strip(), re.IGNORECASE)
    try:
        number = float(found[1]) * SUFFIXES[found[2].upper()] if found else 0.0
    except ValueError:
        number = 0.0
    if not 1 <= number < math.inf:
        raise UserError(f"--match: got '{text}', expected a number of parameters like 240M, 0.5B or 1200000")
    return round(number)


def width_for(size: int) -> int:
    """d_model by the rule."""
    unit = 128 if size >= MANY else 64
    return max(unit, round((ASPECT * size / PER_BLOCK) ** (1 / 3) / unit) * unit)


def mlp_unit(size: int) -> int:
    """What the MLP's width is a multiple of."""
    return 64 if size >= HUGE else 32 if size >= MANY else 8


def sized(
    config: ExperimentConfig, size: int, names: Sequence[str] = (), by: str = "parameters", d_model: int = 0
) -> list[Arm]:
    """An experiment's denoiser, or those of `names` with its options, at a size. Raises `UserError`."""
    d_model = d_model or width_for(size)
    wide = replace(config, model=replace(config.model, d_model=d_model))
    first, *others = [arm_of(name, config.denoiser) for name in names or [name_of(config.denoiser)]]
    arms = [fitted(first, d_model, float(size), _parameters(wide), mlp_unit(size))]
    measure = MEASURES[by](wide)
    target = float(size) if by == "parameters" else measure(arms[0])
    arms += [fitted(other, d_model, target, measure, mlp_unit(size)) for other in others]
    return [Arm(denoiser=arm, overrides=_overrides(wide, arm)) for arm in arms]


def arm_of(name: str, own: Any) -> Any:
    """The config of a denoiser beside an experiment's own, with what that sets of MLPs, norm, conditioning and mixers.

    Raises `UserError` where the denoiser cannot have it.
    """
    kind = config_class("denoisers", name)
    if type(own) is kind:
        return own
    usual, arm = defaults(type(own)), kind()
    changed = {f.name: getattr(own, f.name) for f in fields(own) if getattr(own, f.name) != usual[f.name]}
    carried = {key: value for key, value in changed.items() if key in CARRIED}
    mixers = {value.family(): value for value in changed.values() if isinstance(value, MixerConfig)}
    for field in fields(arm):
        value = getattr(arm, field.name)
        if isinstance(value, MixerConfig) and value.family() in mixers:
            carried[field.name] = mixers[value.family()]
    try:
        return replace(arm, **carried)
    except ValueError as error:
        raise UserError(
            f"--arms: got '{name}' beside '{name_of(own)}', whose options it is to have: {error}; leave it out, or "
            "size it in an experiment of its own"
        ) from None


def fitted(denoiser: Any, d_model: int, target: float, measure: Measure, unit: int, advice: str = ADVICE) -> Any:
    """`denoiser` with the depth and the MLP width that the rule gives. Raises `UserError` where none fits, with
    `advice` of what to do then."""
    usual = denoiser.mlp_expansion * d_model
    if not usual:
        raise UserError(
            f"denoiser '{name_of(denoiser)}': mlp_expansion 0 leaves no MLP whose width could be solved for; set it to "
            "the expansion that the width is to be near"
        )
    found, period = [], denoiser.period()
    for n_layers in range(period, MOST_LAYERS + 1, period):
        narrow = replace(denoiser, n_layers=n_layers, mlp_width=unit)
        least = measure(narrow)
        step = measure(replace(narrow, mlp_width=2 * unit)) - least
        wide = replace(narrow, mlp_width=unit * max(1, 1 + round((target - least) / step)))
        if abs(measure(wide) / target - 1) <= TOLERANCE:
            found.append(wide)
        if least > target:
            break
    if not found:
        smallest = measure(replace(denoiser, n_layers=period, mlp_width=unit))
        raise UserError(
            f"denoiser '{name_of(denoiser)}': at d_model {d_model} no MLP width (multiples of {unit}) comes within "
            f"{TOLERANCE:.2%} of {target:,.0f}; its least is {smallest:,.0f} with {period} blocks; expected {advice}"
        )
    return min(found, key=lambda config: abs(math.log(config.mlp_width / usual)))


def _parameters(config: ExperimentConfig) -> Measure:
    process = build(config.process, build(config.schedule), vocabulary_size(config.data.tokenizer))
    readout = part_class(config.objective).readout
    outside = embedding_parameters(config.model, process, readout)
    return lambda denoiser: model_parameters(config.model, denoiser, process, readout) - outside


def _flops(config: ExperimentConfig) -> Measure:
    return lambda denoiser: denoiser.flops_per_token(config.model.d_model, config.data.length, config.block_size)


MEASURES: dict[str, Callable[[ExperimentConfig], Measure]] = {"parameters": _parameters, "flops": _flops}


def _overrides(config: ExperimentConfig, arm: Any) -> list[str]:
    own = type(arm) is type(config.denoiser)
    start = config.denoiser if own else type(arm)()
    old = {key: value for key, value in to_tree(start).items() if key not in SOLVED}
    name = [] if own else [f"denoiser={name_of(arm)}"]
    new = to_tree(replace(arm, mlp_expansion=defaults(type(arm))["mlp_expansion"]))  # has no effect beside mlp_width
    return [*name, f"model.d_model={config.model.d_model}", *_assignments(old, new)]


def _assignments(old: Any, new: Any, where: str = "denoiser") -> list[str]:
    """key=value for every leaf of `new` that is another one in `old`; a part of another name as a whole."""
    lines = []
    for key, value in new.items():
        place, before = f"{where}.{key}", old.get(key)
        if isinstance(value, dict) and isinstance(before, dict) and before.get("name") == value.get("name"):
            lines += _assignments(before, value, place)
        elif value != before:
            lines.append(f"{place}={_flow(value)}")
    return lines


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(inner)}" for key, inner in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else str(value)
