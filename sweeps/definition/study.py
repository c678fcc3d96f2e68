"""A study's definition: one YAML file, read into a `StudyConfig`, or refused in one line. docs/studies.md has the keys.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion_lm.errors import UserError, unknown
from sweeps.definition import conditions, limits, study_file
from sweeps.definition.fractional import Fraction
from sweeps.definition.limits import Budget
from sweeps.definition.parts import Part
from sweeps.definition.space import ARM, Choices, Range
from sweeps.definition.study_keys import READERS


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyConfig:
    """What is compared: `arms` x `space` x `seeds` over one experiment.

    `arms` are named bundles of overrides, `space` is searched (or, if it holds choices only and `trials` is left out,
    visited completely or by a fractional `design`), `seeds` are replicates: every arm is trained with each of the same
    seeds. The first metric is the objective.
    """

    name: str
    experiment: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    arms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    space: Mapping[str, Choices | Range] = field(default_factory=dict)
    design: Fraction | None = None
    metrics: Mapping[str, str] = field(default_factory=lambda: {"val/nll": "minimize"})
    constraints: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    sampler: Part = Part("TPESampler")
    pruner: Part = Part("NopPruner")
    points: tuple[Mapping[str, Any], ...] = ()
    warm_start: Mapping[str, str] = field(default_factory=dict)
    trials: int | None = None
    seeds: tuple[int, ...] = ()
    replicates: int | None = None
    budget: Budget = Budget()
    restarts: Mapping[str, int] = field(default_factory=lambda: dict(limits.RESTARTS))
    baseline: str | None = None

    @property
    def objective(self) -> str:
        """The first metric: what trials report while they train and what tables are sorted by."""
        return next(iter(self.metrics))

    @property
    def axes(self) -> dict[str, tuple[Any, ...]]:
        """The factors of a design and their levels: the arm, if there are arms, and every key with choices."""
        choices = {key: dimension.values for key, dimension in self.space.items() if isinstance(dimension, Choices)}
        return ({ARM: tuple(self.arms)} if self.arms else {}) | choices

    @property
    def conditional(self) -> bool:
        """Whether some parameters are not in every trial."""
        return any(dimension.when for dimension in self.space.values())

    @property
    def cells(self) -> int | None:
        """How many combinations of arms and choices the design has; None if the space holds a range."""
        if not all(isinstance(dimension, Choices) for dimension in self.space.values()):
            return None
        return self.design.runs if self.design else conditions.count(self.axes, self.space)

    @property
    def factorial(self) -> bool:
        """Whether the design says what every trial is: each of its cells once per seed; else a sampler chooses."""
        return self.cells is not None and self.size == self.cells * max(1, len(self.seeds))

    @property
    def size(self) -> int:
        """How many trials the study has; a budget may end it before."""
        if self.trials is not None:
            return self.trials
        if self.cells is None:
            assert self.budget.trials is not None, "a study with a range and no number of trials is refused when read"
            return self.budget.trials
        return self.cells * max(1, len(self.seeds))

    def to_dict(self) -> dict[str, Any]:
        """The definition as plain values; `from_dict` reads it back."""
        return {
            "name": self.name,
            "experiment": self.experiment,
            "overrides": dict(self.overrides),
            "arms": {name: dict(arm) for name, arm in self.arms.items()},
            "space": {key: dimension.to_dict() for key, dimension in self.space.items()},
            "design": self.design.to_dict() if self.design else "factorial",
            "metrics": dict(self.metrics),
            "constraints": {name: dict(bounds) for name, bounds in self.constraints.items()},
            "sampler": self.sampler.to_dict(),
            "pruner": self.pruner.to_dict(),
            "points": [dict(point) for point in self.points],
            "warm_start": dict(self.warm_start) or None,
            "trials": self.trials,
            "seeds": list(self.seeds),
            "replicates": self.replicates,
            "budget": self.budget.to_dict(),
            "restarts": dict(self.restarts),
            "baseline": self.baseline,
        }


def load(study: str | Path) -> StudyConfig:
    """The study in the file `study`, or in ``sweeps/<study>.yaml``. Raises `UserError`."""
    path = study_file.find(study)
    raw = study_file.read(path)
    try:
        return from_dict(raw, default_name=study_file.default_name(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def from_dict(raw: Any, default_name: str = "study") -> StudyConfig:
    """A `StudyConfig` from plain values. Raises `UserError`."""
    from sweeps.definition import study_checks

    if not isinstance(raw, Mapping):
        raise UserError(f"got {type(raw).__name__}, expected a mapping with the keys {', '.join(READERS)}")
    for key in raw:
        if key not in READERS:
            raise unknown("unknown key", str(key), ("extends", *READERS))
    if raw.get("experiment") is None:
        raise UserError("experiment: is missing; expected an experiment's name or its YAML file")
    given = {"name": default_name}
    given |= {key: READERS[key](key, value) for key, value in raw.items() if value is not None}
    if "replicates" in given:
        drawn = replicate_seeds(given["name"], given["replicates"])
        if given.get("seeds", ()) not in ((), drawn):
            raise UserError("replicates: got seeds as well; expected how many (`replicates`) or which (`seeds`)")
        given["seeds"] = drawn
    config = StudyConfig(**given)
    study_checks.check(config)
    return config


def replicate_seeds(study: str, replicates: int) -> tuple[int, ...]:
    """The seed of each replicate: the first 31 bits of sha256 of ``"STUDY REPLICATE"``, the same for every arm."""
    digests = (hashlib.sha256(f"{study} {number}".encode()).digest() for number in range(replicates))
    return tuple(int.from_bytes(digest[:4], "big") >> 1 for digest in digests)
