"""Claiming trials: a worker's own interrupted one, then orphans, then planned ones, then new ones from the sampler."""

import json
import os
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from sweeps import design, optuna_parts, planner, slurm
from sweeps.folder import StudyFolder
from sweeps.owner import Owner


@dataclass(frozen=True, slots=True)
class Claim:
    """A trial that this worker runs; `life` counts its workers from 0."""

    trial: optuna.Trial
    number: int
    life: int
    folder: Path


class Claims:
    """Who owns which trial of a study.

    The record is a folder of files ``NUMBER.LIFE``, each made by an exclusive create, so two workers cannot both
    take up a trial whose worker died, and no lock is held while SLURM is asked about that worker.
    """

    def __init__(self, folder: StudyFolder, study: optuna.Study, me: Owner):
        self.folder, self.study, self.me = folder, study, me

    def resume(self) -> Claim | None:
        """A running trial whose worker is gone: first that of this array task's earlier life, then any other."""
        tasks = cache(slurm.tasks)
        running = [(trial, *self.owner(trial.number)) for trial in self._trials(TrialState.RUNNING)]
        running.sort(key=lambda entry: entry[1] is None or not entry[1].same_task(self.me))
        for trial, owner, life in running:
            if owner and owner.is_gone(self.me, tasks) and self._take(trial.number, life + 1):
                return self._attach(trial, life + 1)
        return None

    def fresh(self) -> Claim | None:
        """The next planned trial, or a new one while the study has room; None if there is neither."""
        with self.folder.lock():
            # Every first claim is made under this lock: a running trial without one lost its worker within it.
            for trial in self._trials(TrialState.RUNNING):
                if self.owner(trial.number)[0] is None and self._take(trial.number, 0):
                    return self._attach(trial, 0)
            waiting = self._waiting()
            if not waiting:
                return None
            self.study.sampler = optuna_parts.sampler(self.folder.config, waiting[0].number)
            trial = self.study.ask()
            if not self._take(trial.number, 0):
                raise RuntimeError(f"trial {trial.number} is claimed already: {self.folder.claims}")
        return self._claim(trial, 0)

    def has_work(self) -> bool:
        """Whether `fresh` would find something, as far as can be seen without the lock."""
        return bool(self._trials(TrialState.WAITING)) or self._planned() < self.folder.config.size or any(
            self.owner(trial.number)[0] is None for trial in self._trials(TrialState.RUNNING))

    def owner(self, number: int) -> tuple[Owner | None, int]:
        """The last worker of trial `number`, and in which of the trial's lives."""
        lives = [int(path.suffix[1:]) for path in self.folder.claims.glob(f"{number:04d}.*")]
        if not lives:
            return None, -1
        return Owner.from_dict(json.loads(self._file(number, max(lives)).read_text())), max(lives)

    def _waiting(self) -> list[FrozenTrial]:
        """Trials that wait; in a sampled study with room, one is put there. The caller holds the lock."""
        waiting = self._trials(TrialState.WAITING)
        if not waiting and self._planned() < self.folder.config.size:
            planner.enqueue(self.study, design.rows(self.folder.config)[: self._planned() + 1])
            waiting = self._trials(TrialState.WAITING)
        return waiting

    def _planned(self) -> int:
        return sum("row" in trial.user_attrs for trial in self.study.get_trials(deepcopy=False))

    def _trials(self, state: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(state,))

    def _file(self, number: int, life: int) -> Path:
        return self.folder.claims / f"{number:04d}.{life}"

    def _take(self, number: int, life: int) -> bool:
        """Make this process the owner; False if another worker was faster."""
        self.folder.claims.mkdir(exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.folder.claims, prefix=".claim")
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(self.me.to_dict(), file)
                file.flush()
                os.fsync(file.fileno())
            # A link is created whole or not at all, on NFS too.
            os.link(name, self._file(number, life))
        except FileExistsError:
            return False
        finally:
            os.unlink(name)
        return True

    def _attach(self, trial: FrozenTrial, life: int) -> Claim:
        """Continue a running trial of another process under its own number."""
        self.study.sampler = optuna_parts.sampler(self.folder.config, trial.number)
        return self._claim(optuna.trial.Trial(self.study, trial._trial_id), life)

    def _claim(self, trial: optuna.Trial, life: int) -> Claim:
        attributes = trial.user_attrs
        name = design.folder_name(self.folder.config, trial.number, attributes["cell"], attributes.get("seed"))
        claim = Claim(trial, trial.number, life, self.folder.path / name)
        trial.set_user_attr("worker", str(self.me))
        trial.set_user_attr("restarts", life)
        trial.set_user_attr("folder", str(claim.folder))
        return claim
