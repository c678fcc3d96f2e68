"""The design of a study: its trials in order, and what a trial overrides in the experiment."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice, product
from typing import TYPE_CHECKING, Any

from sweeps.definition import conditions, limits
from sweeps.definition.space import ARM, override
from sweeps.definition.study import StudyConfig

if TYPE_CHECKING:
    from optuna.trial import Trial

LONGEST_NAME = 80


@dataclass(frozen=True, slots=True)
class Row:
    """One planned trial: the parameters that are fixed for it; a sampler draws the others when a worker claims it."""

    index: int
    params: Mapping[str, Any]
    cell: str
    seed: int | None

    def attributes(self) -> dict[str, Any]:
        """What the trial remembers, as Optuna's user attributes. The seed is no parameter: no sampler may model it."""
        attributes = {"row": self.index, "cell": self.cell, "arm": self.params.get(ARM), "seed": self.seed}
        return {key: value for key, value in attributes.items() if value is not None}


def rows(config: StudyConfig) -> list[Row]:
    """Every trial of the study, seed by seed, so that the first finished trials already compare all arms.

    In a sampled study its known points come first, each with every arm (unless it names one) and every seed; then arms
    and seeds take turns, so that each arm gets the same number of trials.
    """
    seeds, arms, factorial = config.seeds or (None,), _arms(config), config.factorial
    known = [(seed, {**arm, **point}) for point in config.points for seed in seeds
             for arm in ([{}] if ARM in point else arms)]
    pairs = list(product(seeds, fixed_cells(config)))
    turns = islice((pair for _ in iter(int, 1) for pair in pairs), max(0, config.size - len(known)))
    return [Row(index, params, _cell_name(config, params, factorial), seed)
            for index, (seed, params) in enumerate([*known[: config.size], *turns])]


def _arms(config: StudyConfig) -> list[dict[str, Any]]:
    return [{ARM: name} for name in config.arms] or [{}]


def fixed_cells(config: StudyConfig) -> list[dict[str, Any]]:
    """The combinations that the design fixes: arms, and in a factorial design the choices too."""
    if not config.factorial:
        return _arms(config)
    return config.design.cells(config.axes) if config.design else conditions.expand(config.axes, config.space)


def suggest(config: StudyConfig, trial: "Trial") -> dict[str, Any]:
    """All parameters of a trial: what its row fixed, and the rest as the sampler draws it; those whose condition does
    not hold are left out."""
    params = {ARM: trial.suggest_categorical(ARM, tuple(config.arms))} if config.arms else {}
    for key in conditions.order(config.space):
        if conditions.holds(config.space[key], params):
            params[key] = config.space[key].suggest(trial, key)
    return {key: params[key] for key in (ARM, *config.space) if key in params}


def constraint_values(config: StudyConfig, result: Mapping[str, Any]) -> list[float]:
    """For each of the study's constraints, in their order, by what share of the bound a trial's `result` breaks it; 0
    or less where it is kept. A number that the result does not have counts as broken by 1: nobody can say that it is
    kept."""
    numbers = {**result, **result.get("metrics", {}), "parameters": result.get("parameters", {}).get("non_embedding")}
    found = []
    for name, bounds in config.constraints.items():
        value = numbers.get(name)
        found.append(1.0 if value is None or value != value else float(limits.violation(bounds, value)))
    return found


def _cell_name(config: StudyConfig, params: Mapping[str, Any], factorial: bool) -> str:
    """The arm's name, then ``key=value`` for each choice of a design; the experiment's own name if there is neither."""
    chosen = params.items() if factorial else ()
    choices = [f"{key.rpartition('.')[2]}={value}" for key, value in chosen if key != ARM]
    arm = [params[ARM]] if ARM in params else []
    return ",".join(arm + choices) or config.experiment.rpartition("/")[2].removesuffix(".yaml")


def folder_name(config: StudyConfig, number: int, cell: str, seed: int | None) -> str:
    """``0003-mamba-seed1``: sorted by trial in TensorBoard, and a pattern selects an arm or a seed."""
    name = re.sub(r"[^A-Za-z0-9._+,=-]+", "_", cell)[:LONGEST_NAME]
    return f"{number:04d}-{name}" + (f"-seed{seed}" if len(config.seeds) > 1 else "")


def overrides(config: StudyConfig, params: Mapping[str, Any], seed: int | None) -> list[str]:
    """What a trial with these parameters changes in the experiment, as ``key=value``: fixed, arm, space, seed."""
    values = {**config.overrides, **config.arms.get(params.get(ARM), {})}
    values |= {key: value for key, value in params.items() if key != ARM}
    if seed is not None:
        values["seed"] = seed
    return [override(key, value) for key, value in values.items()]


def probes(config: StudyConfig) -> list[dict[str, Any]]:
    """Parameters to try when planning: every cell of a factorial design, else each arm at each corner of the space."""
    if config.factorial:
        return fixed_cells(config)
    found = []
    for fixed in [*_arms(config), *config.points]:
        found.append(_completed(config, fixed, {}))
        for key, dimension in config.space.items():
            tried = [_completed(config, fixed, {**_needed(config, key), key: value}) for value in dimension.corners()]
            found += [params for params in tried if key in params]
    return list({repr(sorted(params.items(), key=str)): params for params in found}.values())


def _needed(config: StudyConfig, key: str) -> dict[str, Any]:
    """Values of other parameters with which a trial has the parameter `key`."""
    needed: dict[str, Any] = {}
    for parent, values in config.space[key].when.items():
        needed |= {parent: values[0], **(_needed(config, parent) if parent in config.space else {})}
    return needed


def _completed(config: StudyConfig, fixed: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`fixed` and `values`, and the first corner of every other parameter that a trial with these has."""
    params = dict(fixed)
    if config.arms:
        params.setdefault(ARM, next(iter(config.arms)))
    for key in conditions.order(config.space):
        if key not in params and conditions.holds(config.space[key], params):
            params[key] = values.get(key, config.space[key].corners()[0])
    return params


