"""A study's definition: one YAML file, read into a `StudyConfig`, or refused in one line."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from diffusion_lm.errors import UserError, unknown
from sweeps import study_file
from sweeps.space import Choices, Range, flatten
from sweeps.space import parse as parse_dimension

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
DIRECTIONS = ("minimize", "maximize")
# What training reports under these names: a typing error must show before the first trial is trained, not after.
METRICS = ("val/nll", "val/bpb", "val/ppl_bound", "val/mse", "val/rounding_accuracy", "throughput/tokens_per_second")


@dataclass(frozen=True, slots=True)
class Part:
    """A class of Optuna by its name, and the arguments it is built with."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, **self.arguments}


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyConfig:
    """What is compared: `arms` x `space` x `seeds` over one experiment.

    `arms` are named bundles of overrides, `space` is searched (or, if it holds choices only and `trials` is left out,
    visited completely), `seeds` are replicates: every arm is trained with each of the same seeds. The first metric
    is the objective.
    """

    name: str
    experiment: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    arms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    space: Mapping[str, Choices | Range] = field(default_factory=dict)
    metrics: Mapping[str, str] = field(default_factory=lambda: {"val/nll": "minimize"})
    sampler: Part = Part("TPESampler")
    pruner: Part = Part("NopPruner")
    trials: int | None = None
    seeds: tuple[int, ...] = ()
    baseline: str | None = None

    @property
    def objective(self) -> str:
        """The first metric: what trials report while they train and what tables are sorted by."""
        return next(iter(self.metrics))

    @property
    def cells(self) -> int | None:
        """Arms times choices; None if the space holds a range."""
        if not all(isinstance(dimension, Choices) for dimension in self.space.values()):
            return None
        return max(1, len(self.arms)) * prod(len(dimension.values) for dimension in self.space.values())

    @property
    def factorial(self) -> bool:
        """Whether every cell is visited once per seed; else a sampler chooses."""
        return self.cells is not None and self.size == self.cells * max(1, len(self.seeds))

    @property
    def size(self) -> int:
        """How many trials the study has."""
        if self.trials is not None:
            return self.trials
        assert self.cells is not None, "a study with a range and no `trials` is refused when it is read"
        return self.cells * max(1, len(self.seeds))

    def to_dict(self) -> dict[str, Any]:
        """The definition as plain values; `from_dict` reads it back."""
        return {
            "name": self.name,
            "experiment": self.experiment,
            "overrides": dict(self.overrides),
            "arms": {name: dict(arm) for name, arm in self.arms.items()},
            "space": {key: dimension.to_dict() for key, dimension in self.space.items()},
            "metrics": dict(self.metrics),
            "sampler": self.sampler.to_dict(),
            "pruner": self.pruner.to_dict(),
            "trials": self.trials,
            "seeds": list(self.seeds),
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
    if not isinstance(raw, Mapping):
        raise UserError(f"got {type(raw).__name__}, expected a mapping with the keys {', '.join(READERS)}")
    for key in raw:
        if key not in READERS:
            raise unknown("unknown key", str(key), READERS)
    if raw.get("experiment") is None:
        raise UserError("experiment: is missing; expected an experiment's name or its YAML file")
    given = {key: READERS[key](key, value) for key, value in raw.items() if value is not None}
    config = StudyConfig(**{"name": default_name, **given})
    _check(config)
    return config


def _check(config: StudyConfig) -> None:
    """Refuse what each key alone cannot show."""
    for name in (config.name, *config.arms):
        if not NAME.fullmatch(name):
            raise UserError(f"name '{name}': it names a folder; expected letters, digits and . _ + -")
    if config.baseline is not None and config.baseline not in config.arms:
        raise unknown("baseline: no arm", config.baseline, config.arms)
    if config.pruner.name != "NopPruner" and len(config.metrics) > 1:
        raise UserError(f"pruner: got {config.pruner.name} with {len(config.metrics)} metrics, expected one metric: "
                        "Optuna prunes on a single objective only")
    for place, keys in (("overrides", config.overrides), *config.arms.items()):
        for key in keys:
            if key in config.space:
                raise UserError(f"space: {key}: is fixed by '{place}' as well; remove one of them")
            if key == "seed" and config.seeds:
                raise UserError(f"seed: is set by '{place}' and by `seeds`; remove one of them")
    if "seed" in config.space:
        raise UserError("space: seed: a sampler must not choose the seed; list replicates under `seeds`")
    if config.cells is None and config.trials is None:
        raise UserError("trials: is missing; the space holds a range, so say how many trials to sample")
    if config.cells is not None and config.size > config.cells * max(1, len(config.seeds)):
        raise UserError(f"trials: got {config.trials}, but the design has {config.cells} cells x "
                        f"{max(1, len(config.seeds))} seeds; leave out `trials` to visit each once, or add seeds")


def _typed(kind: type, what: str) -> Callable[[str, Any], Any]:
    def read(key: str, value: Any) -> Any:
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UserError(f"{key}: got {value!r}, expected {what}")
        return value

    return read


_text, _mapping, _list = _typed(str, "text"), _typed(Mapping, "a mapping"), _typed(list, "a list")
_integer = _typed(int, "a whole number")


def _overrides(key: str, value: Any) -> dict[str, Any]:
    return flatten(_mapping(key, value))


def _arms(key: str, value: Any) -> dict[str, dict[str, Any]]:
    arms = {}
    for name, overrides in _mapping(key, value).items():
        arms[_text(f"{key}: name", name)] = flatten(_mapping(f"{key}.{name}", {} if overrides is None else overrides))
    return arms


def _space(key: str, value: Any) -> dict[str, Choices | Range]:
    space = _mapping(key, value)
    return {_text(f"{key}: key", name): parse_dimension(name, dimension) for name, dimension in space.items()}


def _metrics(key: str, value: Any) -> dict[str, str]:
    metrics = _mapping(key, value)
    if not metrics:
        raise UserError(f"{key}: got none, expected at least one, for example val/nll: minimize")
    for name, direction in metrics.items():
        if name not in METRICS:
            raise unknown(f"{key}: no metric", str(name), METRICS)
        if direction not in DIRECTIONS:
            raise unknown(f"{key}: {name}: no direction", str(direction), DIRECTIONS)
    return dict(metrics)


def _part(key: str, value: Any) -> Part:
    if isinstance(value, str):
        return Part(value)
    arguments = dict(_mapping(key, value))
    return Part(_text(f"{key}.name", arguments.pop("name", None)), arguments)


def _trials(key: str, value: Any) -> int:
    if _integer(key, value) < 1:
        raise UserError(f"{key}: got {value}, expected at least 1")
    return value


def _seeds(key: str, value: Any) -> tuple[int, ...]:
    seeds = tuple(_integer(key, seed) for seed in _list(key, value))
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise UserError(f"{key}: got {value}, expected different whole numbers from 0 on")
    return seeds


READERS: dict[str, Callable[[str, Any], Any]] = {
    "name": _text,
    "experiment": _text,
    "overrides": _overrides,
    "arms": _arms,
    "space": _space,
    "metrics": _metrics,
    "sampler": _part,
    "pruner": _part,
    "trials": _trials,
    "seeds": _seeds,
    "baseline": _text,
}
