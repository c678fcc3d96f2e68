"""Names and shapes of tensors, checked: the refusal names the first that is not as it has to be."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from diffusion_lm.errors import UserError
from diffusion_lm.shapes import Tensor

Shapes = Mapping[str, Sequence[int]]


def check(where: str | Path, state: Mapping[str, Tensor], expected: Shapes, what: str) -> None:
    """Refuse `state` unless it holds exactly the tensors of `expected`, which are those of `what`."""
    for name, shape in expected.items():
        if name not in state:
            raise missing(where, name, what)
        if tuple(state[name].shape) != tuple(shape):
            raise UserError(
                f"{where}: '{name}' has shape {list(state[name].shape)}, expected {list(shape)} for {what}"
            )
    more = [name for name in state if name not in expected]
    if more:
        others = f" and {len(more) - 1} other(s)" if len(more) > 1 else ""
        raise UserError(f"{where}: '{more[0]}'{others} found, expected nothing beside the tensors of {what}")


def missing(where: str | Path, name: str, what: str) -> UserError:
    """The refusal of a state without `name`."""
    return UserError(f"{where}: no tensor '{name}', expected all of {what}; is it another format, or a part of one?")


def without(state: Mapping[str, Tensor], prefixes: Sequence[str], ignored: Sequence[str]) -> dict[str, Tensor]:
    """`state` with leading `prefixes` cut off its names, in that order, and without names that begin as `ignored`."""
    found = {}
    for name, value in state.items():
        for prefix in prefixes:
            name = name.removeprefix(prefix)
        if not name.startswith(tuple(ignored)):
            found[name] = value
    return found
