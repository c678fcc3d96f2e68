"""What a report says, section by section: once, for the terminal, the Markdown file and the page."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import optuna

from sweeps.analysis import comparison, effect_plots, effects, pareto, plots, search, statistics, tables
from sweeps.analysis.comparison import Comparison, Row
from sweeps.analysis.drawing import Picture
from sweeps.analysis.effects import Effects
from sweeps.analysis.tables import Text
from sweeps.records import history, storage, trial_files
from sweeps.records.folder import StudyFolder
from sweeps.records.history import TrialRecord
from sweeps.records.trial_files import CONFIG, RESULT, SAMPLES
from sweeps.watch.dashboard import ARTIFACTS


@dataclass(frozen=True, slots=True)
class Section:
    """Paragraphs, a table, pictures, text as it is (commands, samples)."""

    title: str
    paragraphs: Sequence[str] = ()
    table: Text | None = None
    groups: Sequence[str] = ()
    """For a table of arms the kind of each row, which sorting keeps together; rows beyond them are for reference."""
    pictures: Sequence[Picture] = ()
    text: str = ""
    short: bool = False
    """Whether a terminal shows it too."""


@dataclass(frozen=True)
class Report:
    """A study as it stands: everything that the sections are made of."""

    folder: StudyFolder
    records: list[TrialRecord]
    comparisons: list[Comparison]
    sections: list[Section] = field(default_factory=list)

    @property
    def finished(self) -> list[TrialRecord]:
        return [record for record in self.records if record.state == "complete" and record.result]

    def known(self, key: str) -> str:
        """The different values of an attribute among the finished trials."""
        return "; ".join(sorted({str(record.note(key)) for record in self.finished if record.note(key)}))


def gather(folder: StudyFolder, study: optuna.Study) -> Report:
    """Read the study's trials and make its sections."""
    records = history.records(folder, study)
    report = Report(folder, records, comparison.compare(folder.config, records))
    report.sections.extend(section for section in (
        *_comparisons(report), _state(report), *_designs(report), *_searches(report), _failures(report), _cost(report),
        _repeat(report), *_samples(report), _provenance(report), _definition(report), _look_closer(report))
        if section is not None)
    return report


def _suffix(report: Report, table: Comparison) -> str:
    return f"-{table.corpus['hash'][:8]}" if len(report.comparisons) > 1 else ""


def _comparisons(report: Report) -> list[Section]:
    config, found = report.folder.config, []
    for table in report.comparisons:
        said = [statistics.screen(len(row.runs) for row in table.rows), *tables.slack(table)]
        found.append(Section(
            f"The arms on {tables.caption(table)}", [text for text in said if text], tables.cells(config, table),
            [str(kind) for row in table.rows for kind in table.kinds if kind == row.kind],
            plots.pictures(config, table, _suffix(report, table)), short=True))
    return found


def _state(report: Report) -> Section:
    """How far the study is, and how its numbers are read."""
    said = [tables.COLUMNS, tables.CAUTION] if report.comparisons else ["No trial is finished yet."]
    if report.comparisons:
        said += [tables.DIFFERENCES] if report.folder.config.baseline else []
        said.append(f"{' and '.join(pareto.pair(report.folder.config))}: {pareto.MEANING}")
    if len(report.comparisons) > 1:
        said.append("The trials saw different corpora: one table each, and no comparison from one to the other.")
    broken = [str(record.number) for record in report.finished if not record.feasible]
    if broken:
        said.append(f"Trials that break a constraint of the study, ranked after all others: {', '.join(broken)}.")
    # A trial without a folder is not this study's own: it was taken over from another to start a search warm.
    over = sum(record.state == "complete" and record.folder is not None for record in report.records)
    missing = report.folder.config.size - over - len(comparison.not_completed(report.records))
    if missing > 0:
        said.append(f"{missing} of {report.folder.config.size} trials are not over: this is not the final table.")
    said += [f"{what}: {known}" for what, key in (("machine", "machine"), ("git commit", "git"))
             if (known := report.known(key))]
    return Section("How to read it", said, short=True)


