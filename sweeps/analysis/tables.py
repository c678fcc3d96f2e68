"""The comparison as tables: once as text, shown by rich in a terminal, as Markdown in a file and as HTML in a page."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from diffusion_lm.evaluation.floor import ENTROPY_RATE, above_floor
from diffusion_lm.kind import CACHE
from diffusion_lm.numbers import fixed
from sweeps.analysis import pareto
from sweeps.analysis.comparison import Comparison, Row
from sweeps.analysis.statistics import SEQUENCES
from sweeps.definition.study import StudyConfig
from sweeps.records.trial_files import BITS, NLL

CAUTION = ("Arms are ranked, and differences taken, among numbers of one kind: process, and what the number is over. "
           "`exact` is the negative log-likelihood itself, all others are upper bounds on it with different slack "
           "(processes, continuous time or T steps): do not rank processes on the bound alone.")
COLUMNS = ("Bound: mean over the arm's seeds. s.e.: standard error, over validation sequences of a run or over seeds. "
           "tokens/s: in training, median over a run. Parameters: without embeddings.")
DIFFERENCES = ("Differences to the baseline are paired by seed, [95 % interval of Student's t] (n pairs); of one pair "
               "none is known, unless both runs were evaluated on the same sequences (`python -m diffusion_lm "
               "evaluate RUN`): then it is over sequences, and says nothing of other seeds.")
REFERENCES = (("entropy rate (floor)", ENTROPY_RATE), ("unigram entropy", "unigram_entropy"),
              ("uniform (log V)", "log_vocabulary"))
Column = tuple[str, Callable[[Row], str]]


@dataclass(frozen=True, slots=True)
class Text:
    """A table of text: a header, rows, and how many columns at the left are words (the others are numbers)."""

    header: list[str]
    rows: list[list[str]]
    words: int = 2
    notes: int = 0
    """Columns of words at the right."""
    code: int | None = None
    """The column of commands."""

    def is_word(self, column: int) -> bool:
        return column < self.words or column >= len(self.header) - self.notes


def console() -> Console:
    """A console that does not break tables at 80 columns where there is no terminal: in a SLURM log or a pipe."""
    return Console(width=None if sys.stdout.isatty() else 240, highlight=False, soft_wrap=False)


def number(value: float | None, digits: int = 0) -> str:
    """A number with thousands separated, or a dash."""
    if value is None:
        return "–"
    return fixed(value, digits) if digits else f"{value:,.0f}"


def compact(value: float | None) -> str:
    """A parameter count: 1.24M."""
    if value is None:
        return "–"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def cells(config: StudyConfig, comparison: Comparison) -> Text:
    """The arms, the reference rows last."""
    columns = _columns(config, comparison)
    rows = [[show(row) for _, show in columns] for row in comparison.rows]
    for name, key in references(comparison):
        rows.append([name, "", number(comparison.corpus.get(key), 3)] + [""] * (len(columns) - 3))
    return Text([header for header, _ in columns], rows)


def references(comparison: Comparison) -> list[tuple[str, str]]:
    """The rows to read bounds by, name and key of the corpus; the entropy rate only where the source is known."""
    return [(name, key) for name, key in REFERENCES
            if key != ENTROPY_RATE or comparison.corpus.get(key) is not None]


def _columns(config: StudyConfig, comparison: Comparison) -> list[Column]:
    columns: list[Column] = [
        ("arm", lambda row: row.cell),
        ("kind", lambda row: str(row.kind)),
        ("bound (nats/token)", lambda row: number(row.metrics[NLL], 3) + (" exact" if row.kind.exact else "")),
        ("± s.e. sequences", lambda row: number(row.sequences_error, 3)),
    ]
    if comparison.corpus.get(ENTROPY_RATE) is not None:
        columns.append(("above floor", lambda row: number(above_floor(row.metrics[NLL], comparison.corpus), 3)))
    if any(len(row.runs) > 1 for row in comparison.rows):
        what = f"{config.objective}: " if config.objective != NLL else ""
        columns.append((f"± s.e. {what}seeds (n)", lambda row: f"{number(row.seeds_error, 3)} ({len(row.runs)})"))
    if config.baseline:
        columns.append((f"minus {config.baseline} [95 %]", _difference))
    for name in config.metrics:
        if name not in (NLL, BITS):
            columns.append((name, lambda row, name=name: number(row.metrics[name], 3)))
    metrics = pareto.pair(config)
    status = dict(zip(map(id, comparison.rows), pareto.front(comparison.rows, metrics)))
    columns += [
        ("bits/byte", lambda row: number(row.metrics[BITS], 3)),
        ("tokens/s", lambda row: number(row.speed)),
        ("front", lambda row: status[id(row)] or "–"),
        ("parameters", lambda row: compact(row.parameters)),
        ("trials", lambda row: str(row.trials)),
    ]
    if not config.factorial:
        columns.append(("best of them", lambda row: values({key: value for key, value in row.params.items()
                                                            if key in config.space})))
    return columns


def value(found: Any) -> str:
    """A parameter's value as text."""
    return f"{found:.4g}" if isinstance(found, float) else str(found)


