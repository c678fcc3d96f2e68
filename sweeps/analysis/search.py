"""How a search over a space went: the best so far, and which dimensions mattered. Inside one kind of number."""

from collections.abc import Sequence
from dataclasses import dataclass

from optuna.distributions import BaseDistribution

from diffusion_lm.kind import Kind
from sweeps.definition.study import StudyConfig
from sweeps.records.history import TrialRecord

FEWEST_TRIALS = 10
"""With fewer, what is called important is chance."""
TOP = 0.25
"""PED-ANOVA asks what sets the best quarter of the trials apart; Optuna's tenth is a single trial in small studies."""


@dataclass(frozen=True, slots=True)
class Search:
    """Of trials of one kind: number, objective and the best objective so far; importances, the largest first.

    Importances sum to one among the parameters that all trials have. A conditional parameter's is from the trials that
    have it.
    """

    kind: Kind
    numbers: list[int]
    values: list[float]
    best: list[float]
    importances: dict[str, float]


def searches(config: StudyConfig, records: Sequence[TrialRecord]) -> list[Search]:
    """One per kind of number among the finished trials."""
    kinds: dict[Kind, list[TrialRecord]] = {}
    for record in records:
        if record.state == "complete" and record.result and record.last.get(config.objective) is not None:
            kinds.setdefault(Kind.of_result(record.result), []).append(record)
    return [_search(config, kind, found) for kind, found in kinds.items()]


def _search(config: StudyConfig, kind: Kind, records: list[TrialRecord]) -> Search:
    values = [record.last[config.objective] for record in records]
    better = max if config.metrics[config.objective] == "maximize" else min
    best = [better(values[: place + 1]) for place in range(len(values))]
    return Search(kind, [record.number for record in records], values, best, importances(config, records))


def importances(config: StudyConfig, records: Sequence[TrialRecord]) -> dict[str, float]:
    """By PED-ANOVA (Watanabe et al. 2023, as in Optuna); nothing with fewer than `FEWEST_TRIALS` trials."""
    everywhere = [name for name in _varied(records) if all(name in record.trial.params for record in records)]
    found = _ped_anova(config, records, everywhere)
    for name in _varied(records):
        having = [record for record in records if name in record.trial.params]
        if len(having) < len(records):
            found |= {key: value for key, value in _ped_anova(config, having, [*everywhere, name]).items()
                      if key == name}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _varied(records: Sequence[TrialRecord]) -> list[str]:
    levels: dict[str, set[object]] = {}
    for record in records:
        for name, value in record.trial.params.items():
            levels.setdefault(name, set()).add(value)
    return [name for name, values in levels.items() if len(values) > 1]


def _ped_anova(config: StudyConfig, records: Sequence[TrialRecord], names: list[str]) -> dict[str, float]:
    import optuna

    if len(records) < FEWEST_TRIALS or not names:
        return {}
    study = optuna.create_study(direction=config.metrics[config.objective])
    for record in records:
        space: dict[str, BaseDistribution] = {name: record.trial.distributions[name] for name in names}
        study.add_trial(optuna.trial.create_trial(
            params={name: record.trial.params[name] for name in names}, distributions=space,
            value=record.last[config.objective]))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=TOP)
    return optuna.importance.get_param_importances(study, evaluator=evaluator, params=names)
