"""Optuna's storage: a journal on the shared disk that heals when a writer died in the middle of a line."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from sweeps import optuna_parts
from sweeps.folder import StudyFolder

BLOCK = 65536

optuna.logging.set_verbosity(optuna.logging.WARNING)


class HealingJournal(JournalFileBackend):
    """Optuna's journal file, cut back to its last whole line before anything is appended.

    Half a line is what a killed writer or a full quota leaves. Optuna appends to it, and from then on every process
    fails on the glued line. Each append here checks first, under the journal's own lock.
    """

    def __init__(self, path: Path):
        # Absolute: Optuna's lock is a symbolic link to the name given, and with a relative one it never finds it stale.
        self._path = str(path.absolute())
        self._file_lock = JournalFileSymlinkLock(self._path)
        super().__init__(self._path, self._file_lock)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        self._file_lock.acquire()
        try:
            heal(self._path)
            with open(self._path, "ab") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
        finally:
            self._file_lock.release()


def heal(path: str | Path) -> None:
    """Cut `path` after its last newline. The caller holds the lock."""
    with open(path, "rb+") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - BLOCK)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            file.truncate(end)
            os.fsync(file.fileno())


def create(folder: StudyFolder) -> optuna.Study:
    """The study in `folder`, created if it is not there yet. The caller holds the study's lock."""
    config = folder.config
    storage = JournalStorage(HealingJournal(folder.journal))
    study = optuna.create_study(storage=storage, study_name=config.name, directions=list(config.metrics.values()),
                                sampler=optuna_parts.sampler(config, 0), pruner=optuna_parts.pruner(config),
                                load_if_exists=True)
    if study.metric_names is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(list(config.metrics))
    return study


def load(folder: StudyFolder) -> optuna.Study:
    """The study in `folder`, which the planner made. Raises `UserError` if it was not started."""
    folder.require()
    config = folder.config
    storage = JournalStorage(HealingJournal(folder.journal))
    try:
        return optuna.load_study(storage=storage, study_name=config.name, sampler=optuna_parts.sampler(config, 0),
                                 pruner=optuna_parts.pruner(config))
    except KeyError:
        raise folder.not_started() from None
