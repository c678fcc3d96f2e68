"""How training ended, put into a class, and whether its trial is started again.

The class comes from what training said (failure.json), else from the exit status, the kernel and SLURM. Each end of
each life is kept in the trial's attribute `failures` and counted by class; the study's `restarts` is how many a trial
is allowed.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from signal import (
    SIGABRT,
    SIGBUS,
    SIGFPE,
    SIGHUP,
    SIGILL,
    SIGKILL,
    SIGPIPE,
    SIGSEGV,
    SIGTERM,
    SIGUSR1,
    SIGXCPU,
    SIGXFSZ,
    Signals,
)
from typing import Any

from sweeps.records import trial_files
from sweeps.records.claim import Claim
from sweeps.work import oom
from sweeps.work.child import BAD_INPUT, INTERRUPTED

OUT_OF_MEMORY, NOT_FINITE, NODE, TIME, DISK, INPUT, CODE = CLASSES = (
    "out_of_memory", "not_finite", "node", "time", "disk", "input", "code")
FAILURES, STOPPED = "failures", "stopped"
"""User attributes: all ends so far; the last life that was told to stop, and so did not die."""
LONGEST = 300  # characters of a reason: it is kept with every end of the trial
DEADLY = (SIGHUP, SIGILL, SIGABRT, SIGBUS, SIGFPE, SIGKILL, SIGUSR1, SIGSEGV, SIGPIPE, SIGTERM, SIGXCPU, SIGXFSZ)
SLURM_SAYS = {
    re.compile(r"oom.kill event", re.I): OUT_OF_MEMORY,
    re.compile(r"DUE TO NODE FAILURE|Node failure on"): NODE,
    re.compile(r"DUE TO (TIME LIMIT|PREEMPTION)"): TIME,
}
"""What srun and slurmstepd write into the log of a step that they end."""


@dataclass(frozen=True, slots=True)
class Ending:
    """An end that is not that of a finished or pruned trial. `kind` is one of `CLASSES`."""

    kind: str
    reason: str


class Watch:
    """Looks at a folder and the kernel before training starts, to tell afterwards what happened meanwhile."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / trial_files.FAILURE).unlink(missing_ok=True)
        self.log_from = trial_files.size(folder / trial_files.LOG)
        self.kills = oom.kills()

    def ending(self, code: int) -> Ending:
        """What an exit with `code` was; a death by signal N is -N, or 128 + N where srun stood in between."""
        last = trial_files.last_line(self.folder)
        reason = f"{_describe(code)}: {last}"
        if code == BAD_INPUT:
            return Ending(INPUT, reason)
        if code == INTERRUPTED:
            return Ending(TIME, "training stopped by itself after a checkpoint")
        if left := trial_files.failure(self.folder):
            return Ending(left["class"] if left["class"] in CLASSES else CODE, left["message"])
        return Ending(self._kind(code), reason)

    def _kind(self, code: int) -> str:
        said = trial_files.log_since(self.folder, self.log_from)
        for words, kind in SLURM_SAYS.items():
            if words.search(said):
                return kind
        if code in (-SIGKILL, 128 + SIGKILL):
            after = oom.kills()
            return OUT_OF_MEMORY if self.kills is not None and after is not None and after > self.kills else NODE
        return CODE if trial_files.writable(self.folder) else DISK


def death(claim: Claim) -> Ending | None:
    """How the trial's earlier life ended, if nobody noted it: its worker died.

    Where training stopped by itself just before, SLURM had told only the tasks of the step that the job would end: that
    is noted already, as time.
    """
    attributes, life = claim.trial.user_attrs, claim.life - 1
    last = (attributes.get(FAILURES) or [{}])[-1]
    if life < 0 or attributes.get(STOPPED) == life or (last.get("life"), last.get("class")) == (life, TIME):
        return None
    return Ending(NODE, "its worker died" + (f" ({claim.before})" if claim.before else ""))


def note(claim: Claim, ending: Ending, life: int, node: str) -> None:
    """Keep this end of the trial, of its worker on `node`."""
    reports = trial_files.reports(claim.folder)
    entry = {"class": ending.kind, "life": life, "reason": ending.reason[:LONGEST],
             "step": reports[-1]["step"] if reports else None, "node": node}
    claim.trial.set_user_attr(FAILURES, [*claim.trial.user_attrs.get(FAILURES, ()), entry])


def verdict(claim: Claim, allowed: Mapping[str, int]) -> Ending | None:
    """Why the trial is not started again; None if it is. The last class that is over its number counts."""
    failures: list[dict[str, Any]] = claim.trial.user_attrs.get(FAILURES, [])
    counts = Counter(failure["class"] for failure in failures)
    for failure in reversed(failures):
        kind = failure["class"]
        if counts[kind] > allowed.get(kind, 0):
            often = "once" if counts[kind] == 1 else f"{counts[kind]} times"
            nodes = sorted({other["node"] for other in failures if other["class"] == kind})
            return Ending(kind, f"{failure['reason']} ({kind}, {often} on {', '.join(nodes)}; restarts.{kind} is "
                                f"{allowed.get(kind, 0)}; log: {claim.folder / trial_files.LOG})")
    return None


def _describe(code: int) -> str:
    """An exit status in words. A program may end with 128 + N by itself, so only signals that end programs count."""
    if code < 0 or code - 128 in DEADLY:
        number = -code if code < 0 else code - 128
        return f"killed by {Signals(number).name if number in set(Signals) else f'signal {number}'}"
    return f"exit status {code}"
