"""Telling Optuna how a trial ended: with its values, pruned, or failed and why. Each may be done twice."""

import math
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import TrialState

from sweeps.definition import design
from sweeps.definition.study import StudyConfig
from sweeps.records import trial_files
from sweeps.records.claim import Claim
from sweeps.watch import dashboard
from sweeps.work.ending import FAILURES, INPUT, NOT_FINITE, Ending
from sweeps.work.progress import bound, say

# Kept beside the trial, so that the dashboard shows them in its table.
KEPT = (trial_files.NLL, trial_files.NLL_ERROR, trial_files.BITS, trial_files.SPEED)


def finished(claim: Claim) -> bool:
    """Whether training says that it is done."""
    result = trial_files.result(claim.folder)
    return result is not None and result["status"] == "finished"


def unusable(config: StudyConfig, claim: Claim) -> Ending | None:
    """Why a finished trial has no values to tell; None if it has."""
    result = trial_files.result(claim.folder) or {}
    metrics = result["metrics"]
    for name in config.metrics:
        value = metrics.get(name)
        if value is None:
            return Ending(INPUT, f"{name}: the trial reports none (no bound?); compare by another metric")
        if not math.isfinite(value):
            return Ending(NOT_FINITE, f"{name} is {value}")
    why = trial_files.diverged(result) if trial_files.OF_BOUND & config.metrics.keys() else None
    return Ending(NOT_FINITE, why) if why else None


def complete(study: optuna.Study, config: StudyConfig, claim: Claim) -> None:
    """Tell the values of a finished trial."""
    result = trial_files.result(claim.folder) or {}
    metrics = result["metrics"]
    for name, value in _kept(result).items():
        claim.trial.set_user_attr(name, value)
    known = study._storage.get_trial(claim.trial._trial_id).constraints
    for name, value in zip(config.constraints, design.constraint_values(config, result)):
        if name not in known:
            claim.trial.set_constraint(name, value)
    dashboard.describe_trial(claim)
    study.tell(claim.trial, [metrics[name] for name in config.metrics], skip_if_finished=True)
    say(claim, f"finished in {result['seconds']:,.0f} s: val/nll "
        f"{bound(metrics.get(trial_files.NLL), metrics.get(trial_files.NLL_ERROR))} nats/token")


def prune(study: optuna.Study, claim: Claim) -> None:
    """Tell that the trial was stopped early."""
    if "reason" not in claim.trial.user_attrs:
        claim.trial.set_user_attr("reason", f"a file {trial_files.STOP} in its folder")
    dashboard.describe_trial(claim, claim.trial.user_attrs["reason"])
    study.tell(claim.trial, state=TrialState.PRUNED, skip_if_finished=True)
    say(claim, "pruned")


def fail(study: optuna.Study, claim: Claim, ending: Ending) -> None:
    """Tell that the trial failed, by which class of failure, and why."""
    claim.trial.set_user_attr("failure", ending.kind)
    claim.trial.set_user_attr("reason", ending.reason)
    dashboard.describe_trial(claim, ending.reason)
    study.tell(claim.trial, state=TrialState.FAIL, skip_if_finished=True)
    count = len(claim.trial.user_attrs.get(FAILURES, ()))
    say(claim, f"FAILED{f' after {count} ends' if count > 1 else ''}: {ending.reason}")


def _kept(result: Mapping[str, Any]) -> dict[str, Any]:
    """What the dashboard shows beside a finished trial."""
    metrics = {name: result["metrics"].get(name) for name in KEPT}
    return {**metrics, "parameters": result["parameters"]["non_embedding"], "seconds": result["seconds"],
            "peak_memory": result.get("peak_memory")}