def _designs(report: Report) -> list[Section]:
    """Main effects and interactions, where trials are those of a design."""
    config, sections = report.folder.config, []
    for table in report.comparisons:
        found = effects.of_design(config, table)
        if not found:
            continue
        rows = [line for one in found for line in _effect_lines(one)]
        said = ["Share: of the sum of squares of the objective; what is left of one is between seeds, of more than two "
                "factors together, and noise. In a fraction an interaction may be another effect under its alias."]
        said += [f"{one.kind}: 95 % intervals; the error is from {one.error}." if one.error else
                 f"{one.kind}: nothing is left to take an error from, so there are no intervals." for one in found]
        said += [f"{effect.factor} is judged among the trials that have it." for one in found for effect in one.main
                 if effect.conditional]
        said += [f"trial {run.number} is left out: {trial_files.diverged(run.result)}."
                 for run in effects.diverged(config, table.rows)]
        sections.append(Section("Factors", said, Text(["kind", "factor", "level", "mean", "± half of 95 %", "trials",
                                                       "share"], rows, words=3),
                                pictures=effect_plots.pictures(config, found, (), _suffix(report, table)), short=True))
    return sections


def _effect_lines(found: Effects) -> list[list[str]]:
    kind = str(found.kind)
    lines = [[kind, effect.factor, tables.value(level.value), tables.number(level.mean, 3),
              tables.number(level.half_width, 3), str(level.trials), f"{effect.share:.1%}"]
             for effect in found.main for level in effect.levels]
    return lines + [[kind, " x ".join(pair.factors), "", "", "", "", f"{pair.share:.1%}"]
                    for pair in found.interactions]


def _searches(report: Report) -> list[Section]:
    """History and importance, where a sampler chose."""
    config = report.folder.config
    if config.factorial or not config.space:
        return []
    found = search.searches(config, report.records)
    rows = [[str(one.kind), name, f"{value:.3f}"] for one in found for name, value in one.importances.items()]
    said = [f"Importance is left out of {len(one.values)} trials ({one.kind}): fewer than {search.FEWEST_TRIALS} say "
            "nothing." for one in found if not one.importances]
    return [Section("Search", said, Text(["kind", "parameter", "importance"], rows) if rows else None,
                    pictures=effect_plots.pictures(config, (), found))] if found else []


def _failures(report: Report) -> Section | None:
    """Every end of a life that was none of a finished trial, with class and reason; finished ones that were lost."""
    again = history.asked_again(report.records)
    rows = []
    for record in report.records:
        ends = list(record.note("failures") or [])
        if record.state in ("fail", "pruned"):
            last = ends.pop() if ends and record.state == "fail" else {}
            ends.append({"class": record.note("failure"), **last, "reason": record.note("reason") or last.get("reason"),
                         "final": True})
        for end in ends:
            then = f"asked again as trial {again[record.number]}" if record.number in again else record.state
            rows.append([str(record.number), record.cell, tables.text(record.seed), tables.text(end.get("class")),
                         tables.text(end.get("life")), tables.text(end.get("node") or record.note("node")),
                         then if end.get("final") else "went on", tables.text(end.get("reason"))])
    for record in comparison.lost(report.records):
        values = tables.values(comparison.told(report.folder.config, record))
        rows.append([str(record.number), record.cell, tables.text(record.seed), "lost", tables.text(None),
                     tables.text(record.note("node")), record.state,
                     f"{record.folder} has no {RESULT} any more: of its results only {values} is left (in Optuna), and "
                     "it stands in no table; restore the folder"])
    if not rows:
        return None
    header = ["trial", "arm", "seed", "class", "life", "node", "then", "reason"]
    return Section("What failed, and why", table=Text(header, rows, words=len(header)), short=True)


def _cost(report: Report) -> Section | None:
    """Tokens, hours and memory of each row, and of everything together."""
    rows = [[row.cell, str(row.kind), str(len(row.runs)), *_spent(row.runs)]
            for table in report.comparisons for row in table.rows]
    if not rows:
        return None
    rows.append(["everything, failed and other trials too", "", str(len(report.records)), *_spent(report.records)])
    device = "GPU" if any(record.on_gpu for record in report.finished) else "CPU process"
    header = ["arm", "kind", "runs", "tokens", f"{device} hours", "wall hours", "peak memory"]
    return Section("Cost", ["Hours of training and validation, over all lives of a trial; wall hours: the same as if "
                            "the trials had run one after the other."], Text(header, rows), [""] * (len(rows) - 1))


