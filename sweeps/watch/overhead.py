"""What a study costs beside training: claiming and telling a trial by the size of the study, and a trial's start.

Claim and tell are what a worker does between two trials: look for orphans, take the next trial, draw its parameters,
tell the result. Sizes and storages are interleaved in one process, so that a busy machine slows all of them alike; half
of each study's trials are finished, the others wait (a design) or are not asked for yet (a sampler).
"""

import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState
from rich.table import Table

from diffusion_lm.errors import RunError
from sweeps.analysis.tables import console
from sweeps.definition import design, study
from sweeps.records import history, storage
from sweeps.records.claim import Claims
from sweeps.records.folder import StudyFolder
from sweeps.records.owner import Owner

ARMS = tuple("abcde")
LEARNING_RATE = (1e-4, 1e-2)


@dataclass
class Case:
    """A study of `size` trials, half of them finished, and what its claims and tells took, in seconds."""

    kind: str
    where: str
    size: int
    claims: Claims
    claimed: list[float] = field(default_factory=list)
    told: list[float] = field(default_factory=list)

    def once(self) -> None:
        """One trial, from the end of the one before to its own, without training."""
        began = time.perf_counter()
        assert self.claims.resume() is None, "the studies here have no orphans"
        claim = self.claims.fresh() if self.claims.has_work() else None
        if claim is None:
            raise RunError(f"overhead: a study of {self.size} trials has none left; expected more --trials or fewer "
                           "--repeats")
        design.suggest(self.claims.folder.config, claim.trial)
        claimed = time.perf_counter()
        self.claims.study.tell(claim.trial, float(claim.number))
        self.claimed.append(claimed - began)
        self.told.append(time.perf_counter() - claimed)

    @property
    def milliseconds(self) -> tuple[float, float, float]:
        """Medians of claim, of tell, and of both together."""
        both = [sum(pair) for pair in zip(self.claimed, self.told)]
        return tuple(1000 * statistics.median(times) for times in (self.claimed, self.told, both))


def measure(sizes: Sequence[int], repeats: int, url: str | None, root: Path) -> list[Case]:
    """Every kind of study at every size, in the journal and in the database `url` if there is one."""
    cases = [_case(kind, where, size, root) for where in ("journal", *([url] if url else []))
             for kind in KINDS for size in sorted(sizes)]
    for _ in range(repeats + 1):
        for case in cases:
            case.once()
    for case in cases:  # the first trial reads the whole study
        del case.claimed[0], case.told[0]
    return cases


def table(cases: list[Case]) -> Table:
    """Milliseconds per trial, and how much more than in the smallest study of its kind."""
    shown = Table("storage", "study", "trials", "claim, ms", "tell, ms", "together, ms", "ratio")
    smallest = {}
    for case in cases:
        times = case.milliseconds
        first = smallest.setdefault((case.where, case.kind), times[2])
        where = "journal" if case.where == "journal" else "PostgreSQL"
        shown.add_row(where, case.kind, f"{case.size:,}", *(f"{value:.1f}" for value in times),
                      f"{times[2] / first:.2f}")
    return shown


def show(sizes: Sequence[int], repeats: int, url: str | None, source: str | None) -> None:
    """Print the table, and what a trial of the study `source` costs outside its training."""
    with tempfile.TemporaryDirectory(prefix="overhead-") as root:
        console().print(table(measure(sizes, repeats, url, Path(root))))
        if source is not None:
            console().print(_outside(source, Path(root)), markup=False)


def _case(kind: str, where: str, size: int, root: Path) -> Case:
    name = f"overhead-{uuid.uuid4().hex[:12]}"  # a database may have one of an earlier run
    raw = {"name": name, "experiment": "none", "arms": {arm: {} for arm in ARMS}, **KINDS[kind](size)}
    config = study.from_dict(raw)
    folder = StudyFolder(config, root, where)
    url = storage.choose(folder)
    with folder.lock():
        storage.settle(folder, url)
        known = storage.create(folder)
    rows = design.rows(config)
    trials = [_finished(config, row) for row in rows[: size // 2]]
    if config.factorial:
        trials += [storage.waiting(row.params, row.attributes()) for row in rows[size // 2:]]
    storage.add(known, trials)
    return Case(kind, where, size, Claims(folder, known, Owner.current()))


def _finished(config: study.StudyConfig, row: design.Row) -> optuna.trial.FrozenTrial:
    params: dict[str, Any] = dict(row.params)
    distributions: dict[str, Any] = {design.ARM: CategoricalDistribution(ARMS)}
    if config.factorial:
        distributions["width"] = CategoricalDistribution(config.space["width"].values)
    else:
        low, high = LEARNING_RATE
        params["lr"] = low * (high / low) ** (row.index * 0.618 % 1)  # spread evenly, as a search's first trials are
        distributions["lr"] = FloatDistribution(low, high, log=True)
    return optuna.trial.create_trial(state=TrialState.COMPLETE, params=params, distributions=distributions,
                                     user_attrs=row.attributes(), value=float(row.index))


def _outside(source: str, root: Path) -> str:
    """Train the study `source` with one worker; wall time less training, per trial."""
    config = study.load(source)
    path = root / "study.yaml"
    path.write_text(yaml.safe_dump(config.to_dict()))
    began = time.perf_counter()
    command = [sys.executable, "-m", "sweeps", "run", str(path), "--root", str(root), "--storage", "journal"]
    done = subprocess.run(command, capture_output=True, text=True)
    wall = time.perf_counter() - began
    if done.returncode:
        raise RunError(f"overhead: {source}: its worker ended with {done.returncode}: {done.stderr[-300:]}")
    folder = StudyFolder(config, root)
    records = history.records(folder, storage.load(folder))
    training = sum(record.result["seconds"] for record in records if record.result)
    spans = [(record.trial.datetime_complete - record.trial.datetime_start).total_seconds() for record in records]
    trial = (sum(spans) - training) / len(records)
    return (f"{config.name}: {len(records)} trials, {wall:.1f} s with one worker, of them {training:.1f} s training; "
            f"outside training {trial:.1f} s per trial between claim and tell ({trial / 6:.1f} % of 10 minutes), and "
            f"{wall - sum(spans):.1f} s once per worker (start, plan, report)")


KINDS = {
    "design": lambda size: {"space": {"width": list(range(1, size // len(ARMS) + 1))}},
    "sampled": lambda size: {"space": {"lr": {"low": LEARNING_RATE[0], "high": LEARNING_RATE[1], "log": True}},
                             "trials": size},
}
