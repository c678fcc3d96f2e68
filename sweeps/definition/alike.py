"""Cells and arms that the study tells apart and that are one experiment: trained twice, compared with itself."""

import json
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

from diffusion_lm.errors import UserError
from sweeps.definition.space import ARM, Choices
from sweeps.definition.study import StudyConfig

Params = Mapping[str, Any]


def refuse_equal_choices(config: StudyConfig, tried: Iterable[tuple[Params, Mapping[str, Any]]]) -> None:
    """Raise `UserError` for two choices that make one experiment, as 1 and 1.0 do. `tried` is the parameters that
    planning tried, each with the experiment that they make."""
    same: dict[tuple[Any, str], list[Params]] = {}
    for params, tree in tried:
        same.setdefault((params.get(ARM), _experiment(tree)), []).append(params)
    for found in same.values():
        for one, other in combinations(found, 2):
            differ = [key for key in one if repr(one[key]) != repr(other.get(key))]
            # A known point may say 1 where a range or a choice says 1.0: that is the same place.
            if one.keys() == other.keys() and all(_chosen(config, key, one, other) for key in differ):
                told = " and ".join(", ".join(f"{key}={params[key]!r}" for key in differ) for params in (one, other))
                arm = f" of arm {one[ARM]}" if ARM in one else ""
                raise UserError(f"space: {told} are one experiment{arm}; remove one of them (`seeds` asks for "
                                "replicates)")


def remarks(config: StudyConfig, references: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Which arms are one experiment, wherever in the space. `references` are the arms' experiments at its first
    corner."""
    same: dict[tuple[str, ...], list[str]] = {}
    for arm, tree in references.items():
        has_not = [key for key, dimension in config.space.items() if arm not in dimension.when.get(ARM, (arm,))]
        same.setdefault((_experiment(tree), *has_not), []).append(arm)
    return [f"arms: {' and '.join(arms)} are one experiment under different names" for arms in same.values()
            if len(arms) > 1]


def _chosen(config: StudyConfig, key: str, *params: Params) -> bool:
    """Whether `key` is a choice and each of `params` has one of those that the study lists."""
    dimension = config.space.get(key)
    return isinstance(dimension, Choices) and all(dimension.refusal(each[key]) is None for each in params)


def _experiment(tree: Any) -> str:
    """What is equal for experiments that are."""
    return json.dumps(_with_floats(tree), sort_keys=True, default=str)


def _with_floats(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_floats(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_with_floats(each) for each in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
