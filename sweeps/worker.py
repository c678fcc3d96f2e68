"""A worker: claims trials of a study, trains each in a child process, tells Optuna what came of it."""

import math
from collections.abc import Mapping, Sequence
from signal import SIGINT, SIGUSR1
from typing import Any

import optuna
from optuna.trial import TrialState

from diffusion_lm.errors import UserError
from sweeps import child as children
from sweeps import design, provenance, slurm, trial_files
from sweeps import experiments as experiment_files
from sweeps.child import Stop
from sweeps.claim import Claim, Claims
from sweeps.experiments import Experiments
from sweeps.folder import StudyFolder
from sweeps.owner import Owner
from sweeps.progress import Progress, bound, say

POLL = 0.5  # seconds between two looks at the child
CRASHES = 1  # how often a trial that crashed is started again
INTERRUPTIONS = 20  # how often a child that stops unasked is simply continued
# Kept beside the trial, so that the dashboard shows them in its table.
KEPT = (trial_files.NLL, trial_files.NLL_ERROR, trial_files.BITS, trial_files.SPEED)


class Worker:
    """Works on the trials of one study until there are none, or until it is told to stop."""

    def __init__(self, folder: StudyFolder, study: optuna.Study, experiments: Experiments, *,
                 train_command: Sequence[str] = children.TRAIN):
        self.folder, self.study, self.experiments = folder, study, experiments
        self.train_command = train_command
        self.stop = Stop()
        self.claims = Claims(folder, study, Owner.current())
        self.failed = 0
        self.checked = False

    def run(self) -> int:
        """Work. Returns the exit code: 0 nothing left to do, 1 a trial failed, 75 told to stop, 130 by Ctrl-C."""
        self.stop.install()
        while self.stop.signal is None and (claim := self._next()):
            self._work(claim)
        if self.stop.signal is None:
            return children.CRASHED if self.failed else children.FINISHED
        if self.stop.signal is SIGINT:
            return children.CTRL_C
        task = slurm.task()
        if self.stop.signal is SIGUSR1 and task is not None:
            slurm.requeue(task)  # the time limit is near: the next life of this task continues the trial
        return children.INTERRUPTED

    def _next(self) -> Claim | None:
        claim = self.claims.resume()
        if claim is None and self.claims.has_work():
            if not self.checked:
                experiment_files.refuse_changes(self.folder, self.experiments)
                self.checked = True
            claim = self.claims.fresh()
        return claim

    def _work(self, claim: Claim) -> None:
        """Train one trial to its end, or leave it running for another life if this worker has to stop."""
        life = f", continued in its life {claim.life + 1}" if claim.life else ""
        say(claim, f"trial {claim.number} starts{life} ({self.folder.config.size} trials in the study)")
        try:
            self._prepare(claim)
        except UserError as error:
            self._fail(claim, str(error))
            return
        progress = Progress(claim, self.folder.config.objective)
        # The worker before us may have died after training ended and before it told Optuna.
        over = claim.life > 0 and _finished(claim) and self._concluded(claim, children.FINISHED)
        while not over and self.stop.signal is None:
            over = self._concluded(claim, self._train(claim, progress))
        if not over:
            say(claim, "stopped; the same command continues it")

    def _prepare(self, claim: Claim) -> None:
        """Draw what is left to the sampler and write what the trial trains, unless an earlier life did."""
        params = design.suggest(self.folder.config, claim.trial)
        for name, value in {"git": provenance.commit(), "machine": provenance.machine()}.items():
            claim.trial.set_user_attr(name, value)
        if not (claim.folder / trial_files.CONFIG).is_file():
            seed = claim.trial.user_attrs.get("seed")
            experiment_files.write_trial(self.folder.config, claim.folder, params, seed, self.experiments)

    def _train(self, claim: Claim, progress: Progress) -> int:
        """Run the training command once. Returns its exit code."""
        child = children.train(claim.folder, self.train_command)
        code = None
        while code is None:
            child.relay(self.stop)
            code = child.wait(POLL)
            progress.update(ended=code is not None)
        return code

    def _concluded(self, claim: Claim, code: int) -> bool:
        """Tell Optuna what `code` means for the trial. False if it is to be trained on, now or in another life."""
        if code == children.FINISHED and _finished(claim):
            self._complete(claim)
            return True
        if code == children.PRUNED:
            self._prune(claim)
            return True
        if self.stop.signal is not None:
            return False
        if code == children.INTERRUPTED and self._count(claim, "interruptions") <= INTERRUPTIONS:
            return False
        reason = f"{_describe(code)}: {trial_files.last_line(claim.folder)}"
        if code == children.BAD_INPUT or self._count(claim, "crashes") > CRASHES:
            self._fail(claim, reason)
            return True
        say(claim, f"{reason}; starting it again")
        return False

    def _complete(self, claim: Claim) -> None:
        result = trial_files.result(claim.folder) or {}
        metrics = result["metrics"]
        values = [metrics.get(name) for name in self.folder.config.metrics]
        for name, value in zip(self.folder.config.metrics, values):
            if value is None:
                self._fail(claim, f"{name}: the trial reports none (no bound?); compare by another metric")
                return
            if not math.isfinite(value):
                self._fail(claim, f"{name} is {value}")
                return
        for name, value in _kept(result).items():
            claim.trial.set_user_attr(name, value)
        self.study.tell(claim.trial, values)
        say(claim, f"finished in {result['seconds']:,.0f} s: val/nll "
            f"{bound(metrics.get(trial_files.NLL), metrics.get(trial_files.NLL_ERROR))} nats/token")

    def _prune(self, claim: Claim) -> None:
        if "reason" not in claim.trial.user_attrs:
            claim.trial.set_user_attr("reason", f"a file {trial_files.STOP} in its folder")
        self.study.tell(claim.trial, state=TrialState.PRUNED)
        say(claim, "pruned")

    def _fail(self, claim: Claim, reason: str) -> None:
        self.failed += 1
        claim.trial.set_user_attr("reason", reason)
        self.study.tell(claim.trial, state=TrialState.FAIL)
        say(claim, f"FAILED: {reason} (log: {claim.folder / trial_files.LOG})")

    def _count(self, claim: Claim, what: str) -> int:
        """One more of `what` in this trial, over all its lives."""
        number = claim.trial.user_attrs.get(what, 0) + 1
        claim.trial.set_user_attr(what, number)
        return number


def _finished(claim: Claim) -> bool:
    result = trial_files.result(claim.folder)
    return result is not None and result["status"] == "finished"


def _describe(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exit status {code}"


def _kept(result: Mapping[str, Any]) -> dict[str, Any]:
    """What the dashboard shows beside a finished trial."""
    metrics = {name: result["metrics"].get(name) for name in KEPT}
    return {**metrics, "parameters": result["parameters"]["non_embedding"], "seconds": result["seconds"]}
