"""`when:`, parameters that only some trials have: d_state where the arm is Mamba, a clamp where a weighting clamps."""

from collections.abc import Mapping, Sequence
from itertools import product
from math import prod
from typing import Any

from diffusion_lm.errors import UserError, unknown
from sweeps.definition.space import ARM, Choices, Range

Space = Mapping[str, Choices | Range]


def holds(dimension: Choices | Range, params: Mapping[str, Any]) -> bool:
    """Whether a trial with `params`, those that the condition names among them, has this parameter too.

    A parameter that is left out has no value, so nothing that depends on it holds.
    """
    return all(key in params and is_one_of(params[key], values) for key, values in dimension.when.items())


def is_one_of(value: Any, values: Sequence[Any]) -> bool:
    """Whether `value` is among `values`, where 1, 1.0 and true differ as they do in YAML."""
    return repr(value) in map(repr, values)


def order(space: Space) -> list[str]:
    """The keys of `space` as written, but each after those that its condition names. Raises `UserError` for circles."""
    done: list[str] = []

    def visit(key: str, path: tuple[str, ...]) -> None:
        if key in path:
            raise UserError(f"space: {key}: when: leads back to itself ({' -> '.join((*path, key))}); expected "
                            "conditions that end in an arm or in a key without `when`")
        for parent in space[key].when:
            if parent in space:
                visit(parent, (*path, key))
        if key not in done:
            done.append(key)

    for key in space:
        visit(key, ())
    return done


def check(arms: Mapping[str, Any], space: Space) -> None:
    """Refuse conditions on what is not there. Raises `UserError`."""
    for key, dimension in space.items():
        for parent, values in dimension.when.items():
            known = ({ARM: tuple(arms)} if arms else {}) | {name: other.corners() for name, other in space.items()}
            if parent not in known or parent == key:
                raise unknown(f"space: {key}: when: no key", parent, known.keys() - {key})
            if isinstance(space.get(parent), Range):
                raise UserError(f"space: {key}: when: {parent} is a range; expected an arm or a key with choices")
            for value in values:
                if not is_one_of(value, known[parent]):
                    raise UserError(f"space: {key}: when: {parent}: got {value!r}, expected one of "
                                    f"{', '.join(map(str, known[parent]))}")
    order(space)


def expand(axes: Mapping[str, Sequence[Any]], space: Space) -> list[dict[str, Any]]:
    """Every combination of `axes` (``{key: values}``), the last varying fastest; keys of `space` whose condition does
    not hold are left out, so that no combination is there twice."""
    if not any(space[key].when for key in axes if key in space):
        return [dict(zip(axes, values)) for values in product(*axes.values())]
    sequence = [key for key in axes if key not in space] + [key for key in order(space) if key in axes]
    cells: list[dict[str, Any]] = [{}]
    for key in sequence:
        cells = [{**cell, **more} for cell in cells for more in (
            [{key: value} for value in axes[key]] if key not in space or holds(space[key], cell) else [{}])]
    return [{key: cell[key] for key in axes if key in cell} for cell in cells]


def count(axes: Mapping[str, Sequence[Any]], space: Space) -> int:
    """How many combinations `expand` would give; only keys that conditions tie together are multiplied out."""
    tied = {name for key in axes if key in space for name in (*space[key].when, *([key] if space[key].when else []))}
    free = prod(len(values) for key, values in axes.items() if key not in tied)
    return free * len(expand({key: values for key, values in axes.items() if key in tied}, space))
