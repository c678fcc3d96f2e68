"""What a trial reports while it trains: printed for people, passed to Optuna, and pruned if Optuna says so."""

import time
from typing import Any

from optuna.pruners import NopPruner

from diffusion_lm.numbers import fixed
from sweeps.records import trial_files
from sweeps.records.claim import Claim
from sweeps.work.patience import FAULTS, what

REPORT_EVERY = 5.0  # seconds between two reports to Optuna: each is a line in the journal that every worker reads
LONGEST_WAIT = 80.0  # seconds between two, while the storage does not take them


class Progress:
    """Follows ``report.jsonl`` of one claimed trial."""

    def __init__(self, claim: Claim, objective: str):
        self.claim, self.objective = claim, objective
        self.study = claim.trial.study
        self.tail = trial_files.Tail(claim.folder / trial_files.REPORT)
        # An earlier life printed these; Optuna may have missed the last of them.
        self.unreported: dict[str, Any] | None = self._latest(self.tail.read())
        self.next_report, self.wait = float("-inf"), REPORT_EVERY

    def update(self) -> None:
        """Look at the file while training goes on. A storage that does not take a report is asked again later."""
        try:
            self._look()
            if time.monotonic() < self.next_report:
                return
            self._report(prune=True)
            self.wait = REPORT_EVERY
        except FAULTS as error:
            if self.wait == REPORT_EVERY:
                say(self.claim, f"{what(error)}; training goes on, and its reports are passed on later")
            self.wait = min(2 * self.wait, LONGEST_WAIT)
        self.next_report = time.monotonic() + self.wait

    def finish(self) -> None:
        """Pass on the last report, after the end of training. Raises what the storage raises."""
        self._look()
        self._report(prune=False)

    def _look(self) -> None:
        lines = self.tail.read()
        for line in lines:
            say(self.claim, describe(line))
        self.unreported = self._latest(lines) or self.unreported

    def _report(self, prune: bool) -> None:
        """Pass the last line on, and ask whether the trial is to be pruned."""
        line = self.unreported
        if line is None or len(self.study.directions) > 1:
            return
        if line["step"] not in self.claim.trial.storage.get_trial(self.claim.trial._trial_id).intermediate_values:
            self.claim.trial.report(line[self.objective], line["step"])
        if prune and not isinstance(self.study.pruner, NopPruner) and self.claim.trial.should_prune():
            self._prune(line["step"])
        self.unreported = None

    def _latest(self, lines: list[dict[str, Any]]) -> dict[str, Any] | None:
        """The last line with a value of the objective: an objective without a bound reports none."""
        return next((line for line in reversed(lines) if isinstance(line.get(self.objective), int | float)), None)

    def _prune(self, step: int) -> None:
        stop = self.claim.folder / trial_files.STOP
        if not stop.exists():
            stop.touch()
            self.claim.trial.set_user_attr("reason", f"pruned at step {step} by {type(self.study.pruner).__name__}")
            say(self.claim, f"pruned at step {step}; training stops after its next step")


def describe(line: dict[str, Any]) -> str:
    """One report as a person reads it."""
    parts = [f"step {line['step']:,}", f"val/nll {bound(line.get(trial_files.NLL), line.get(trial_files.NLL_ERROR))}"]
    if line.get(trial_files.SPEED) is not None:
        parts.append(f"{line[trial_files.SPEED]:,.0f} tokens/s")
    return "   ".join(parts)


def bound(value: float | None, error: float | None) -> str:
    """A bound with its standard error; a dash where there is none."""
    if value is None:
        return "–"
    return fixed(value, 3) + ("" if error is None else f" ± {fixed(error, 3)}")


def say(claim: Claim, text: str) -> None:
    """One line about a trial, at once: in a SLURM log it would otherwise stay in a buffer."""
    print(f"{claim.folder.name}   {text}", flush=True)
