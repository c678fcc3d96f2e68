"""The design of a study: its trials in order, and what a trial overrides in the experiment."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from sweeps.space import override
from sweeps.study import StudyConfig

if TYPE_CHECKING:
    from optuna.trial import Trial

ARM = "arm"
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

    In a sampled study arms and seeds take turns, so that each arm gets the same number of trials.
    """
    cells = _cells(config)
    pairs = list(product(config.seeds or (None,), cells))
    chosen = (pairs[index % len(pairs)] for index in range(config.size))
    return [Row(index, params, _cell_name(config, params), seed) for index, (seed, params) in enumerate(chosen)]


def _cells(config: StudyConfig) -> list[dict[str, Any]]:
    """The combinations that the design fixes: arms, and in a factorial design the choices too."""
    axes: dict[str, tuple[Any, ...]] = {ARM: tuple(config.arms)} if config.arms else {}
    if config.factorial:
        axes |= {key: dimension.corners() for key, dimension in config.space.items()}
    return [dict(zip(axes, values)) for values in product(*axes.values())]


def suggest(config: StudyConfig, trial: "Trial") -> dict[str, Any]:
    """All parameters of a trial: what its row fixed, and the rest as the sampler draws it."""
    params = {ARM: trial.suggest_categorical(ARM, tuple(config.arms))} if config.arms else {}
    return params | {key: dimension.suggest(trial, key) for key, dimension in config.space.items()}


def _cell_name(config: StudyConfig, params: Mapping[str, Any]) -> str:
    """The arm's name, then ``key=value`` for each choice; the experiment's own name if there is neither."""
    choices = [f"{key.rpartition('.')[2]}={value}" for key, value in params.items() if key != ARM]
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
    cells = _cells(config)
    if config.factorial:
        return cells
    first = {key: dimension.corners()[0] for key, dimension in config.space.items()}
    found = []
    for cell in cells:
        found.append({**cell, **first})
        for key, dimension in config.space.items():
            found += [{**cell, **first, key: value} for value in dimension.corners()[1:]]
    return found
