"""What a study may spend (`budget`), what a trial may cost (`constraints`), how often one is continued (`restarts`)."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from diffusion_lm.errors import UserError, unknown
from sweeps.definition.space import is_number

if TYPE_CHECKING:
    from sweeps.records.history import TrialRecord

RESTARTS = {"node": 20, "time": 100, "code": 1, "out_of_memory": 0, "not_finite": 0, "disk": 3, "input": 0}
"""How often a trial that ended by a failure of each class is continued."""
CONSTRAINED = ("parameters", "peak_memory", "seconds", "tokens")
"""Numbers of a trial beside its metrics: parameters without embeddings, bytes on the busiest GPU, seconds, tokens."""
BOUNDS = ("min", "max")


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """No new trial is begun once what was spent has reached one of these; trials under way are finished.

    `trials` counts those begun, `tokens` what they were trained on, `gpu_hours` their wall time times their GPUs or, on
    a CPU, their processes.
    """

    trials: int | None = None
    tokens: float | None = None
    gpu_hours: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}

    def left(self, used: Mapping[str, float]) -> dict[str, float]:
        """What remains of each limit that is set, 0 at least; `used` is what `spent` says."""
        return {key: max(0, limit - used[key]) for key, limit in self.to_dict().items()}

    def reached(self, used: Mapping[str, float]) -> str | None:
        """Which limit was reached, in words; None while there is room."""
        found = (f"{used[key]:,.4g} of {limit:,.4g} {key}" for key, limit in self.to_dict().items()
                 if used[key] >= limit)
        return next(found, None)


def spent(records: Iterable["TrialRecord"]) -> dict[str, float]:
    """What the trials of a study have used so far: trials begun, tokens, GPU hours."""
    begun = [record for record in records if record.trial.datetime_start is not None]
    return {
        "trials": len(begun),
        "tokens": sum(_tokens(record) for record in begun),
        "gpu_hours": sum(record.device_hours or 0 for record in begun),
    }


def _tokens(record: "TrialRecord") -> int:
    ended = record.result or {}
    return max(record.last.get("tokens") or 0, ended.get("tokens") or 0)


def budget(key: str, raw: Any) -> Budget:
    """From YAML. Raises `UserError`."""
    known = ("trials", "tokens", "gpu_hours")
    if not isinstance(raw, Mapping):
        raise UserError(f"{key}: got {raw!r}, expected a mapping with {', '.join(known)}")
    for name, value in raw.items():
        if name not in known:
            raise unknown(f"{key}: unknown key", str(name), known)
        if not is_number(value) or value <= 0 or (name == "trials" and not isinstance(value, int)):
            what = "a whole number" if name == "trials" else "a number"
            raise UserError(f"{key}: {name}: got {value!r}, expected {what} above 0")
    return Budget(**raw)


def restarts(key: str, raw: Any) -> dict[str, int]:
    """From YAML: the defaults with the classes given changed. Raises `UserError`."""
    if not isinstance(raw, Mapping):
        raise UserError(f"{key}: got {raw!r}, expected a mapping of failure classes, for example {{node: 20}}")
    for name, value in raw.items():
        if name not in RESTARTS:
            raise unknown(f"{key}: no failure class", str(name), RESTARTS)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise UserError(f"{key}: {name}: got {value!r}, expected a whole number from 0 on")
    return {**RESTARTS, **raw}


def constraints(key: str, raw: Any, metrics: Iterable[str]) -> dict[str, dict[str, float]]:
    """From YAML: per number of a trial its `min` or `max` or both. Raises `UserError`."""
    if not isinstance(raw, Mapping):
        raise UserError(f"{key}: got {raw!r}, expected a mapping, for example {{parameters: {{max: 1.0e6}}}}")
    known = (*CONSTRAINED, *metrics)
    for name, bounds in raw.items():
        if name not in known:
            raise unknown(f"{key}: no number", str(name), known)
        if not isinstance(bounds, Mapping) or not bounds:
            raise UserError(f"{key}: {name}: got {bounds!r}, expected min or max, for example {{max: 8.0e9}}")
        for bound, value in bounds.items():
            if bound not in BOUNDS:
                raise unknown(f"{key}: {name}: unknown key", str(bound), BOUNDS)
            if not is_number(value):
                raise UserError(f"{key}: {name}: {bound}: got {value!r}, expected a number")
        if bounds.get("min", -math.inf) > bounds.get("max", math.inf):
            raise UserError(f"{key}: {name}: got min {bounds['min']} and max {bounds['max']}, expected min <= max")
    return {name: dict(bounds) for name, bounds in raw.items()}


def violation(bounds: Mapping[str, float], value: float) -> float:
    """By what share of the bound `value` is outside `bounds`, 0 or less inside: samplers add up what is broken, and
    bytes would drown all else."""
    outside = {"max": lambda bound: value - bound, "min": lambda bound: bound - value}
    return max(outside[name](bound) / (abs(bound) or 1) for name, bound in bounds.items())
