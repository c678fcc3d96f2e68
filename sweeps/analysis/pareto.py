"""Which arms nobody beats in two metrics at once, as far as the noise lets one say so.

An arm is dominated if another of its kind is better in both metrics by more than the 95 % interval of the difference
(or equal in one of them). Where the means say that it is beaten and the intervals do not, it is close to the front:
more seeds may put it there. Nothing is said across kinds of number.
"""

from collections.abc import Mapping, Sequence

from sweeps.analysis.comparison import Row
from sweeps.analysis.statistics import paired, paired_sequences, quantile
from sweeps.definition.study import StudyConfig
from sweeps.records.trial_files import NLL, NLL_ERROR, SPEED

FRONT, CLOSE, DOMINATED = "front", "close", "dominated"
MEANING = ("Front: among arms of one kind, none is better in both metrics. Close: one is by the means, but not by more "
           "than the 95 % interval of the difference.")


def pair(config: StudyConfig) -> dict[str, str]:
    """The two metrics of the front and their directions: the study's first two, else its objective and throughput."""
    metrics = {**config.metrics} if len(config.metrics) > 1 else {**config.metrics, SPEED: "maximize"}
    return dict(list(metrics.items())[:2])


def front(rows: Sequence[Row], metrics: Mapping[str, str]) -> list[str | None]:
    """For each row `FRONT`, `CLOSE` or `DOMINATED`; None for one that lacks a metric or breaks a constraint."""
    able = [all(mean(row, name) is not None for name in metrics) and row.best.feasible for row in rows]
    found: list[str | None] = []
    for row, known in zip(rows, able):
        rivals = [other for other, also in zip(rows, able) if also and other is not row and other.kind == row.kind]
        verdicts = [_verdict(row, rival, metrics) for rival in rivals]
        order = (DOMINATED, CLOSE, FRONT)
        found.append(min([*verdicts, FRONT], key=order.index) if known else None)
    return found


def mean(row: Row, metric: str) -> float | None:
    """The row's number in `metric`; throughput is the median over each run."""
    return row.speed if metric == SPEED else row.metrics.get(metric)


def _verdict(row: Row, rival: Row, metrics: Mapping[str, str]) -> str:
    """What `rival` makes of `row`."""
    certain, worse = True, False
    for name, direction in metrics.items():
        gain = mean(rival, name) - mean(row, name)
        gain = gain if direction == "maximize" else -gain
        if gain < 0:
            return FRONT
        worse = worse or gain > 0
        certain = certain and (gain == 0 or gain > _half_width(row, rival, name))
    return FRONT if not worse else DOMINATED if certain else CLOSE


def _half_width(row: Row, rival: Row, metric: str) -> float:
    """Half of the 95 % interval of the difference: over shared seeds; else over sequences, where the bound is meant.

    0 where nothing is known of the noise, as of the throughput of one run.
    """
    found = paired(row.by_seed(metric), rival.by_seed(metric))
    if found is not None and found.half_width is not None:
        return found.half_width
    if metric != NLL:
        return 0.0
    found = paired_sequences(row.best.folder, rival.best.folder)
    if found is not None and found.half_width is not None:
        return found.half_width
    errors = [run.best.last.get(NLL_ERROR) or 0.0 for run in (row, rival)]
    return quantile(float("inf")) * (errors[0] ** 2 + errors[1] ** 2) ** 0.5
