"""Asking again for cells that failed: a new trial with the same row, parameters and seed stands for the old one."""

from collections.abc import Collection

import optuna
from optuna.trial import FrozenTrial, TrialState

from diffusion_lm.errors import UserError, unknown
from sweeps.records.folder import StudyFolder
from sweeps.work.ending import CLASSES

OVER = (TrialState.COMPLETE, TrialState.PRUNED)
RETRY_OF = "retry_of"
ROW = ("row", "cell", "arm", "seed", "replicate")
"""Attributes that say which of the study's trials this is."""


def ask_again(folder: StudyFolder, study: optuna.Study, *, numbers: Collection[int] = (), cell: str | None = None,
              kind: str | None = None) -> list[FrozenTrial]:
    """Enqueue the failed trials that fit all of what is given, once each; returns those that were enqueued for.

    A row with a trial that is done, pruned, running or waiting is passed over. Raises `UserError` for numbers, cells
    and classes that the study does not have, and for a trial that did not fail.
    """
    _check(study.get_trials(deepcopy=False), numbers, cell, kind)
    with folder.lock():
        trials = study.get_trials(deepcopy=False)
        # The last trial of a row is what stands for it.
        last = {trial.user_attrs["row"]: trial for trial in trials if "row" in trial.user_attrs}
        done = {trial.user_attrs.get("row") for trial in trials if trial.state in OVER}
        chosen = [trial for row, trial in last.items()
                  if trial.state == TrialState.FAIL and row not in done and _fits(trial, trials, numbers, cell, kind)]
        for trial in chosen:
            attributes = {key: trial.user_attrs[key] for key in ROW if key in trial.user_attrs}
            # Without parameters it failed before the sampler had drawn any.
            params = trial.params or trial.system_attrs.get("fixed_params", {})
            study.enqueue_trial(params, user_attrs={**attributes, RETRY_OF: trial.number})
    return chosen


def _check(trials: list[FrozenTrial], numbers: Collection[int], cell: str | None, kind: str | None) -> None:
    known = {trial.number: trial for trial in trials}
    for number in numbers:
        if number not in known:
            raise UserError(f"--trial: got {number}, but the study has trials 0 to {len(trials) - 1}")
        if known[number].state != TrialState.FAIL:
            raise UserError(f"--trial: trial {number} is {known[number].state.name.lower()}; only trials that failed "
                            "can be asked for again")
    cells = {trial.user_attrs.get("cell") for trial in trials} - {None}
    if cell is not None and cell not in cells:
        raise unknown("--cell: no cell", cell, cells)
    if kind is not None and kind not in CLASSES:
        raise unknown("--class: no failure class", kind, CLASSES)


def _fits(trial: FrozenTrial, trials: list[FrozenTrial], numbers: Collection[int], cell: str | None, kind: str | None
          ) -> bool:
    """Whether `trial`, or one that it was asked again for, is meant."""
    number: int | None = trial.number
    history = []
    while number is not None:
        history.append(number)
        number = trials[number].user_attrs.get(RETRY_OF)
    return ((not numbers or any(number in numbers for number in history))
            and cell in (None, trial.user_attrs.get("cell")) and kind in (None, trial.user_attrs.get("failure")))
