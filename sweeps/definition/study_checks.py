"""What the keys of a study cannot show each for itself: pairings without a meaning, refused in one line."""

import re
from collections.abc import Mapping
from typing import Any

from diffusion_lm.errors import UserError, unknown
from sweeps.definition import conditions
from sweeps.definition.space import ARM
from sweeps.definition.study import StudyConfig

LONGEST = 100
"""Characters of a name: of a folder, and of files in it that say more behind it."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
GENERATIONAL = ("NSGAIISampler", "NSGAIIISampler")
POPULATION = 50
"""Optuna's default size of a generation."""


def check(config: StudyConfig) -> None:
    """Raise `UserError` for the first thing that makes no sense."""
    for name in (config.name, *config.arms):
        if not NAME.fullmatch(name):
            raise UserError(f"name '{name}': it names a folder; expected letters, digits and . _ + -")
        if len(name) > LONGEST:
            raise UserError(f"name '{name[:20]}...': it names a folder; got {len(name)} characters, expected at most "
                            f"{LONGEST}")
    if config.baseline is not None and not config.arms:
        raise UserError(f"baseline: got '{config.baseline}', but the study has no arms; expected one of `arms`, or no "
                        "baseline")
    if config.baseline is not None and config.baseline not in config.arms:
        raise unknown("baseline: no arm", config.baseline, config.arms)
    _check_keys(config)
    conditions.check(config.arms, config.space)
    _check_size(config)
    _check_parts(config)
    if config.design:
        _check_design(config)
    if config.factorial:
        _refuse_in_designs(config)
    _check_points(config)


def _check_points(config: StudyConfig) -> None:
    """Each fits the space and is there once, and every one of them gets its trials."""
    tried: list[Mapping[str, Any]] = []
    for index, point in enumerate(config.points):
        if refusal := misfit(config, point, whole=False):
            raise UserError(f"points: {index}: {refusal}")
        each = [point] if ARM in point or not config.arms else [{ARM: arm, **point} for arm in config.arms]
        if twice := next((params for params in each if params in tried), None):
            told = ", ".join(f"{key}: {value}" for key, value in twice.items())
            raise UserError(f"points: {index}: {{{told}}} is there before; remove one of them (replicates are asked "
                            "for by `seeds`)")
        tried += each
    needed = max(1, len(config.seeds)) * len(tried)
    if needed > config.size:
        raise UserError(f"points: the {len(config.points)} of them take {needed} trials (each with every arm that it "
                        f"does not name, and every seed), and the study has {config.size}; expected at least {needed} "
                        "trials, or fewer points")


def _check_keys(config: StudyConfig) -> None:
    """A key has one place that says its value."""
    for place, keys in (("overrides", config.overrides), *config.arms.items()):
        for key in keys:
            if key in config.space:
                raise UserError(f"space: {key}: is fixed by '{place}' as well; remove one of them")
            if key == "seed" and config.seeds:
                raise UserError(f"seed: is set by '{place}' and by `seeds`; remove one of them")
    if "seed" in config.space:
        raise UserError("space: seed: a sampler must not choose the seed; list replicates under `seeds`")
    if ARM in config.space:
        raise UserError("space: arm: is the name of the factor that `arms` makes; list the arms there")


def _check_size(config: StudyConfig) -> None:
    seeds = max(1, len(config.seeds))
    if config.cells is None and config.trials is None and config.budget.trials is None:
        raise UserError("trials: is missing; the space holds a range, so say how many trials to sample")
    if config.cells is not None and config.size > config.cells * seeds:
        raise UserError(f"trials: got {config.trials}, but the design has {config.cells} cells x {seeds} seeds; leave "
                        "out `trials` to visit each once, or add seeds")


def _check_parts(config: StudyConfig) -> None:
    """Refuse what Optuna's samplers and pruners cannot do together."""
    if config.pruner.name != "NopPruner" and len(config.metrics) > 1:
        raise UserError(f"pruner: got {config.pruner.name} with {len(config.metrics)} metrics, expected one metric: "
                        "Optuna prunes on a single objective only")
    if config.sampler.name in GENERATIONAL and not config.factorial:
        population = config.sampler.arguments.get("population_size", POPULATION)
        if isinstance(population, int) and config.size <= population:
            raise UserError(f"sampler: {config.sampler.name}: got {config.size} trials and a population of "
                            f"{population}, so that all would be drawn at random; expected more trials, a smaller "
                            "population_size, or TPESampler")


def _check_design(config: StudyConfig) -> None:
    assert config.design is not None
    if config.trials is not None:
        raise UserError("trials: got it with a fractional design, which has its own `runs`; leave out `trials`")
    if config.cells is None:
        ranges = [key for key in config.space if key not in config.axes]
        raise UserError(f"design: fractional, but {', '.join(ranges)} is a range; expected choices, or no `design`")
    if config.conditional:
        keys = [key for key, dimension in config.space.items() if dimension.when]
        raise UserError(f"design: fractional needs every factor in every cell, and {', '.join(keys)} has a condition; "
                        "leave out `when`, or visit all cells")
    config.design.check(config.axes)


def _refuse_in_designs(config: StudyConfig) -> None:
    """What steers a sampler means nothing where each cell is visited anyhow."""
    for key, given in (("points", config.points), ("warm_start", config.warm_start)):
        if given:
            raise UserError(f"{key}: steers a sampler, and this study visits every cell of its design; leave it out, "
                            "or say `trials`, fewer than the cells")


def misfit(config: StudyConfig, params: Mapping[str, Any], *, whole: bool = True) -> str | None:
    """Why no trial of the study can have `params`, or None. `whole`: they are all that the trial has."""
    for key, value in params.items():
        if key == ARM and config.arms:
            if value not in config.arms:
                return str(unknown("arm: no arm", str(value), config.arms))
        elif key not in config.space:
            return str(unknown("no key of `space`", key, [*config.space, *([ARM] if config.arms else [])]))
        elif expected := config.space[key].refusal(value):
            return f"{key}: got {value!r}, expected {expected}"
        elif not conditions.holds(config.space[key], params):
            told = ", ".join(f"{parent}: {' or '.join(map(str, values))}"
                             for parent, values in config.space[key].when.items())
            return f"{key}: a trial has it only with {told}; say so beside it, or leave it out"
    if not whole:
        return None
    expected_keys = [key for key, dimension in config.space.items() if conditions.holds(dimension, params)]
    missing = [key for key in ([ARM] if config.arms else []) + expected_keys if key not in params]
    return f"{', '.join(missing)}: is missing" if missing else None