def values(params: Mapping[str, Any]) -> str:
    """Parameters as text: ``lr=0.001, d_state=64``."""
    return ", ".join(f"{key}={value(found)}" for key, found in params.items())


def text(found: Any) -> str:
    """Anything, or a dash for nothing."""
    return "–" if found is None else str(found)


def _difference(row: Row) -> str:
    if row.against is None:
        return "–"
    found, per_sequence = row.against, row.against.over == SEQUENCES
    low_high = f" [{', '.join(fixed(end, 3, '+') for end in found.interval)}]" if found.interval else ""
    return f"{fixed(found.mean, 3, '+')}{low_high} ({f'{found.n:,} sequences' if per_sequence else found.n})"


def terminal(text: Text, title: str = "", dim: int = 0) -> Table:
    """A table for a person at a terminal, the last `dim` rows set apart."""
    table = Table(title=title or None, title_justify="left")
    for place, name in enumerate(text.header):
        table.add_column(name, justify="left" if text.is_word(place) else "right")
    for place, row in enumerate(text.rows):
        if place == len(text.rows) - dim:
            table.add_section()
        table.add_row(*map(escape, row), style="dim" if place >= len(text.rows) - dim else "")
    return table


def markdown(text: Text) -> str:
    """A table for a file."""
    rule = ["---" if text.is_word(place) else "---:" for place in range(len(text.header))]
    rows = [[f"`{cell}`" if place == text.code else cell for place, cell in enumerate(row)] for row in text.rows]
    return "\n".join("| " + " | ".join(map(_one_line, line)) + " |" for line in (text.header, rule, *rows))


def _one_line(cell: str) -> str:
    return " ".join(cell.split()).replace("|", "\\|")


def caption(comparison: Comparison) -> str:
    """Which text the bounds are about."""
    return f"corpus {comparison.corpus.get('name')} (hash {comparison.corpus['hash'][:12]})"


def slack(comparison: Comparison) -> list[str]:
    """What bounds of one kind depend on and do not share; what their models write with."""
    cautions = dict.fromkeys(row.kind.caution for row in comparison.rows if row.kind.caution)
    remarks = [f"{', '.join(row.cell for row in comparison.rows if row.kind.caution == caution)}: {caution}."
               for caution in cautions]
    for kind in (found for found in comparison.kinds if not found.exact):
        depends_on = [row.kind.depends_on for row in comparison.rows if row.kind == kind]
        for name in dict.fromkeys(key for values in depends_on for key in values if key != CACHE):
            if any(values.get(name) != depends_on[0].get(name) for values in depends_on):
                remarks.append(f"{kind}: these bounds depend on {name}, which differs between arms: slack is part of "
                               "the differences.")
    return remarks
