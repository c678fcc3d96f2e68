"""The comparison of a study's arms: plain numbers, which tables, plots and JSON all show."""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from diffusion_lm.evaluation.floor import ABOVE, above_floor
from diffusion_lm.kind import Kind
from sweeps.history import TrialRecord
from sweeps.study import StudyConfig
from sweeps.trial_files import BITS, NLL, NLL_ERROR


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One arm, or one cell of a factorial design: the mean over its seeds.

    `kind` is that of its numbers: trials of one arm whose kinds differ are rows of their own.
    `sequences_error` is the standard error over validation sequences of one run (mean over the runs); `seeds_error`
    that of the mean over seeds, None with one seed. In a sampled study the row is the best of the arm's trials.
    """

    cell: str
    kind: Kind
    params: dict[str, Any]
    runs: list[TrialRecord]
    trials: int
    metrics: dict[str, float | None]
    sequences_error: float | None
    seeds_error: float | None
    speed: float | None
    parameters: int | None
    difference: float | None = None
    difference_error: float | None = None

    @property
    def best(self) -> TrialRecord:
        """The run that the command to repeat and the sample text are taken from."""
        return self.runs[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """The arms that were trained on one corpus: kind by kind, in each the best first."""

    corpus: dict[str, Any]
    rows: list[Row]

    @property
    def kinds(self) -> list[Kind]:
        """The kinds of number that the rows hold, in their order."""
        return list(dict.fromkeys(row.kind for row in self.rows))

    @property
    def best(self) -> list[Row]:
        """The best row of each kind: no row is better than one of another kind."""
        return [next(row for row in self.rows if row.kind == kind) for kind in self.kinds]


def compare(config: StudyConfig, records: Iterable[TrialRecord]) -> list[Comparison]:
    """One comparison per corpus hash: a bound on other text is another quantity."""
    by_corpus: dict[str, list[TrialRecord]] = defaultdict(list)
    for record in records:
        if record.state == "complete" and record.result:
            by_corpus[record.result["corpus"]["hash"]].append(record)
    return [Comparison(corpus=found[0].result["corpus"], rows=_rows(config, found)) for found in by_corpus.values()]


def _rows(config: StudyConfig, records: list[TrialRecord]) -> list[Row]:
    cells: dict[tuple[str, Kind], list[TrialRecord]] = defaultdict(list)
    for record in records:
        cells[record.cell, Kind.of_result(record.result)].append(record)
    groups = {place: _best_group(config, found) for place, found in cells.items()}
    rows = [_row(config, place[0], group, len(cells[place]), groups.get((config.baseline, place[1])))
            for place, group in groups.items()]
    # Numbers of different kinds have different slack, so arms are ranked inside a kind only; those of a process follow
    # one another. Exact numbers are of one kind whatever their process: they stand where the first of them does.
    processes = list(dict.fromkeys(kind.process for _, kind in cells))
    kinds = list(dict.fromkeys(kind for _, kind in cells))

    def place(row: Row) -> tuple[int, int, float]:
        kind = kinds.index(row.kind)
        return processes.index(kinds[kind].process), kind, _rank(config, row.metrics[config.objective])

    return sorted(rows, key=place)


def _best_group(config: StudyConfig, records: list[TrialRecord]) -> list[TrialRecord]:
    """Of the parameters that were tried in a cell, with numbers of one kind, the best ones: all their replicates, the
    best one first."""
    groups: dict[str, list[TrialRecord]] = defaultdict(list)
    for record in records:
        groups[json.dumps(record.trial.params, sort_keys=True)].append(record)
    group = min(groups.values(), key=lambda group: _rank(config, _mean(config.objective, group)))
    return sorted(group, key=lambda record: _rank(config, record.last.get(config.objective)))


def _row(config: StudyConfig, cell: str, runs: list[TrialRecord], trials: int,
         baseline: list[TrialRecord] | None) -> Row:
    """`baseline`: the baseline's runs of this kind, if there are any."""
    values = _values(config.objective, runs)
    differences = _paired(config.objective, runs, baseline) if baseline is not None and runs is not baseline else []
    return Row(
        cell=cell, kind=Kind.of_result(runs[0].result), params=runs[0].trial.params, runs=runs, trials=trials,
        metrics={name: _mean(name, runs) for name in dict.fromkeys((NLL, BITS, *config.metrics))},
        speed=statistics.fmean(speeds) if (speeds := [run.speed for run in runs if run.speed]) else None,
        sequences_error=_mean(NLL_ERROR, runs), seeds_error=standard_error(values),
        parameters=runs[0].result["parameters"]["non_embedding"],
        difference=statistics.fmean(differences) if differences else None,
        difference_error=standard_error(differences),
    )


def _paired(metric: str, runs: list[TrialRecord], baseline: list[TrialRecord]) -> list[float]:
    """Differences between runs of one seed: what both share, their data order among it, cancels."""
    of_seed = {record.seed: record.last.get(metric) for record in baseline}
    pairs = ((record.last.get(metric), of_seed.get(record.seed)) for record in runs)
    return [ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None]


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean of `values`; None for fewer than two."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def _values(metric: str, records: list[TrialRecord]) -> list[float]:
    return [record.last[metric] for record in records if record.last.get(metric) is not None]


def _mean(metric: str, records: list[TrialRecord]) -> float | None:
    values = _values(metric, records)
    return statistics.fmean(values) if values else None


def _rank(config: StudyConfig, value: float | None) -> float:
    """A number that is smaller for a better value of the objective."""
    if value is None:
        return math.inf
    return -value if config.metrics[config.objective] == "maximize" else value


def to_json(config: StudyConfig, comparisons: list[Comparison], records: list[TrialRecord]) -> dict[str, Any]:
    """The comparison for programs."""
    return {
        "study": config.name,
        "objective": config.objective,
        "corpora": [{"corpus": table.corpus, "best": {str(row.kind): row.cell for row in table.best},
                     "rows": [_plain(row, table.corpus) for row in table.rows]} for table in comparisons],
        "trials": {state: sum(record.state == state for record in records)
                   for state in ("complete", "running", "waiting", "pruned", "fail")},
        "not_completed": [{"trial": record.number, "cell": record.cell, "seed": record.seed, "state": record.state,
                           "reason": record.note("reason")} for record in not_completed(records)],
    }


def not_completed(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The trials that ended without a result."""
    return [record for record in records if record.state in ("fail", "pruned")]


def _plain(row: Row, corpus: dict[str, Any]) -> dict[str, Any]:
    return {"cell": row.cell, "kind": row.kind.to_dict(), "params": row.params, "trials": row.trials,
            "seeds": [run.seed for run in row.runs], "metrics": row.metrics,
            ABOVE: above_floor(row.metrics[NLL], corpus), "sequences_error": row.sequences_error,
            "seeds_error": row.seeds_error, "difference": row.difference, "difference_error": row.difference_error,
            "speed": row.speed, "parameters": row.parameters, "folders": [str(run.folder) for run in row.runs]}
