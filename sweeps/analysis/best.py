"""The best cell of a study as an experiment of its own."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from diffusion_lm.errors import UserError, unknown
from diffusion_lm.files import write_text
from sweeps.analysis import comparison, tables
from sweeps.analysis.comparison import Row
from sweeps.definition.experiments import Experiments
from sweeps.definition.study import StudyConfig
from sweeps.records import history, storage
from sweeps.records.folder import StudyFolder
from sweeps.records.trial_files import BITS, CONFIG, NLL, SPEED

USUAL = {NLL: "minimize", BITS: "minimize", "val/ppl_bound": "minimize", SPEED: "maximize"}
"""Metrics that may be asked for where the study does not name them, with their directions."""


def find(folder: StudyFolder, metric: str | None = None, arm: str | None = None, kind: str | None = None) -> Row:
    """The row that is best by `metric` (the study's first by default), among those of an arm or of a kind of number.

    Raises `UserError` where there is none, and where the best depends on what no number says: on which kind, or on
    which corpus.
    """
    config = _by(folder.config, metric)
    records = history.records(folder, storage.load(folder))
    found = comparison.compare(config, records)
    if not found:
        raise UserError(f"study '{config.name}': no trial is finished yet; see `python -m sweeps status`")
    rows = [(table.corpus["hash"], row) for table in found for row in table.rows]
    if arm is not None:
        arms = sorted({name for _, row in rows for name in (row.cell, row.params.get("arm")) if name})
        rows = [(corpus, row) for corpus, row in rows if arm in (row.cell, row.params.get("arm"))]
        if not rows:
            raise unknown("--arm: no arm with a finished trial", arm, arms)
    if kind is not None:
        kinds = {str(row.kind): row.kind for _, row in rows}
        if kind not in kinds:
            raise unknown("--kind: no kind of number", kind, kinds)
        rows = [(corpus, row) for corpus, row in rows if row.kind == kinds[kind]]
    corpora, kinds_left = {corpus for corpus, _ in rows}, list(dict.fromkeys(row.kind for _, row in rows))
    if len(kinds_left) > 1 and config.objective != SPEED:
        raise UserError(f"study '{config.name}': {config.objective} is of {len(kinds_left)} kinds here "
                        f"({'; '.join(map(str, kinds_left))}), and none is better than another; name one by --kind, or "
                        "an arm by --arm")
    if len(corpora) > 1:
        raise UserError(f"study '{config.name}': its trials saw {len(corpora)} corpora, and numbers on one say nothing "
                        "of those on another; name an arm by --arm")
    return _first(config, [row for _, row in rows])


def _first(config: StudyConfig, rows: list[Row]) -> Row:
    able = [row for row in rows if row.metrics[config.objective] is not None and row.best.feasible]
    if not able:
        raise UserError(f"study '{config.name}': no finished trial of these has {config.objective} and keeps the "
                        "study's constraints; take another --metric or --arm")
    sign = -1 if config.metrics[config.objective] == "maximize" else 1
    return min(able, key=lambda row: sign * row.metrics[config.objective])


def _by(config: StudyConfig, metric: str | None) -> StudyConfig:
    """The study with `metric` as its objective."""
    known = {**USUAL, **config.metrics}
    if metric is None:
        return config
    if metric not in known:
        raise unknown("--metric: no metric", metric, known)
    return replace(config, metrics={metric: known[metric], **{name: direction for name, direction in
                                                              config.metrics.items() if name != metric}})


def experiment(folder: StudyFolder, row: Row, metric: str | None, experiments: Experiments) -> str:
    """The row's experiment as YAML: everything merged, as its best run was trained, and where it is from."""
    run, name = row.best, metric or folder.config.objective
    tree: dict[str, Any] = experiments.to_dict(experiments.load(str(run.folder / CONFIG)))
    # A name would lead its runs into the folder of another; the file gives it its own.
    tree.pop("name", None)
    value = f"{tables.number(row.metrics[name], 4)} ({len(row.runs)} seed{'s' if len(row.runs) > 1 else ''})"
    said = [f"The best of study {folder.config.name} by {name}: {row.cell}, {value}; {row.kind}.",
            f"As trial {run.number} was trained, merged and resolved, kernels and precision too: {run.folder}",
            f"commit {run.note('git') or 'unknown'}, corpus {run.result['corpus']['hash'][:12]}"]
    return "".join(f"# {' '.join(line.split())}\n" for line in said) + OmegaConf.to_yaml(OmegaConf.create(tree))


def export(text: str, path: Path) -> None:
    """Write the experiment to a new file. Raises `UserError` if there is one, or if it cannot be written."""
    if path.suffix != ".yaml":
        raise UserError(f"--export: got '{path}', expected the name of a .yaml file, for example experiments/best.yaml")
    if path.exists():
        raise UserError(f"--export: {path} exists and is not written over; give another name, or remove it")
    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(f"--export: {path} cannot be written ({error.strerror}); give a file elsewhere") from None
