"""One table of all trials: what runs where, how far it is, what it reached."""

import json
from collections import Counter
from functools import cache
from typing import Any

from rich.table import Table

from sweeps import history, slurm, storage, trial_files
from sweeps.claim import Claims
from sweeps.folder import StudyFolder
from sweeps.history import TrialRecord
from sweeps.owner import Owner
from sweeps.progress import bound
from sweeps.tables import console, number

STYLES = {"running": "cyan", "complete": "green", "pruned": "yellow", "fail": "red", "waiting": "dim"}


def show(folder: StudyFolder, as_json: bool) -> None:
    """Print the state of the study. Raises `UserError` if it was not started."""
    study = storage.load(folder)
    claims = Claims(folder, study, Owner.current())
    tasks = cache(slurm.tasks)
    rows = []
    for record in history.records(folder, study):
        owner = claims.owner(record.number)[0] if record.state == "running" else None
        gone = owner is not None and owner.is_gone(claims.me, tasks)
        rows.append((record, "its worker is gone: the next worker continues it" if gone else record.note("worker")))
    if as_json:
        print(json.dumps([_plain(record, worker) for record, worker in rows], indent=2))
        return
    counts = Counter(record.state for record, _ in rows)
    said = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    console().print(_table(rows), f"{folder.config.name}: {folder.config.size} trials: {said or 'none yet'}")


def _table(rows: list[tuple[TrialRecord, str | None]]) -> Table:
    table = Table("trial", "arm", "state", "step", "val/nll ± s.e.", "tokens/s", "seconds", "restarts",
                  "worker or reason")
    for record, worker in rows:
        last, style = record.last, STYLES.get(record.state, "")
        seed = f" seed {record.seed}" if record.seed is not None else ""
        table.add_row(str(record.number), record.cell + seed, f"[{style}]{record.state}[/]", number(last.get("step")),
                      bound(last.get(trial_files.NLL), last.get(trial_files.NLL_ERROR)),
                      number(last.get(trial_files.SPEED)), number(record.seconds), number(record.note("restarts")),
                      record.note("reason") or worker or "")
    return table


def _plain(record: TrialRecord, worker: str | None) -> dict[str, Any]:
    return {"trial": record.number, "cell": record.cell, "seed": record.seed, "state": record.state,
            "params": record.trial.params, "folder": str(record.folder) if record.folder else None, "last": record.last,
            "seconds": record.seconds, "restarts": record.note("restarts"), "worker": worker,
            "reason": record.note("reason")}
