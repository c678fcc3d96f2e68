"""The report of a study: a table and plots that compare its arms, what failed, how to repeat and how to look closer."""

import json
import shlex
import sys
from pathlib import Path

import optuna

from diffusion_lm.files import write_text
from sweeps import comparison, history, storage, tables
from sweeps.comparison import Comparison
from sweeps.folder import StudyFolder
from sweeps.history import TrialRecord
from sweeps.trial_files import CONFIG


def show(folder: StudyFolder, as_json: bool = False) -> None:
    """Print the report; write report.md, the plots and the note in the dashboard. Raises `UserError`."""
    study = storage.load(folder)
    records = history.records(folder, study)
    found = comparison.compare(folder.config, records)
    write(folder, study, records, found)
    if as_json:
        print(json.dumps(comparison.to_json(folder.config, found, records), indent=2))
        return
    console = tables.console()
    console.print()
    for table in found:
        console.print(tables.terminal(folder.config, table))
    for line in [*_remarks(folder, records, found), "", *_sample(found), *_look_closer(folder)]:
        console.print(line, markup=False)


def close(folder: StudyFolder) -> None:
    """After a worker's last trial: the report if the study is over, else who is still at work."""
    study = storage.load(folder)
    states = [record.state for record in history.records(folder, study)]
    open_trials = sum(state in ("running", "waiting") for state in states) + folder.config.size - len(states)
    if open_trials:
        print(f"{folder.config.name}: {open_trials} of {folder.config.size} trials are not over; see "
              f"`python -m sweeps status {shlex.quote(str(folder.definition))}{_root(folder)}`", flush=True)
        return
    show(folder)


def write(folder: StudyFolder, study: optuna.Study, records: list[TrialRecord], found: list[Comparison]) -> None:
    """``report.md`` with its plots, and the tables as the study's note in the dashboard."""
    from optuna_dashboard import save_note

    from sweeps import plots

    config = folder.config
    body = []
    for table in found:
        suffix = f"-{table.corpus['hash'][:8]}" if len(found) > 1 else ""
        images = plots.write(folder.path, table, suffix)
        pictures = [f"![{path.stem}]({path.name})" for path in images]
        body.append((tables.caption(table), tables.markdown(config, table), pictures))
    remarks = _remarks(folder, records, found)
    note = [part for caption, table, _ in body for part in (caption, table)] + ["\n".join(f"* {r}" for r in remarks)]
    save_note(study, "\n\n".join(note))
    parts = [f"# {config.name}", *(part for caption, table, pictures in body for part in (caption, table, *pictures)),
             "\n".join(f"* {remark}" for remark in remarks), _repeat(found),
             "\n".join(f"    {line}" for line in "\n".join([*_sample(found), *_look_closer(folder)]).splitlines())]
    write_text(folder.path / "report.md", "\n\n".join(part for part in parts if part) + "\n")


def _remarks(folder: StudyFolder, records: list[TrialRecord], found: list[Comparison]) -> list[str]:
    """What a reader must know beside the numbers."""
    finished = [record for record in records if record.state == "complete"]
    remarks = [tables.COLUMNS, tables.CAUTION] if found else ["No trial is finished yet."]
    remarks += [remark for table in found for remark in tables.slack(table)]
    if len(found) > 1:
        remarks.append("The trials saw different corpora: one table each, and no comparison from one to the other.")
    for record in comparison.not_completed(records):
        seed = f", seed {record.seed}" if record.seed is not None else ""
        remarks.append(f"trial {record.number} ({record.cell}{seed}) {record.state}: {record.note('reason')}")
    missing = folder.config.size - len(finished) - len(comparison.not_completed(records))
    if missing:
        remarks.append(f"{missing} of {folder.config.size} trials are not over: this is not the final table.")
    for what, key in (("machine", "machine"), ("git commit", "git")):
        known = {str(record.note(key)) for record in finished if record.note(key)}
        if known:
            remarks.append(f"{what}: {'; '.join(sorted(known))}")
    return remarks


def _repeat(found: list[Comparison]) -> str:
    """The command that trains each row's best run again."""
    python = _tool(Path(sys.executable).name)
    configs = [(row.cell, shlex.quote(str(row.best.folder / CONFIG))) for table in found for row in table.rows]
    lines = [f"| {cell} | `{python} -m diffusion_lm train {config} run=NEW` |" for cell, config in configs]
    return "\n".join(["| arm | to repeat its best run in a new folder NEW |", "| --- | --- |", *lines]) if lines else ""


def _sample(found: list[Comparison]) -> list[str]:
    """Text from the best run of each kind: across kinds there is no best."""
    lines = []
    for table in found:
        for row in table.best:
            text = row.best.result["sample"]
            # A model of bytes writes control characters too; in a terminal they would do things.
            text = "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
            if text.strip():
                lines += [f"sample text of the best run of {row.kind} ({row.best.folder}):", "", text, ""]
    return lines


def _look_closer(folder: StudyFolder) -> list[str]:
    """Commands that show the study in a browser; both servers have no password, hence the address."""
    path, journal = shlex.quote(str(folder.path)), shlex.quote(str(folder.journal))
    return ["to look closer:",
            f"  {_tool('tensorboard')} --logdir {path} --host 127.0.0.1",
            f"  {_tool('optuna-dashboard')} {journal} --host 127.0.0.1"]


def _tool(name: str) -> str:
    """How to call a tool of this environment in a shell where it is not activated."""
    beside = Path(sys.executable).parent / name
    if not beside.exists():
        return name
    here = Path.cwd()
    return shlex.quote(str(beside.relative_to(here) if beside.is_relative_to(here) else beside))


def _root(folder: StudyFolder) -> str:
    root = folder.path.parent
    return "" if root == Path("runs") else f" --root {shlex.quote(str(root))}"
