"""The keys of a study file: how the value of each is read, or refused in one line."""

from collections.abc import Callable, Mapping
from typing import Any

from diffusion_lm.errors import UserError, unknown
from sweeps.definition import fractional, limits
from sweeps.definition.parts import Part
from sweeps.definition.space import Choices, Range, flatten
from sweeps.definition.space import parse as parse_dimension

DIRECTIONS = ("minimize", "maximize")
# What training reports under these names: a typing error must show before the first trial is trained, not after.
METRICS = ("val/nll", "val/bpb", "val/ppl_bound", "val/mse", "val/rounding_accuracy", "throughput/tokens_per_second",
           "gen/common_3grams", "gen/entropy", "gen/reference_3grams", "gen/calls")
WARM_START = ("study", "storage")


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
        raise UserError(f"{key}: got {{}}, expected at least one, for example val/nll: minimize")
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


def _positive(key: str, value: Any) -> int:
    if _integer(key, value) < 1:
        raise UserError(f"{key}: got {value}, expected at least 1")
    return value


def _seeds(key: str, value: Any) -> tuple[int, ...]:
    seeds = tuple(_integer(key, seed) for seed in _list(key, value))
    if min(seeds, default=0) < 0 or len(set(seeds)) < len(seeds):
        raise UserError(f"{key}: got {value}, expected different whole numbers from 0 on")
    return seeds


def _constraints(key: str, value: Any) -> dict[str, dict[str, float]]:
    return limits.constraints(key, value, METRICS)


def _points(key: str, value: Any) -> tuple[dict[str, Any], ...]:
    return tuple(flatten(_mapping(f"{key}: {index}", point)) for index, point in enumerate(_list(key, value)))


def _warm_start(key: str, value: Any) -> dict[str, str]:
    if isinstance(value, str):
        return {"study": value}
    for name, text in _mapping(key, value).items():
        if name not in WARM_START:
            raise unknown(f"{key}: unknown key", str(name), WARM_START)
        _text(f"{key}: {name}", text)
    if "study" not in value:
        raise UserError(f"{key}: study: is missing; expected the name or the folder of the study to start from")
    return dict(value)


READERS: dict[str, Callable[[str, Any], Any]] = {
    "name": _text,
    "experiment": _text,
    "overrides": _overrides,
    "arms": _arms,
    "space": _space,
    "design": fractional.parse,
    "metrics": _metrics,
    "constraints": _constraints,
    "sampler": _part,
    "pruner": _part,
    "points": _points,
    "warm_start": _warm_start,
    "trials": _positive,
    "seeds": _seeds,
    "replicates": _positive,
    "budget": limits.budget,
    "restarts": limits.restarts,
    "baseline": _text,
}
"""Each key with `read(key, value)`; `extends` is resolved before these are asked."""
