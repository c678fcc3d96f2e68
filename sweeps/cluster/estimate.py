"""What a study or an experiment would take: a few real steps of each cell are timed here, and extrapolated.

A trial is its start (imports, data, building, compiling), its steps and its validations with their sample texts.
Restarts, waiting in the queue, the exchange between devices and texts drawn at the very end are not in it.
"""

import heapq
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_lm.errors import UserError
from sweeps.cluster import provenance
from sweeps.definition import design
from sweeps.definition import experiments as experiment_files
from sweeps.definition.experiments import Experiments
from sweeps.definition.study import StudyConfig

STEPS = 6


@dataclass(frozen=True, slots=True)
class Cost:
    """One cell: how many trials it has, and what was timed (see timing.py; seconds, bytes)."""

    cell: str
    trials: int
    timed: dict[str, Any]

    def seconds(self, devices: int) -> float:
        """Of one trial on `devices`, which share its steps and validations."""
        timed = self.timed
        work = timed["steps"] * timed["step"] + timed["validations"] * timed["validation"]
        return timed["startup"] + work / devices


def study(config: StudyConfig, experiments: Experiments, measure: Callable[[Path], dict[str, Any]]) -> list[Cost]:
    """The cost of every cell of a study. In a sampled one a range stands at its first corner.

    Raises `UserError` for a cell that cannot be built.
    """
    experiment_files.try_all(config, experiments)
    counts: dict[str, int] = {}
    probes: dict[str, Any] = {}
    for row in design.rows(config):
        counts[row.cell] = counts.get(row.cell, 0) + 1
        probes.setdefault(row.cell, row)
    corner = {key: dimension.corners()[0] for key, dimension in config.space.items()}
    costs = []
    for cell, row in probes.items():
        params = row.params if config.factorial else {**corner, **row.params}
        with tempfile.TemporaryDirectory(prefix="estimate-") as folder:
            try:
                experiment_files.write_trial(config, Path(folder), params, row.seed, experiments)
                costs.append(Cost(cell, counts[cell], measure(Path(folder) / "config.yaml")))
            except UserError as error:
                raise UserError(f"{cell}: {error}") from None
    return costs


def experiment(name: str, overrides: Sequence[str], experiments: Experiments,
               measure: Callable[[Path], dict[str, Any]]) -> list[Cost]:
    """The cost of one run. Raises `UserError`."""
    words = [text for text in overrides if not text.startswith("run=")]
    with tempfile.TemporaryDirectory(prefix="estimate-") as folder:
        path = Path(folder) / "config.yaml"
        experiments.save(experiments.load(name, words), path)
        return [Cost(Path(name).stem, 1, measure(path))]


def measure(path: Path) -> dict[str, Any]:
    """Time the experiment in `path` in a process of its own. Raises `UserError` with what that one said."""
    with tempfile.TemporaryDirectory(prefix="estimate-") as folder:
        out = Path(folder) / "timing.json"
        command = [sys.executable, "-m", "sweeps.cluster.timing", str(path), str(out), str(STEPS), repr(time.time())]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
            raise UserError(f"cannot be timed: {said[-1].removeprefix('error: ')}")
        return json.loads(out.read_text())


def wall(durations: Sequence[float], width: int) -> float:
    """Seconds until all are done, when `width` workers take them in order."""
    free = [0.0] * min(width, max(1, len(durations)))
    for duration in durations:
        heapq.heapreplace(free, free[0] + duration)
    return max(free)


def text(costs: Sequence[Cost], devices: int, width: int) -> str:
    """A table for people: a line per cell, and the sum."""
    head = ("cell", "trials", "parameters", "tokens per trial", "s/step", "s/validation", "hours per trial",
            "device hours")
    lines = [head]
    for cost in costs:
        hours = cost.seconds(devices) / 3600
        lines.append((cost.cell, str(cost.trials), f"{cost.timed['parameters']:,}", f"{cost.timed['tokens']:,}",
                      f"{cost.timed['step']:.3g}", f"{cost.timed['validation']:.3g}", f"{hours:.3g}",
                      f"{hours * devices * cost.trials:.3g}"))
    widths = [max(len(entry[column]) for entry in lines) for column in range(len(head))]
    table = "\n".join("  ".join(value.ljust(size) if not column else value.rjust(size)
                                for column, (value, size) in enumerate(zip(entry, widths))) for entry in lines)
    return f"{table}\n\n{summary(costs, devices, width)}"


def summary(costs: Sequence[Cost], devices: int, width: int) -> str:
    """The sum of all trials, and where it was timed."""
    each = [cost.seconds(devices) for cost in costs for _ in range(cost.trials)]
    tokens = sum(cost.trials * cost.timed["tokens"] for cost in costs)
    kinds = {cost.timed["accelerator"] for cost in costs}
    where = f"timed on {provenance.machine()}"
    if kinds == {"cpu"}:
        where += "; for the hours on a GPU call it on a node that has one: srun --gpus=1 bash SLURM/..."
    shared = f" of {devices} devices each (their exchange was not timed)" if devices > 1 else ""
    hours = f"{sum(each) * devices / 3600:.3g} device hours"
    return (f"{len(each)} trial{'s' * (len(each) > 1)}{shared}, {tokens:,} tokens: {hours}, "
            f"{wall(each, width) / 3600:.3g} hours with {width} at a time, without restarts and waiting\n{where}")
