"""Keys without effect: a value that was set and that nothing reads is refused, in one line, when a config is read.

Which keys have no effect is said by the part that does not look at them: its config has a method ``unused(experiment)``
that returns ``{dotted key: why}``, for keys of its own and of others. A key at its default is never refused, so that
experiments can share a file.
"""

from dataclasses import fields, is_dataclass
from typing import Any

from diffusion_lm.config import config_class, defaults, name_of, part_class
from diffusion_lm.errors import UserError


def refuse_unused(experiment: Any) -> None:
    """Raise `UserError` for the first key of an `ExperimentConfig` that was set and has no effect."""
    for f in fields(experiment):
        unused = getattr(getattr(experiment, f.name), "unused", None)
        for key, why in (unused(experiment) if unused else {}).items():
            for place, value, default in _set(key, *_value(experiment, key)):
                raise UserError(
                    f"{place}: got {value}, which has no effect here: {why}; leave it out, or set it to {default}"
                )


def _value(experiment: Any, key: str) -> tuple[Any, Any]:
    """What stands at a dotted key, and its default."""
    owner, (*path, name) = experiment, key.split(".")
    for step in path:
        owner = getattr(owner, step)
    default = defaults(type(owner))[name]
    if default == "auto" and name == "schedule":
        default = config_class("schedules", part_class(experiment.objective).default_schedule)()
    return getattr(owner, name), default


def _set(place: str, value: Any, default: Any) -> list[tuple[str, Any, Any]]:
    """(place, value, default) of the leaves that differ; of a part that is another variant, its name."""
    if not is_dataclass(value):
        return [] if value == default else [(place, value, default)]
    if type(value) is not type(default):
        return [(place, name_of(value), name_of(default))]
    inner = [(f"{place}.{f.name}", getattr(value, f.name), getattr(default, f.name)) for f in fields(value)]
    return [found for each in inner for found in _set(*each)]