def _spent(records: Sequence[TrialRecord]) -> list[str]:
    memory = [record.note("peak_memory") for record in records if record.note("peak_memory")]
    return [tables.compact(sum(record.last.get("tokens") or 0 for record in records)),
            tables.number(sum(record.device_hours or 0 for record in records), 2),
            tables.number(sum(record.seconds or 0 for record in records) / 3600, 2),
            f"{max(memory) / 2**30:.2f} GiB" if memory else tables.text(None)]


def _repeat(report: Report) -> Section | None:
    """The command that trains each row's best run again."""
    python = tool(Path(sys.executable).name)
    rows = [[row.cell, f"{python} -m diffusion_lm train {shlex.quote(str(row.best.folder / CONFIG))} run=NEW"]
            for table in report.comparisons for row in table.rows]
    return Section("To repeat a row", ["Trains its best run in a new folder NEW; `seed=N` behind it is another "
                                       "replicate."], Text(["arm", "command"], rows, code=1)) if rows else None


def _samples(report: Report) -> list[Section]:
    """Text from the best run of each kind: across kinds there is no best."""
    best = [row for table in report.comparisons for row in table.best if _sample(row).strip()]
    return [Section(f"Sample text of the best run of {row.kind}", [f"{row.best.folder / SAMPLES}"], text=_sample(row),
                    short=True) for row in best]


def _sample(row: Row) -> str:
    # A model of bytes writes control characters too; in a terminal they would do things.
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}"
                   for c in row.best.result.get("sample") or "")


def _provenance(report: Report) -> Section:
    """Where the numbers come from."""
    folder = report.folder
    starts = [record.trial.datetime_start for record in report.records if record.trial.datetime_start]
    ends = [record.trial.datetime_complete for record in report.records if record.trial.datetime_complete]
    facts = [
        ("trials", ", ".join(f"{sum(record.state == state for record in report.records)} {state}" for state in
                             dict.fromkeys(record.state for record in report.records))),
        ("first trial began", f"{min(starts):%Y-%m-%d %H:%M}" if starts else ""),
        ("last trial ended", f"{max(ends):%Y-%m-%d %H:%M}" if ends else ""),
        ("git commit", report.known("git")), ("machine", report.known("machine")), ("nodes", report.known("node")),
        ("SLURM jobs", report.known("slurm_job")), ("code snapshot", _line(folder.path / "code")),
        ("storage", storage.address(folder)), ("folder", str(folder.path)),
        *[("corpus", f"{table.corpus.get('name')} {table.corpus['hash']}") for table in report.comparisons],
    ]
    return Section("Provenance", table=Text(["what", "value"], [[what, value] for what, value in facts if value]))


def _line(path: Path) -> str:
    return path.read_text().strip() if path.is_file() else ""


def _definition(report: Report) -> Section:
    return Section("The study's definition", [str(report.folder.definition)], text=report.folder.definition.read_text())


def _look_closer(report: Report) -> Section:
    """Commands that show the study in a browser; both servers have no password, hence the address."""
    folder = report.folder
    path, address = shlex.quote(str(folder.path)), shlex.quote(storage.address(folder))
    commands = [f"{tool('tensorboard')} --logdir {path} --host 127.0.0.1",
                f"{tool('optuna-dashboard')} {address} --host 127.0.0.1 --artifact-dir "
                f"{shlex.quote(str(folder.path / ARTIFACTS))}"]
    return Section("To look closer", text="\n".join(commands), short=True)


def tool(name: str) -> str:
    """How to call a tool of this environment in a shell where it is not activated."""
    beside = Path(sys.executable).parent / name
    if not beside.exists():
        return name
    here = Path.cwd()
    return shlex.quote(str(beside.relative_to(here) if beside.is_relative_to(here) else beside))
