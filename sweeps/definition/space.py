"""The search space of a study: per dotted key a list of choices or a range of numbers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from diffusion_lm.errors import UserError, unknown

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

SCALARS = (str, int, float, bool, type(None))
RANGE_KEYS = ("low", "high", "log", "step")
ARM = "arm"
"""The parameter that says which arm a trial is."""


@dataclass(frozen=True, slots=True)
class Choices:
    """One of a few values, each of which a factorial design visits. `when`: see `conditions`."""

    values: tuple[Any, ...]
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def suggest(self, trial: "Trial", key: str) -> Any:
        """The trial's value: fixed by the design, drawn before, or drawn now."""
        return trial.suggest_categorical(key, self.values)

    def distribution(self) -> "BaseDistribution":
        """As Optuna keeps it beside a value."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.values)

    def corners(self) -> tuple[Any, ...]:
        """Values that planning tries, so that a bad one is found before anything is trained."""
        return self.values

    def to_dict(self) -> dict[str, Any]:
        return {"choices": list(self.values), **_when_to_dict(self.when)}

    def refusal(self, value: Any) -> str | None:
        """What is expected instead of `value`, or None if a trial may have it."""
        known = any(repr(value) == repr(choice) for choice in self.values)
        return None if known else f"one of {', '.join(map(str, self.values))}"


@dataclass(frozen=True, slots=True)
class Range:
    """A number between `low` and `high`, both included; whole if both ends and the step are."""

    low: float
    high: float
    log: bool = False
    step: float | None = None
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether its values are whole numbers."""
        return all(isinstance(number, int) for number in (self.low, self.high, self.step or 1))

    def suggest(self, trial: "Trial", key: str) -> Any:
        """The trial's value: drawn before, or drawn now."""
        if self.whole:
            return trial.suggest_int(key, self.low, self.high, log=self.log, step=self.step or 1)
        return trial.suggest_float(key, self.low, self.high, log=self.log, step=self.step)

    def distribution(self) -> "BaseDistribution":
        """As Optuna keeps it beside a value."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def corners(self) -> tuple[Any, ...]:
        """Both ends."""
        return (self.low, self.high)

    def to_dict(self) -> dict[str, Any]:
        bounds = {"low": self.low, "high": self.high, "log": self.log, "step": self.step}
        return bounds | _when_to_dict(self.when)

    def refusal(self, value: Any) -> str | None:
        """What is expected instead of `value`, or None if a trial may have it."""
        if not is_number(value) or (self.whole and not isinstance(value, int)) or not self.low <= value <= self.high:
            return f"a {'whole ' if self.whole else ''}number from {self.low} to {self.high}"
        steps = (value - self.low) / self.step if self.step else 0
        return None if abs(steps - round(steps)) < 1e-8 else f"{self.low} plus a multiple of {self.step}"


def parse(key: str, raw: Any) -> Choices | Range:
    """The dimension that `raw` (from YAML) describes for `key`: a list, ``choices: [...]``, or ``low: .. high: ..``,
    the latter two with ``when: {KEY: VALUE or VALUES}``. Raises `UserError`."""
    if isinstance(raw, list):
        return _choices(key, raw)
    if not isinstance(raw, Mapping) or not raw:
        raise UserError(f"space: {key}: got {raw!r}, expected a list of choices or low and high")
    when = _when(key, raw.get("when"))
    raw = {name: value for name, value in raw.items() if name != "when"}
    if "choices" in raw:
        for other in raw.keys() - {"choices"}:
            raise UserError(f"space: {key}: got choices and '{other}', expected choices alone, or low and high")
        return replace(_choices(key, raw["choices"]), when=when)
    return replace(_range(key, raw), when=when)


def _when(key: str, raw: Any) -> dict[str, tuple[Any, ...]]:
    if raw is None:
        return {}
    if not isinstance(raw, Mapping) or not raw:
        raise UserError(f"space: {key}: when: got {raw!r}, expected a mapping, for example {{arm: mamba}}")
    conditions = {str(name): tuple(values) if isinstance(values, list) else (values,) for name, values in raw.items()}
    for name, values in conditions.items():
        if not values or not all(isinstance(value, SCALARS) for value in values):
            raise UserError(f"space: {key}: when: {name}: got {raw[name]!r}, expected a value or a list of values")
    return conditions


def _when_to_dict(when: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    return {"when": {key: list(values) for key, values in when.items()}} if when else {}


def _choices(key: str, values: Any) -> Choices:
    if not isinstance(values, list) or not values:
        raise UserError(f"space: {key}: choices: got {values!r}, expected a list with at least one value")
    for value in values:
        if not isinstance(value, SCALARS):
            raise UserError(f"space: {key}: choice {value!r} is not a plain value; make it an arm instead")
    if len({repr(value) for value in values}) < len(values):
        raise UserError(f"space: {key}: choices: got a value twice in {values}; `seeds` asks for replicates")
    return Choices(tuple(values))


def _range(key: str, raw: Mapping[str, Any]) -> Range:
    for name in raw:
        if name not in RANGE_KEYS:
            raise unknown(f"space: {key}: unknown key", name, ("choices", *RANGE_KEYS, "when"))
    for name in ("low", "high"):
        if not is_number(raw.get(name)):
            raise UserError(f"space: {key}: {name}: got {raw.get(name)!r}, expected a number")
    low, high, log, step = raw["low"], raw["high"], raw.get("log", False), raw.get("step")
    if not isinstance(log, bool):
        raise UserError(f"space: {key}: log: got {log!r}, expected true or false")
    if step is not None and (not is_number(step) or step <= 0):
        raise UserError(f"space: {key}: step: got {step!r}, expected a number above 0")
    if log and step is not None:
        raise UserError(f"space: {key}: got log and step, expected one of them")
    if low >= high:
        raise UserError(f"space: {key}: got low {low} and high {high}, expected low < high")
    if log and low <= 0:
        raise UserError(f"space: {key}: got low {low} with log: true, expected low > 0")
    return Range(low, high, log, step)


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number, and not true or false."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def override(key: str, value: Any) -> str:
    """``key=value`` as the command line of the experiments reads it; the value is YAML, so its type survives."""
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True)
    return f"{key}={text.removesuffix('...' + chr(10)).strip()}"


def flatten(tree: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Nested or dotted keys as dotted ones, in the order written: ``{a: {b: 1}, c.d: 2} -> {a.b: 1, c.d: 2}``."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if not isinstance(key, str):
            raise UserError(f"{where or 'overrides'}: got the key {key!r}, expected text")
        place = f"{where}.{key}" if where else key
        flat |= flatten(value, place) if isinstance(value, Mapping) and value else {place: value}
    return flat
