"""The comparison of a study's arms: plain numbers, which tables, plots and JSON all show."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from diffusion_lm.evaluation.floor import ABOVE, above_floor
from diffusion_lm.kind import Kind
from sweeps.analysis.statistics import Estimate, estimate, paired, paired_sequences
from sweeps.definition.design import ARM
from sweeps.definition.study import StudyConfig
from sweeps.records.history import TrialRecord, asked_again
from sweeps.records.trial_files import BITS, NLL, NLL_ERROR, SPEED


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One arm, or one cell of a factorial design: the mean over its seeds.

    `kind` is that of its numbers: trials of one arm whose kinds differ are rows of their own. In a sampled study the
    row is the best of the arm's trials. `sequences_error` is the standard error of the bound over validation sequences
    of one run (mean over the runs); `value` is the objective over seeds; `against` its paired difference to the
    baseline: over seeds, or with one seed over the sequences that both were evaluated on.
    """

    cell: str
    kind: Kind
    params: dict[str, Any]
    runs: list[TrialRecord]
    trials: int
    metrics: dict[str, float | None]
    sequences_error: float | None
    value: Estimate | None
    speed: float | None
    parameters: int | None
    against: Estimate | None = None

    @property
    def best(self) -> TrialRecord:
        """The run that the command to repeat and the sample text are taken from."""
        return self.runs[0]

    @property
    def seeds_error(self) -> float | None:
        """The standard error of the objective's mean over seeds; None with one seed."""
        return self.value.error if self.value else None

    @property
    def difference(self) -> float | None:
        """The objective's difference to the baseline."""
        return self.against.mean if self.against else None

    @property
    def difference_error(self) -> float | None:
        """The standard error of `difference`."""
        return self.against.error if self.against else None

    def by_seed(self, metric: str) -> dict[int | None, float]:
        """`metric` of each run that reports it, by its seed. Throughput is the median over the run."""
        found = {run.seed: run.speed if metric == SPEED else run.last.get(metric) for run in self.runs}
        return {seed: value for seed, value in found.items() if value is not None}


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
    rows = [_row(config, place[0], group, len(cells[place])) for place, group in groups.items()]
    rows = [_against_baseline(config, row, rows) for row in rows]
    # Numbers of different kinds have different slack, so arms are ranked inside a kind only; those of a process follow
    # one another. Exact numbers are of one kind whatever their process: they stand where the first of them does.
    processes = list(dict.fromkeys(kind.process for _, kind in cells))
    kinds = list(dict.fromkeys(kind for _, kind in cells))

    def place(row: Row) -> tuple[int, int, tuple[bool, float]]:
        kind = kinds.index(row.kind)
        return processes.index(kinds[kind].process), kind, _rank(config, row.metrics[config.objective], row.runs)

    return sorted(rows, key=place)


def _best_group(config: StudyConfig, records: list[TrialRecord]) -> list[TrialRecord]:
    """Of the parameters that were tried in a cell, with numbers of one kind, the best ones that keep the study's
    constraints: all their replicates, the best one first."""
    groups: dict[str, list[TrialRecord]] = defaultdict(list)
    for record in records:
        groups[json.dumps(record.trial.params, sort_keys=True)].append(record)
    group = min(groups.values(), key=lambda group: _rank(config, _mean(config.objective, group), group))
    return sorted(group, key=lambda record: _rank(config, record.last.get(config.objective), [record]))


def _row(config: StudyConfig, cell: str, runs: list[TrialRecord], trials: int) -> Row:
    speeds = [run.speed for run in runs if run.speed]
    return Row(
        cell=cell, kind=Kind.of_result(runs[0].result), params=runs[0].trial.params, runs=runs, trials=trials,
        metrics={name: _mean(name, runs) for name in dict.fromkeys((NLL, BITS, *config.metrics))},
        speed=fmean(speeds) if speeds else None,
        sequences_error=_mean(NLL_ERROR, runs), value=estimate(_values(config.objective, runs)),
        parameters=runs[0].result["parameters"]["non_embedding"],
    )


def _against_baseline(config: StudyConfig, row: Row, rows: list[Row]) -> Row:
    """`row` with its difference to the baseline of its kind: the arm itself, or, in a design of arms and choices, the
    cell of that arm with the same choices."""
    if config.baseline is None:
        return row
    others = [other for other in rows if other.kind == row.kind and _is_baseline(config, row, other)]
    if not others or others[0] is row:
        return row
    found = paired(row.by_seed(config.objective), others[0].by_seed(config.objective))
    if found is not None and found.n == 1 and config.objective == NLL:
        found = paired_sequences(row.best.folder, others[0].best.folder) or found
    return replace(row, against=found)


def _is_baseline(config: StudyConfig, row: Row, other: Row) -> bool:
    # Choices that the baseline does not have (`when:`) leave each of the arm's cells one to be compared with.
    same_choices = all(row.params.get(key) == value for key, value in other.params.items() if key != ARM)
    of_baseline = config.factorial and other.params.get(ARM) == config.baseline and row.params.get(ARM) is not None
    return other.cell == config.baseline or (of_baseline and same_choices)


def _values(metric: str, records: list[TrialRecord]) -> list[float]:
    return [record.last[metric] for record in records if record.last.get(metric) is not None]


def _mean(metric: str, records: list[TrialRecord]) -> float | None:
    values = _values(metric, records)
    return fmean(values) if values else None


def _rank(config: StudyConfig, value: float | None, runs: Iterable[TrialRecord]) -> tuple[bool, float]:
    """Smaller for a better value of the objective; whatever breaks a constraint comes after all that do not."""
    if value is None:
        return True, math.inf
    sign = -1 if config.metrics[config.objective] == "maximize" else 1
    return not all(run.feasible for run in runs), sign * value


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
        "lost": [{"trial": record.number, "cell": record.cell, "seed": record.seed, "metrics": told(config, record),
                  "folder": str(record.folder)} for record in lost(records)],
    }


def lost(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Complete trials whose results are not there any more: they stand in no table."""
    return [record for record in records if record.state == "complete" and not record.result]


def told(config: StudyConfig, record: TrialRecord) -> dict[str, float]:
    """The metrics of a complete trial as Optuna has them."""
    return dict(zip(config.metrics, record.trial.values))


def not_completed(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The trials that ended without a result and that no later trial stands for."""
    replaced = asked_again(records := list(records))
    return [record for record in records if record.state in ("fail", "pruned") and record.number not in replaced]


def _plain(row: Row, corpus: dict[str, Any]) -> dict[str, Any]:
    return {"cell": row.cell, "kind": row.kind.to_dict(), "params": row.params, "trials": row.trials,
            "seeds": [run.seed for run in row.runs], "metrics": row.metrics,
            ABOVE: above_floor(row.metrics[NLL], corpus), "sequences_error": row.sequences_error,
            "seeds_error": row.seeds_error, "interval": row.value.interval if row.value else None,
            "difference": row.difference, "difference_error": row.difference_error,
            "difference_interval": row.against.interval if row.against else None,
            "difference_pairs": row.against.n if row.against else None,
            "difference_over": row.against.over if row.against else None,
            "feasible": row.best.feasible, "speed": row.speed, "parameters": row.parameters,
            "device_hours": sum(run.device_hours or 0 for run in row.runs),
            "folders": [str(run.folder) for run in row.runs]}
