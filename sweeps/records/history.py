"""What is known of a study's trials: Optuna's record of each, joined with what its folder holds."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from sweeps.cluster import provenance
from sweeps.records import trial_files
from sweeps.records.folder import StudyFolder


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

    @property
    def feasible(self) -> bool:
        """Whether every constraint of the study holds (Optuna: a value of at most 0)."""
        return all(value <= 0 for value in self.trial.constraints.values())

    @property
    def devices(self) -> int:
        """Over how many devices the trial is trained, on all its nodes."""
        training = trial_files.config(self.folder).get("training", {}) if self.folder else {}
        return training.get("devices", 1) * training.get("num_nodes", 1)

    @property
    def device_hours(self) -> float | None:
        """Hours of training, times devices: of GPUs where the trial has them, else of processes on the CPU."""
        return None if self.seconds is None else self.seconds * self.devices / 3600

    @property
    def on_gpu(self) -> bool:
        """Whether the machine of the trial has GPUs and training was not kept from them."""
        training = trial_files.config(self.folder).get("training", {}) if self.folder else {}
        machine = self.note("machine") or provenance.NO_GPU
        return provenance.NO_GPU not in machine and training.get("accelerator") != "cpu"

    def note(self, key: str) -> Any:
        """A user attribute, or None."""
        return self.trial.user_attrs.get(key)


def asked_again(records: Iterable[TrialRecord]) -> dict[int, int]:
    """Trials that failed and were asked for again, with the trial that stands for each (the last, of several)."""
    later = {record.note("retry_of"): record.number for record in records if record.note("retry_of") is not None}

    def last(number: int) -> int:
        return last(later[number]) if later.get(number, number) > number else number

    return {number: last(number) for number in later}


def records(folder: StudyFolder, study: optuna.Study, cell: str | None = None) -> list[TrialRecord]:
    """All trials of `study`, or of one cell, by number; those of another study, from which its sampler started, are
    none of them."""
    return [_record(folder, trial) for trial in study.get_trials(deepcopy=False) if "from" not in trial.user_attrs
            and (cell is None or trial.user_attrs.get("cell") == cell)]


def _record(folder: StudyFolder, trial: FrozenTrial) -> TrialRecord:
    # By name, not by the path written then: the study's folder may have been moved or mounted elsewhere.
    name = Path(trial.user_attrs["folder"]).name if "folder" in trial.user_attrs else None
    if name is None:
        return TrialRecord(trial, None, None, [])
    path = folder.path / name
    return TrialRecord(trial, path, trial_files.result(path), trial_files.reports(path))
