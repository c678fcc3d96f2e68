"""Claiming trials: a worker's own interrupted one, then orphans, then planned ones, then new ones from the sampler."""

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from diffusion_lm.errors import DiskError
from sweeps.cluster import slurm
from sweeps.definition import design, optuna_parts, planner
from sweeps.records.folder import StudyFolder
from sweeps.records.owner import Owner


@dataclass(frozen=True, slots=True)
class Claim:
    """A trial that this worker runs; `life` counts its workers from 0, `before` is the one that it succeeds."""

    trial: optuna.Trial
    number: int
    life: int
    folder: Path
    before: Owner | None = None


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
            if owner and owner.is_gone(self.me, tasks) and (claim := self._succeed(trial, owner, life)):
                return claim
        return None

    def fresh(self, allowed: Callable[[], bool] = lambda: True) -> Claim | None:
        """The next planned trial, or a new one while the study has room; None if there is neither.

        `allowed` is asked before a trial is begun, while no other worker begins one.
        """
        with self.folder.lock():
            # Every first claim is made under this lock: a running trial without one lost its worker within it.
            trials = self.study.get_trials(deepcopy=False)
            for trial in _in(trials, TrialState.RUNNING):
                if self.owner(trial.number)[0] is None and self._take(trial.number, 0):
                    return self._attach(trial, 0)
            while allowed() and (waiting := self._waiting(trials)):
                self._use_sampler(waiting[0].number)
                trial = self.study.ask()
                if self._take(trial.number, 0):
                    return self._claim(trial, 0)
                # Claimed before, and waiting all the same: the storage was set back to a copy of an earlier time.
                owner, life = self.owner(trial.number)
                if owner is not None and owner.is_gone(self.me) and self._take(trial.number, life + 1):
                    return self._claim(trial, life + 1, owner)
                trials = self.study.get_trials(deepcopy=False)
        return None

    def has_work(self) -> bool:
        """Whether `fresh` would find something, as far as can be seen without the lock."""
        trials = self.study.get_trials(deepcopy=False)
        return bool(_in(trials, TrialState.WAITING)) or _planned(trials) < self.folder.config.size or any(
            self.owner(trial.number)[0] is None for trial in _in(trials, TrialState.RUNNING))

    def owner(self, number: int) -> tuple[Owner | None, int]:
        """The last worker of trial `number`, and in which of the trial's lives."""
        # Lives have no gaps; the folder is not listed, because a long study has thousands of files there.
        life = -1
        while self._file(number, life + 1).exists():
            life += 1
        return (None if life < 0 else Owner.from_dict(json.loads(self._file(number, life).read_text()))), life

    def _waiting(self, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        """Trials that wait; in a sampled study with room, one is put there. The caller holds the lock."""
        waiting, planned = _in(trials, TrialState.WAITING), _planned(trials)
        if not waiting and planned < self.folder.config.size:
            planner.enqueue(self.study, self._rows[: planned + 1])
            waiting = self._trials(TrialState.WAITING)
        return waiting

    @cached_property
    def _rows(self) -> list[design.Row]:
        return design.rows(self.folder.config)

    def _use_sampler(self, number: int) -> None:
        """The sampler for trial `number`, with what the one before it knows of the parameters that all trials share:
        Optuna works that out trial by trial, and would begin at the first one again.
        """
        before, self.study.sampler = self.study.sampler, optuna_parts.sampler(self.folder.config, number)
        if hasattr(before, "_search_space") and type(before) is type(self.study.sampler):
            self.study.sampler._search_space = before._search_space

    def _trials(self, state: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(state,))

    def _file(self, number: int, life: int) -> Path:
        return self.folder.claims / f"{number:04d}.{life}"

    def _take(self, number: int, life: int) -> bool:
        """Make this process the owner; False if another worker was faster. Raises `DiskError`."""
        try:
            return self._link(number, life)
        except OSError as error:
            raise DiskError(f"{self.folder.claims}: cannot be written ({error.strerror}); make room there and start "
                            "the worker again: no trial is lost, running ones are continued") from None

    def _link(self, number: int, life: int) -> bool:
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

    def _succeed(self, trial: FrozenTrial, owner: Owner, life: int) -> Claim | None:
        """Continue the trial of a worker that is gone, unless another worker does, or it is over after all."""
        if not self._take(trial.number, life + 1):
            return None
        # Its worker may have told the result and ended between our look at the storage and that at the process.
        if self.study._storage.get_trial(trial._trial_id).state.is_finished():
            return None
        return self._attach(trial, life + 1, owner)

    def _attach(self, trial: FrozenTrial, life: int, before: Owner | None = None) -> Claim:
        """Continue a running trial of another process under its own number."""
        self._use_sampler(trial.number)
        return self._claim(optuna.trial.Trial(self.study, trial._trial_id), life, before)

    def _claim(self, trial: optuna.Trial, life: int, before: Owner | None = None) -> Claim:
        attributes = trial.user_attrs
        name = design.folder_name(self.folder.config, trial.number, attributes["cell"], attributes.get("seed"))
        claim = Claim(trial, trial.number, life, self.folder.path / name, before)
        trial.set_user_attr("worker", str(self.me))
        trial.set_user_attr("restarts", life)
        trial.set_user_attr("folder", str(claim.folder))
        return claim


def _in(trials: list[FrozenTrial], state: TrialState) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state is state]


def _planned(trials: list[FrozenTrial]) -> int:
    """How many rows of the design have a trial; one that is asked for again is no new row."""
    return sum("row" in trial.user_attrs and "retry_of" not in trial.user_attrs for trial in trials)
