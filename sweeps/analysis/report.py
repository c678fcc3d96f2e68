"""The report of a study: report.md with its plots, report.html, report.csv, report.json; its tables in a terminal."""

import csv
import io
import json
import shlex
from pathlib import Path
from typing import Any

import optuna

from diffusion_lm.errors import UserError
from diffusion_lm.files import write_json, write_text
from diffusion_lm.kind import Kind
from sweeps.analysis import comparison, sections, tables
from sweeps.analysis.sections import Report, Section
from sweeps.definition.study import StudyConfig
from sweeps.records import history, storage
from sweeps.records.folder import StudyFolder
from sweeps.records.history import TrialRecord
from sweeps.watch import dashboard, tensorboard
from sweeps.work import room

REPORT = "report.json"
NOTES = ("arm", "replicate", "restarts", "failure", "reason", "retry_of", "from", "worker", "node", "slurm_job",
         "machine", "git", "peak_memory")
"""User attributes that are columns of report.csv."""


def show(folder: StudyFolder, as_json: bool = False, again: bool = True) -> None:
    """Print the report and write its files; without `again`, only if those there say something else. Raises
    `UserError`."""
    study = storage.load(folder)
    report = sections.gather(folder, study)
    if again or not _written(report):
        write(report, study)
    if as_json:
        print(json.dumps(_json(report), indent=2))
        return
    console = tables.console()
    for section in report.sections:
        if section.short:
            _print(console, section)
    console.print(f"\nthe whole report: {folder.path / 'report.html'} (or .md, .csv, .json)", markup=False)


def close(folder: StudyFolder) -> None:
    """After a worker's last trial: the report if the study is over or its budget used up, else who is still at work."""
    study = storage.load(folder)
    states = [record.state for record in history.records(folder, study)]
    open_trials = sum(state in ("running", "waiting") for state in states) + folder.config.size - len(states)
    ended = "running" not in states and room.over_budget(folder, study)
    if open_trials and not ended:
        print(f"{folder.config.name}: {open_trials} of {folder.config.size} trials are not over; see "
              f"`python -m sweeps status {shlex.quote(str(folder.definition))}{_root(folder)}`", flush=True)
        return
    with folder.lock("report.lock"):  # of the workers that end together one writes it
        show(folder, again=False)


def write(report: Report, study: optuna.Study) -> None:
    """All files of the report, each whole, and the tables as the study's note in the dashboard."""
    from sweeps.analysis import page

    path = report.folder.path
    note = "\n\n".join(_markdown(section) for section in report.sections if (section.short and section.table)
                       or section.title == "How to read it")
    try:
        for section in report.sections:
            for picture in section.pictures:
                picture.write_png(path)
        body = [_markdown(section, pictures=True) for section in report.sections]
        write_text(path / "report.md", "\n\n".join([f"# {report.folder.config.name}", *body]) + "\n")
        write_text(path / "report.html", page.html(report))
        write_text(path / "report.csv", trials_csv(report.folder.config, report.records))
        tensorboard.write_means(report.folder, report.records)
        with report.folder.lock():  # two that look for what is there and then add it would both add it
            dashboard.publish(report.folder, study, report.comparisons, note)
        write_json(path / REPORT, _json(report))  # last: it says that all is there
    except OSError as error:
        raise UserError(f"{path}: the report cannot be written ({error.strerror}); make room or make the folder "
                        "writable, and ask for it again") from None


def _written(report: Report) -> bool:
    """Whether this report is there already. Not by time: the clocks of nodes differ."""
    try:
        return json.loads((report.folder.path / REPORT).read_text()) == json.loads(json.dumps(_json(report)))
    except (OSError, ValueError):
        return False


def _json(report: Report) -> dict[str, Any]:
    return comparison.to_json(report.folder.config, report.comparisons, report.records)


def _print(console: Any, section: Section) -> None:
    console.print(f"\n{section.title}", markup=False, style="bold")
    if section.table is not None:
        dim = len(section.table.rows) - len(section.groups) if section.groups else 0
        console.print(tables.terminal(section.table, dim=dim))
    for paragraph in (*section.paragraphs, section.text):
        if paragraph:
            console.print(paragraph, markup=False)


def _markdown(section: Section, pictures: bool = False) -> str:
    parts = [f"## {section.title}"]
    # A remark may hold what a model or a program wrote, and it is no markup here.
    parts += ["\n".join(f"* {' '.join(paragraph.split())}" for paragraph in section.paragraphs)]
    parts += [tables.markdown(section.table)] if section.table is not None else []
    parts += [f"![{picture.name}]({picture.name}.png)\n\n{picture.caption}"
              for picture in section.pictures] if pictures else []
    parts += ["\n".join(f"    {line}" for line in section.text.splitlines())]
    return "\n\n".join(part for part in parts if part)


def trials_csv(config: StudyConfig, records: list[TrialRecord]) -> str:
    """One line per trial with all its numbers: parameters as ``param:KEY``, then what it reported last (what Optuna
    knows of a complete trial whose folder is gone)."""
    lines = [_line(record) for record in records]
    for record in comparison.lost(records):
        lines[records.index(record)] |= comparison.told(config, record)
    header = list(dict.fromkeys(key for line in lines for key in line))
    out = io.StringIO()
    table = csv.DictWriter(out, header, lineterminator="\n")
    table.writeheader()
    table.writerows(lines)
    return out.getvalue()


def _line(record: TrialRecord) -> dict[str, Any]:
    result = record.result or {}
    return {
        "trial": record.number, "state": record.state, "cell": record.cell, "seed": record.seed,
        "kind": str(Kind.of_result(result)) if result else None, "feasible": record.feasible,
        **{f"param:{key}": value for key, value in record.trial.params.items()},
        **{key: value for key, value in record.last.items() if isinstance(value, int | float)},
        "tokens_per_second_median": record.speed, "seconds": record.seconds, "devices": record.devices,
        "device_hours": record.device_hours,
        "parameters": result.get("parameters", {}).get("non_embedding"),
        "corpus": result.get("corpus", {}).get("hash"),
        **{key: record.note(key) for key in NOTES},
        "folder": str(record.folder) if record.folder else None,
    }


def _root(folder: StudyFolder) -> str:
    root = folder.path.parent
    return "" if root == Path("runs") else f" --root {shlex.quote(str(root))}"
