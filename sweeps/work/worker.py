"""A worker: claims trials of a study, trains each in a child process, tells Optuna what came of it."""

from collections.abc import Sequence
from signal import SIGINT, SIGUSR1

import optuna

from diffusion_lm.errors import UserError
from diffusion_lm.files import write_json
from sweeps.cluster import provenance, slurm, snapshot
from sweeps.definition import design
from sweeps.definition import experiments as experiment_files
from sweeps.definition.experiments import Experiments
from sweeps.records import trial_files
from sweeps.records.claim import Claim, Claims
from sweeps.records.folder import StudyFolder
from sweeps.records.owner import Owner
from sweeps.watch import tensorboard
from sweeps.work import child as children
from sweeps.work import ending, room, telling
from sweeps.work.child import Stop
from sweeps.work.ending import Ending, Watch
from sweeps.work.patience import FAULTS, Patience, what
from sweeps.work.progress import Progress, say

POLL = 0.5  # seconds between two looks at the child
IDLE_LIVES = 3  # how often a job that is stopped before it begins goes back into the queue
DISK_PAUSE = 60.0  # seconds before training is started again on a disk that was full


class Worker:
    """Works on the trials of one study until there are none, or until it is told to stop."""

    def __init__(self, folder: StudyFolder, study: optuna.Study, experiments: Experiments, *,
                 train_command: Sequence[str] = children.TRAIN):
        self.folder, self.study, self.experiments = folder, study, experiments
        self.train_command = train_command
        self.stop = Stop()
        self.patiently = Patience(self.stop)
        self.claims = Claims(folder, study, Owner.current())
        self.begun = self.failed = 0
        self.checked = self.out_of_time = False

    def run(self) -> int:
        """Work. Returns the exit code: 0 nothing left to do, 1 a trial failed, 130 by Ctrl-C, 75 if there is more to do
        but not now: told to stop, too little time left, the disk or the storage failed."""
        self.stop.install()
        try:
            while self.stop.signal is None and (claim := self._next()):
                self.begun += 1
                self._work(claim)
        except FAULTS as error:
            print(f"error: {what(error)}", flush=True)
            return children.CTRL_C if self.stop.signal is SIGINT else self._later(began=True)
        if self.stop.signal is SIGINT:
            return children.CTRL_C
        if self.stop.signal is None and not self.out_of_time:
            return children.CRASHED if self.failed else children.FINISHED
        return self._later(bool(self.begun))

    def _later(self, began: bool) -> int:
        """Have SLURM start this job once more, where there is more to do. Returns the exit code."""
        task = slurm.task()
        if task is None or not (self.stop.signal is SIGUSR1 or self.out_of_time):
            return children.INTERRUPTED
        if not began:
            print(f"job {task} was told to stop before it began a trial: ask for more time (sbatch --time), or to be "
                  "told later (--signal=B:USR1@60, in seconds before the end)", flush=True)
            if slurm.life() >= IDLE_LIVES:
                return children.BAD_INPUT
        if not slurm.requeue(task):
            print(f"job {task} could not be put back into the queue; sbatch the same script to go on", flush=True)
        return children.INTERRUPTED

    def _next(self) -> Claim | None:
        claim = self.patiently(self.claims.resume)
        if claim is None and not (self.patiently(self.claims.has_work) and self._has_time()):
            return None
        if claim is None or not (claim.folder / trial_files.CONFIG).is_file():
            self._check()
        return claim or self.patiently(lambda: self.claims.fresh(self._can_afford))

    def _check(self) -> None:
        """Raise `UserError`, with no trial touched, for what no trial may begin with."""
        # Before every trial: each reads the experiment's file anew, and a study runs for days.
        experiment_files.refuse_changes(self.folder, self.experiments)
        if not self.checked:
            for refusal in experiment_files.data_refusals(self.folder.config, self.experiments):
                raise UserError(refusal)
            self.checked = True

    def _can_afford(self) -> bool:
        """Whether the study may spend on another trial."""
        reached = room.over_budget(self.folder, self.study)
        if reached is not None:
            print(f"no new trial: the budget is used up ({reached})", flush=True)
        return reached is None

    def _has_time(self) -> bool:
        """Whether this job has the time for another trial."""
        # A job's first trial always begins: otherwise jobs that are a little too short would be queued for ever.
        if self.begun and (why := self.patiently(lambda: room.too_little_time(self.study))):
            print(f"no new trial in this job ({why}); it goes back into the queue", flush=True)
            self.out_of_time = True
            return False
        return True

    def _work(self, claim: Claim) -> None:
        """Train one trial to its end, or leave it running for another life if this worker has to stop."""
        life = f", continued in its life {claim.life + 1}" if claim.life else ""
        say(claim, f"trial {claim.number} starts{life} ({self.folder.config.size} trials in the study)")
        try:
            over = self._taken_over(claim) or self.patiently(lambda: self._prepare(claim))
        except UserError as error:
            self._fail(claim, Ending(ending.INPUT, str(error)))
            return
        progress = self.patiently(lambda: Progress(claim, self.folder.config.objective))
        while not over and self.stop.signal is None:
            over = self._train(claim, progress)
        if not over:
            self._leave(claim)

    def _taken_over(self, claim: Claim) -> bool:
        """What an earlier worker left to be said. True if the trial is over by that."""
        if not claim.life:
            return False
        if telling.finished(claim):  # it died between the end of training and telling Optuna
            return self._completed(claim)
        if found := ending.death(claim):
            self.patiently(lambda: ending.note(claim, found, claim.life - 1, (claim.before or self.claims.me).host))
        return self._given_up(claim)

    def _prepare(self, claim: Claim) -> bool:
        """Draw what is left to the sampler and write what the trial trains, unless an earlier life did."""
        params, seed = design.suggest(self.folder.config, claim.trial), claim.trial.user_attrs.get("seed")
        where = {"node": self.claims.me.host, "slurm_job": slurm.task(), "code": snapshot.current()}
        for name, value in {"git": provenance.commit(), "machine": provenance.machine(), **where}.items():
            claim.trial.set_user_attr(name, value)
        if not (claim.folder / trial_files.CONFIG).is_file():
            claim.folder.mkdir(parents=True, exist_ok=True)
            # Before the configuration, which says that the folder is complete.
            row = dict.fromkeys(self.folder.config.space) | params | ({} if seed is None else {"seed": seed})
            write_json(claim.folder / trial_files.HPARAMS, row)  # null: a key that this trial does not have
            experiment_files.write_trial(self.folder.config, claim.folder, params, seed, self.experiments)
        return False

    def _train(self, claim: Claim, progress: Progress) -> bool:
        """Run the training command once. False if the trial is to be trained on, now or in another life."""
        watch = self.patiently(lambda: Watch(claim.folder))
        child = self.patiently(lambda: children.train(claim.folder, self.train_command))
        self.stop.then = lambda: child.relay(self.stop)
        code = None
        while code is None:
            child.relay(self.stop)
            code = child.wait(POLL)
            progress.update()
        self.stop.then = None
        self.patiently(progress.finish)
        return self._concluded(claim, code, watch)

    def _concluded(self, claim: Claim, code: int, watch: Watch) -> bool:
        """Tell Optuna what `code` means for the trial. False if it is not the trial's end."""
        if code == children.FINISHED and telling.finished(claim):
            return self._completed(claim)
        if code == children.PRUNED:
            self.patiently(lambda: telling.prune(self.study, claim))
            return True
        if self.stop.signal is not None:
            return False
        found = watch.ending(code)
        self.patiently(lambda: ending.note(claim, found, claim.life, self.claims.me.host))
        if self._given_up(claim):
            return True
        say(claim, f"{found.reason} ({found.kind}); starting it again")
        if found.kind == ending.DISK:
            self.patiently.pause(DISK_PAUSE)
        return False

    def _completed(self, claim: Claim) -> bool:
        if why := telling.unusable(self.folder.config, claim):
            self._fail(claim, why)
        else:
            self.patiently(lambda: telling.complete(self.study, self.folder.config, claim))
            self.patiently(lambda: tensorboard.write_mean(self.folder, self.study, claim.trial.user_attrs["cell"]))
        return True

    def _given_up(self, claim: Claim) -> bool:
        """Whether the trial has ended more often than the study allows; then it has failed."""
        why = ending.verdict(claim, self.folder.config.restarts)
        if why is not None:
            self._fail(claim, why)
        return why is not None

    def _fail(self, claim: Claim, why: Ending) -> None:
        self.failed += 1
        self.patiently(lambda: telling.fail(self.study, claim, why))

    def _leave(self, claim: Claim) -> None:
        """Note that this life was told to stop, so that the next one does not take it for a death."""
        def write() -> None:
            if self.stop.signal is not SIGINT:
                why = Ending(ending.TIME, f"stopped by {self.stop.signal.name}")
                ending.note(claim, why, claim.life, self.claims.me.host)
            claim.trial.set_user_attr(ending.STOPPED, claim.life)

        self.patiently(write)
        say(claim, "stopped; the same command continues it")
