"""What is known of a study's trials: Optuna's record of each, joined with what its folder holds."""

import statistics
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from sweeps import trial_files
from sweeps.folder import StudyFolder


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """One trial. `folder` is None as long as no worker claimed it."""

    trial: FrozenTrial
    folder: Path | None
    result: dict[str, Any] | None
    reports: list[dict[str, Any]]

    @property
    def number(self) -> int:
        return self.trial.number

    @property
    def state(self) -> str:
        """Optuna's word in lower case: waiting, running, complete, pruned, fail."""
        return self.trial.state.name.lower()

    @property
    def cell(self) -> str:
        return self.trial.user_attrs.get("cell", "")

    @property
    def seed(self) -> int | None:
        return self.trial.user_attrs.get("seed")

    @property
    def last(self) -> dict[str, Any]:
        """The latest numbers: the final ones of a finished run, else its last report."""
        if self.state == "complete" and self.result:
            return {"step": self.result["step"], "tokens": self.result["tokens"], **self.result["metrics"]}
        return self.reports[-1] if self.reports else {}

    @property
    def speed(self) -> float | None:
        """Tokens per second of training: the median over the run's reports."""
        rates = [line[trial_files.SPEED] for line in self.reports if line.get(trial_files.SPEED) is not None]
        return statistics.median(rates) if rates else None

    @property
    def seconds(self) -> float | None:
        """Wall time of training if it ended, else since the trial was first claimed."""
        if self.result and self.state != "running":
            return self.result.get("seconds")
        if self.trial.datetime_start is None:
            return None
        return ((self.trial.datetime_complete or datetime.now()) - self.trial.datetime_start).total_seconds()

    def note(self, key: str) -> Any:
        """A user attribute, or None."""
        return self.trial.user_attrs.get(key)


def records(folder: StudyFolder, study: optuna.Study) -> list[TrialRecord]:
    """All trials of `study`, by number."""
    return [_record(folder, trial) for trial in study.get_trials(deepcopy=False)]


def _record(folder: StudyFolder, trial: FrozenTrial) -> TrialRecord:
    # By name, not by the path written then: the study's folder may have been moved or mounted elsewhere.
    name = Path(trial.user_attrs["folder"]).name if "folder" in trial.user_attrs else None
    if name is None:
        return TrialRecord(trial, None, None, [])
    path = folder.path / name
    return TrialRecord(trial, path, trial_files.result(path), trial_files.reports(path))
