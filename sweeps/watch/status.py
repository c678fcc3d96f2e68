"""`status`: one table of the trials, and one line of the study."""

import json
import shlex
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import timedelta

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sweeps.analysis.tables import console, number
from sweeps.records import storage, trial_files
from sweeps.records.folder import StudyFolder
from sweeps.watch import outlook
from sweeps.watch.outlook import ALIVE, GONE, OPEN, UNKNOWN, Line, Outlook
from sweeps.work.progress import bound

STYLES = {"running": "cyan", "complete": "green", "pruned": "yellow", "fail": "red", "waiting": "dim"}
# Which trials are shown where not all are: what runs, what went wrong, what is done, what waits.
FIRST = ("running", "fail", "pruned", "complete", "waiting")
WORKERS = {GONE: "its worker is gone: the next worker continues it",
           UNKNOWN: "whether its worker is alive is unknown from here"}
COLUMNS = ("trial", "arm", "state", "job", "node", "step", "val/nll ± s.e.", "tokens/s", "ETA", "hours", "restarts",
           "failures, reason")
LIMIT = 40


def show(folder: StudyFolder, as_json: bool, limit: int = LIMIT, every: float | None = None) -> None:
    """Print the state of the study, again `every` so many seconds until it is over or Ctrl-C. At most `limit` trials
    are shown, 0 for all. Raises `UserError` if it was not started."""
    study = storage.load(folder)
    if as_json:
        print(json.dumps(outlook.to_json(folder, outlook.look(folder, study)), indent=2))
        return
    found = outlook.look(folder, study)
    if every is None:
        console().print(page(folder, found, limit))
        return
    with Live(page(folder, found, limit), console=console(), auto_refresh=False) as live:
        while found.unplanned or any(found.states[state] for state in OPEN):
            time.sleep(every)
            found = outlook.look(folder, storage.load(folder))
            live.update(page(folder, found, limit), refresh=True)


def page(folder: StudyFolder, found: Outlook, limit: int) -> Group:
    """The table, what it leaves out, the summary."""
    chosen = _chosen(found.lines, limit)
    left_out = Counter(line.record.state for line in found.lines) - Counter(line.record.state for line in chosen)
    parts = [_table(chosen)]
    if left_out:
        parts.append(Text(f"not shown: {counts(left_out, FIRST)}; --limit 0 shows all"))
    # A path that is broken in two cannot be copied.
    return Group(*parts, Text(summary(folder, found), no_wrap=True, overflow="ignore"))


def summary(folder: StudyFolder, found: Outlook) -> str:
    """The study in two lines: its trials, and what they cost and what is left."""
    said = [counts(found.states, sorted(found.states))] * bool(found.states)
    said += [f"{found.unplanned:,} not planned yet"] * bool(found.unplanned)
    parts = []
    if found.states["running"]:
        parts.append(f"workers: {counts(found.workers, (ALIVE, GONE, UNKNOWN)) or 'none known'}")
    for hours, what in ((found.gpu_hours, "GPU hours"), (found.cpu_hours, "CPU hours (no GPU)")):
        if hours:
            parts.append(f"{hours:,.2f} {what}")
    if found.restarts:
        parts.append(f"{found.restarts} restarts")
    if found.failures:
        parts.append(f"failures: {counts(found.failures, sorted(found.failures))}")
    if found.unplanned or any(found.states[state] for state in OPEN):
        parts.append(_eta(found, folder))
    return f"{folder.config.name}: {folder.config.size:,} trials: {', '.join(said)}\n{' · '.join(parts)}".strip()


def _eta(found: Outlook, folder: StudyFolder) -> str:
    if found.left is not None:
        return f"done in about {duration(found.left)} with the {found.workers[ALIVE]} workers that are alive"
    if found.workers[ALIVE]:
        return "when it is done is not known yet"
    root = folder.path.parent
    more = "" if str(root) == "runs" else f" --root {shlex.quote(str(root))}"
    return f"no worker is known to be alive: sbatch SLURM/sweep.sh {shlex.quote(str(folder.definition))}{more}"


def counts(counter: Counter[str], order: Iterable[str]) -> str:
    """``3 running, 2 waiting``."""
    return ", ".join(f"{counter[name]:,} {name}" for name in order if counter[name])


def duration(seconds: float | None) -> str:
    """``2 d 03:10:00``, ``3:10:00``, or a dash."""
    if seconds is None:
        return "–"
    days, rest = divmod(round(seconds), 86400)
    return (f"{days} d " if days else "") + str(timedelta(seconds=rest))


def _chosen(lines: Sequence[Line], limit: int) -> list[Line]:
    """The `limit` lines that say most, of each state the latest (the next, of those that wait), by their numbers."""
    if not limit or len(lines) <= limit:
        return list(lines)

    def rank(line: Line) -> tuple[int, int]:
        number = line.record.number
        return FIRST.index(line.record.state), number if line.record.state == "waiting" else -number

    ranked = sorted(lines, key=rank)
    return sorted(ranked[:limit], key=lambda line: line.record.number)


def _table(lines: Sequence[Line]) -> Table:
    table = Table(*COLUMNS)
    for line in lines:
        record, last = line.record, line.record.last
        seed = f" seed {record.seed}" if record.seed is not None else ""
        step = number(last.get("step")) + (f" of {line.steps:,}" if line.steps else "")
        owner = line.owner
        hours = record.device_hours if record.folder else None
        table.add_row(
            str(record.number), record.cell + seed, Text(record.state, STYLES.get(record.state, "")),
            owner.task if owner and owner.task else "–", owner.host if owner else record.note("node") or "–", step,
            bound(last.get(trial_files.NLL), last.get(trial_files.NLL_ERROR)), number(last.get(trial_files.SPEED)),
            duration(line.left), "–" if hours is None else f"{hours:.2f}", number(record.note("restarts")),
            Text(_remark(line)))
    return table


def _remark(line: Line) -> str:
    """What went wrong, if anything did."""
    failures = Counter(failure["class"] for failure in line.record.note("failures") or ())
    parts = [counts(failures, sorted(failures)), WORKERS.get(line.worker or "", ""), line.record.note("reason") or ""]
    return "; ".join(part for part in parts if part)
