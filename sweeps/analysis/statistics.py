"""Means over seeds and paired differences, with the error that goes with them.

Intervals are Student's t at 95 %: with few seeds the normal one is far too narrow (two seeds: 12.7 standard errors
instead of 2). Differences are taken between runs of one seed (or, where there is one seed only, between likelihoods of
one validation sequence): what both share, initial weights and data order among it, cancels.
"""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import stdev
from typing import Any

LEVEL = 0.95
ENOUGH_SEEDS = 5
SEEDS, SEQUENCES = "seeds", "sequences"
PER_RUN = ("runs", "git", "versions", "device", "difference")
"""What the manifests of two evaluations on the same sequences with the same noise may differ in."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean of `n` independent values; `error` is its standard error, None for one value.

    `over` says what the values are of: seeds, or validation sequences.
    """

    mean: float
    error: float | None
    n: int
    over: str = SEEDS

    @property
    def half_width(self) -> float | None:
        """Half of the 95 % interval; None where no error is known."""
        return None if self.error is None else quantile(self.n - 1) * self.error

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the mean."""
        half = self.half_width
        return None if half is None else (self.mean - half, self.mean + half)


def estimate(values: Iterable[float], over: str = SEEDS) -> Estimate | None:
    """Mean and standard error of `values`; None without any."""
    found = list(values)
    return Estimate(math.fsum(found) / len(found), standard_error(found), len(found), over) if found else None


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean of `values`; None for fewer than two."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


@cache
def quantile(freedom: float) -> float:
    """Standard errors in half of a 95 % interval, with `freedom` degrees of freedom."""
    from scipy.special import stdtrit  # of scipy.stats, whose import takes a second, the quantile of t

    return float(stdtrit(freedom, (1 + LEVEL) / 2))


def paired(ours: Mapping[Any, float], theirs: Mapping[Any, float], over: str = SEEDS) -> Estimate | None:
    """The mean of ours - theirs over the keys (seeds, sequences) that both have; None where they share none."""
    return estimate((value - theirs[key] for key, value in ours.items() if key in theirs), over)


def screen(seeds: Iterable[int]) -> str | None:
    """What is to be said of a table whose arms have so many `seeds` each; None with five and more everywhere."""
    fewest, most = min(found := list(seeds), default=0), max(found, default=0)
    if not found or fewest >= ENOUGH_SEEDS:
        return None
    count = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    plural = "" if most == 1 else "s"
    return (f"screen: n = {count} seed{plural}, fewer than five: it shows where to look, "
            "and is no evidence for small differences.")


def of_sequences(folder: Path) -> dict[str, tuple[dict[str, Any], dict[str, float]]]:
    """The evaluations in a run's folder: by name, how each was done and nats per token by the sequence's place.

    Evaluations of two runs at once, and folders without a manifest (not finished), are passed over.
    """
    found = {}
    for manifest in sorted(folder.glob("evaluation/*/manifest.json")):
        try:
            done = json.loads(manifest.read_text())
            with open(manifest.with_name("sequences.csv"), newline="") as file:
                (_, *labels), *rows = csv.reader(file)
            if len(labels) == 1:
                how = {key: value for key, value in done.items() if key not in PER_RUN}
                found[manifest.parent.name] = (how, {place: float(value) for place, value in rows})
        except (OSError, ValueError):
            continue
    return found


def paired_sequences(ours: Path, theirs: Path) -> Estimate | None:
    """The difference between two runs over sequences that both were evaluated on with one noise (``evaluate``).

    None where there is no such evaluation: two standard errors do not give the error of a difference of pairs.
    """
    other = of_sequences(theirs)
    for name, (how, values) in of_sequences(ours).items():
        if name in other and other[name][0] == how:
            return paired(values, other[name][1], SEQUENCES)
    return None
