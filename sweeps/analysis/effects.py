"""What each factor of a design does, averaged over the others, and what two of them do together.

Designs are read by least squares on sum-to-zero codes, with the seed as a block, so that a failed trial or a fractional
design gives means adjusted for the others instead of crooked ones. In a complete design they are the plain means and
sums of squares of the textbook (Montgomery, Design and Analysis of Experiments, ch. 5). The error is that of replicates
of a cell where there are any, else what the additive model leaves, which takes interactions for noise. Everything is
inside one kind of number, and a conditional parameter is read among the trials that have it.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from diffusion_lm.kind import Kind
from sweeps.analysis.comparison import Comparison, Row
from sweeps.analysis.statistics import quantile
from sweeps.definition.study import StudyConfig
from sweeps.records import trial_files
from sweeps.records.history import TrialRecord

SEED = "seed"
TOLERANCE = 1e-8
REPLICATES, ADDITIVE = "replicates of a cell", "what the additive model leaves (interactions count as noise)"


@dataclass(frozen=True, slots=True)
class Level:
    """The objective at one level of a factor, the others averaged over; half of its 95 % interval, None without an
    error; from so many trials."""

    value: Any
    mean: float
    half_width: float | None
    trials: int


@dataclass(frozen=True, slots=True)
class Effect:
    """A factor: its levels, and its share of the sum of squares (of the trials that have the factor)."""

    factor: str
    levels: list[Level]
    share: float
    conditional: bool


@dataclass(frozen=True, slots=True)
class Interaction:
    """Two factors: the mean of the trials at each pair of levels (None where there is none), and the share of the sum
    of squares that both together explain beyond what each does alone."""

    factors: tuple[str, str]
    levels: tuple[list[Any], list[Any]]
    means: list[list[float | None]]
    share: float


@dataclass(frozen=True, slots=True)
class Effects:
    """All effects among trials of one kind, the largest first."""

    kind: Kind
    main: list[Effect]
    interactions: list[Interaction]
    error: str | None


@dataclass(frozen=True, slots=True)
class Point:
    """A trial's objective, its levels by factor, and its seed."""

    value: float
    levels: dict[str, Hashable]
    seed: int | None


def of_design(config: StudyConfig, comparison: Comparison) -> list[Effects]:
    """The effects in a factorial or fractional study, kind by kind; none where a kind has fewer than two factors with
    a choice: the table says it all then. Without the trials that `diverged`."""
    if not config.factorial:
        return []
    found = []
    for kind in comparison.kinds:
        points = _points(config, [row for row in comparison.rows if row.kind == kind])
        factors = _factors(points)
        if len(factors) > 1:
            found.append(_effects(kind, points, factors))
    return found


def diverged(config: StudyConfig, rows: Sequence[Row]) -> list[TrialRecord]:
    """Finished trials whose bound is absurd: one would be all of the sum of squares. Workers tell such a trial as
    failed, but did not always."""
    if not trial_files.OF_BOUND & {config.objective}:
        return []
    return [run for row in rows for run in row.runs if trial_files.diverged(run.result)]


def _points(config: StudyConfig, rows: Sequence[Row]) -> list[Point]:
    # By number, so that levels come in the order of the design and not in that of their results.
    left_out = {run.number for run in diverged(config, rows)}
    runs = sorted((run for row in rows for run in row.runs if run.number not in left_out), key=lambda run: run.number)
    return [Point(run.last[config.objective], dict(run.trial.params), run.seed) for run in runs
            if run.last.get(config.objective) is not None]


def _factors(points: Sequence[Point]) -> list[str]:
    """Those with at least two levels, in the order of the design."""
    levels: dict[str, set[Hashable]] = {}
    for point in points:
        for name, value in point.levels.items():
            levels.setdefault(name, set()).add(value)
    return [name for name, values in levels.items() if len(values) > 1]


def _effects(kind: Kind, points: list[Point], factors: list[str]) -> Effects:
    main = [effect for factor in factors if (effect := _main(points, factor, factors))]
    both = [found for names in combinations(factors, 2) if (found := _interaction(points, names, factors))]
    fit = Fit(points, [name for name in factors if all(name in point.levels for point in points)])
    return Effects(kind, sorted(main, key=lambda effect: -effect.share), sorted(both, key=lambda found: -found.share),
                   fit.error_source)


