"""How far a study is and when it will be done: trials, their workers, what they cost, what is left."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from statistics import median
from typing import Any

import optuna

from sweeps.cluster import slurm
from sweeps.records import history, trial_files
from sweeps.records.claim import Claims
from sweeps.records.folder import StudyFolder
from sweeps.records.history import TrialRecord
from sweeps.records.owner import Owner

ALIVE, GONE, UNKNOWN = "alive", "gone", "unknown"
OPEN = ("running", "waiting")


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A trial as `status` shows it. `owner` is the worker of one that runs, and `worker` whether that one is
    alive, gone or unknown (None for a trial that does not run); `steps` is where training ends; `left` is seconds."""

    record: TrialRecord
    owner: Owner | None
    worker: str | None
    steps: int | None
    left: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outlook:
    """The whole study. `left` is in seconds, None where nothing is known to work or nothing tells how long it takes."""

    lines: list[Line]
    states: Counter[str]
    workers: Counter[str]
    unplanned: int
    failures: Counter[str]
    restarts: int
    gpu_hours: float
    cpu_hours: float
    left: float | None


def look(folder: StudyFolder, study: optuna.Study) -> Outlook:
    """The state of `study` now."""
    claims = Claims(folder, study, _me())
    tasks = cache(slurm.tasks)
    lines = [_line(claims, record, tasks) for record in history.records(folder, study)]
    records = [line.record for line in lines]
    hours = [(record.on_gpu, record.device_hours or 0.0) for record in records if record.folder]
    workers = Counter(line.worker for line in lines if line.worker)
    unplanned = max(0, folder.config.size - sum("row" in record.trial.user_attrs for record in records))
    return Outlook(
        lines=lines, states=Counter(record.state for record in records), workers=workers, unplanned=unplanned,
        failures=Counter(failure["class"] for record in records for failure in record.note("failures") or ()),
        restarts=sum(record.note("restarts") or 0 for record in records),
        gpu_hours=sum(spent for on_gpu, spent in hours if on_gpu),
        cpu_hours=sum(spent for on_gpu, spent in hours if not on_gpu),
        left=_study_left(lines, unplanned, workers[ALIVE]),
    )


def to_json(folder: StudyFolder, found: Outlook) -> dict[str, Any]:
    """The same for programs: seconds and hours as numbers, null for what is not known."""
    return {
        "study": folder.config.name, "size": folder.config.size, "states": dict(found.states),
        "workers": {state: found.workers[state] for state in (ALIVE, GONE, UNKNOWN)},
        "unplanned": found.unplanned, "failures": dict(found.failures), "restarts": found.restarts,
        "gpu_hours": found.gpu_hours, "cpu_hours": found.cpu_hours, "seconds_left": found.left,
        "trials": [_plain(line) for line in found.lines],
    }


def _plain(line: Line) -> dict[str, Any]:
    record, owner = line.record, line.owner
    return {"trial": record.number, "cell": record.cell, "seed": record.seed, "state": record.state,
            "params": record.trial.params, "folder": str(record.folder) if record.folder else None, "last": record.last,
            "steps": line.steps, "seconds": record.seconds, "seconds_left": line.left,
            "device_hours": record.device_hours if record.folder else None, "restarts": record.note("restarts"),
            "worker": str(owner) if owner else record.note("worker"), "worker_state": line.worker,
            "slurm_job": owner.task if owner else record.note("slurm_job"),
            "node": owner.host if owner else record.note("node"),
            "failures": record.note("failures") or [], "failure": record.note("failure"),
            "reason": record.note("reason")}


def _me() -> Owner:
    """This process; on a login node the cluster is not in the environment, and jobs would all be unknown."""
    me = Owner.current()
    return me if me.cluster else replace(me, cluster=slurm.cluster_here())


def _line(claims: Claims, record: TrialRecord, tasks: Callable[[str], set[str] | None]) -> Line:
    owner = claims.owner(record.number)[0] if record.state == "running" else None
    worker = None
    if owner is not None:
        worker = GONE if owner.is_gone(claims.me, tasks) else ALIVE if owner.is_alive(claims.me, tasks) else UNKNOWN
    config = trial_files.config(record.folder) if record.folder else {}
    steps = config.get("training", config).get("steps")
    return Line(record=record, owner=owner, worker=worker, steps=steps, left=_left(record, steps))


def _left(record: TrialRecord, steps: int | None) -> float | None:
    """Seconds of training that a running trial has before it, by the speed it reported last."""
    last = record.last
    speed, step, tokens = last.get(trial_files.SPEED), last.get("step"), last.get("tokens")
    if record.state != "running" or not steps or not speed or not step or not tokens:
        return None
    return max(0.0, (steps - step) * (tokens / step) / speed)


def _study_left(lines: Iterable[Line], unplanned: int, workers: int) -> float | None:
    """Seconds until the study is done if the workers that are alive now go on: what is left, shared among them."""
    lines = list(lines)
    running = [line for line in lines if line.record.state == "running"]
    waiting = unplanned + sum(line.record.state == "waiting" for line in lines)
    if not running and not waiting:
        return 0.0
    whole = [line.record.seconds for line in lines if line.record.state == "complete" and line.record.seconds]
    whole += [line.left + line.record.seconds for line in running if line.left is not None and line.record.seconds]
    if not workers or not whole:
        return None
    typical = median(whole)
    left = [typical if line.left is None else line.left for line in running]
    return max([(sum(left) + waiting * typical) / workers, *left])