class Fit:
    """Least squares of the objective on seed and `factors`, over `points` that all have these factors."""

    def __init__(self, points: Sequence[Point], factors: Sequence[str]):
        self.points, self.factors = points, list(factors)
        self.y = np.array([point.value for point in points])
        self.blocks = {name: _coded([point.levels[name] for point in points]) for name in factors}
        self.seeds = _coded([point.seed for point in points])
        self.total = float(((self.y - self.y.mean()) ** 2).sum())
        self.variance, self.freedom, self.error_source = self._error()

    def matrix(self, *more: np.ndarray, without: str | None = None) -> np.ndarray:
        """Intercept, seeds and factors, then `more`."""
        kept = [block for name, block in self.blocks.items() if name != without]
        return np.hstack([np.ones((len(self.y), 1)), self.seeds, *kept, *more])

    def left(self, matrix: np.ndarray) -> tuple[float, int]:
        """The sum of squares that `matrix` does not explain, and its rank."""
        fitted, _, rank, _ = np.linalg.lstsq(matrix, self.y, rcond=None)
        return float(((self.y - matrix @ fitted) ** 2).sum()), int(rank)

    def _error(self) -> tuple[float | None, int, str | None]:
        cells = _coded([tuple(sorted((name, repr(level)) for name, level in point.levels.items()))
                        for point in self.points])
        ones = np.ones((len(self.y), 1))
        for source, matrix in ((REPLICATES, np.hstack([ones, self.seeds, cells])), (ADDITIVE, self.matrix())):
            left, rank = self.left(matrix)
            if len(self.y) > rank:
                return left / (len(self.y) - rank), len(self.y) - rank, source
        return None, 0, None


def _main(points: Sequence[Point], factor: str, factors: Sequence[str]) -> Effect | None:
    """None where a level cannot be told from the levels of other factors."""
    having = [point for point in points if factor in point.levels]
    fit = Fit(having, _shared(having, factor, factors))
    matrix = fit.matrix()
    inverse = np.linalg.pinv(matrix.T @ matrix)
    solution = inverse @ matrix.T @ fit.y
    place = 1 + fit.seeds.shape[1] + sum(fit.blocks[name].shape[1] for name in fit.factors[:-1])
    values = [point.levels[factor] for point in having]
    levels = []
    for level in dict.fromkeys(values):
        contrast = np.zeros(matrix.shape[1])
        contrast[0], contrast[place:] = 1, fit.blocks[factor][values.index(level)]
        if np.abs(contrast @ inverse @ (matrix.T @ matrix) - contrast).max() > TOLERANCE:
            return None
        error = None if fit.variance is None else (fit.variance * contrast @ inverse @ contrast) ** 0.5
        half = None if error is None else quantile(fit.freedom) * float(error)
        levels.append(Level(level, float(contrast @ solution), half, values.count(level)))
    explained = fit.left(fit.matrix(without=factor))[0] - fit.left(matrix)[0]
    return Effect(factor, levels, _share(explained, fit.total), len(having) < len(points))


def _interaction(points: Sequence[Point], names: tuple[str, str], factors: Sequence[str]) -> Interaction | None:
    """None where no trial tells both together from what each does alone, as under aliasing."""
    having = [point for point in points if all(name in point.levels for name in names)]
    if any(len({point.levels[name] for point in having}) < 2 for name in names):
        return None
    fit = Fit(having, _shared(having, names[0], factors))
    if names[1] not in fit.factors:
        return None
    first, second = (fit.blocks[name] for name in names)
    products = (first[:, :, None] * second[:, None, :]).reshape(len(having), -1)
    (left, rank), (left_with, rank_with) = fit.left(fit.matrix()), fit.left(fit.matrix(products))
    if rank_with == rank:
        return None
    levels = tuple(list(dict.fromkeys(point.levels[name] for point in having)) for name in names)
    means = [[_mean([point.value for point in having if (point.levels[names[0]], point.levels[names[1]]) == (a, b)])
              for b in levels[1]] for a in levels[0]]
    return Interaction(names, levels, means, _share(left - left_with, fit.total))


def _shared(points: Sequence[Point], last: str, factors: Sequence[str]) -> list[str]:
    """The factors that all of `points` have and that vary among them, `last` as the last."""
    common = [name for name in factors if all(name in point.levels for point in points) and name != last
              and len({point.levels[name] for point in points}) > 1]
    return [*common, last]


def _coded(values: Sequence[Hashable]) -> np.ndarray:
    """Sum-to-zero codes, [len(values), levels - 1]: the last level is minus one everywhere."""
    levels = list(dict.fromkeys(values))
    table = np.vstack([np.eye(len(levels) - 1), -np.ones(len(levels) - 1)])
    return table[[levels.index(value) for value in values]]


def _share(explained: float, total: float) -> float:
    return max(0.0, explained / total) if total else 0.0


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None
