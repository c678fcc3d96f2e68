"""Plots of a comparison: how the arms learn, where they end, what speed it costs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from diffusion_lm.evaluation.floor import ENTROPY_RATE
from diffusion_lm.files import atomic_path
from sweeps.comparison import Comparison, Row
from sweeps.trial_files import NLL, NLL_ERROR

# Okabe and Ito's colours, which stay apart for colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
CAUTION = ("Upper bounds where not marked exact. Those of different kinds (process, continuous time or T steps) have "
           "different slack:\ndo not rank kinds on this alone.")
BOUND = "validation bound (nats/token, lower is better)"


def write(folder: Path, comparison: Comparison, suffix: str = "") -> list[Path]:
    """Draw every plot of `comparison` into `folder`. Returns the files; a plot without data is left out."""
    rows = [row for row in comparison.rows if row.metrics[NLL] is not None]
    if not rows:
        return []
    drawn = []
    for draw in (learning_curves, bounds, bound_against_speed):
        figure = Figure(figsize=(8, 5), layout="constrained", dpi=150)
        axes = figure.add_subplot()
        draw(axes, rows, comparison.corpus)
        figure.supxlabel(CAUTION, fontsize=8, color="grey")
        axes.spines[["top", "right"]].set_visible(False)
        path = folder / f"{draw.__name__}{suffix}.png"
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png")
        drawn.append(path)
    return drawn


def learning_curves(axes: Axes, rows: list[Row], corpus: dict[str, Any]) -> None:
    """The bound against the tokens seen, one line per run; the band is one standard error over sequences."""
    for row, colour, _ in _styled(rows):
        for run in row.runs:
            lines = [line for line in run.reports if line.get(NLL) is not None and line.get("tokens") is not None]
            tokens, values = [line["tokens"] for line in lines], [line[NLL] for line in lines]
            errors = [line.get(NLL_ERROR) or 0 for line in lines]
            axes.plot(tokens, values, color=colour, marker=".", linewidth=1.5,
                      label=_name(row, rows) if run is row.best else None)
            axes.fill_between(tokens, [v - e for v, e in zip(values, errors)], [v + e for v, e in zip(values, errors)],
                              color=colour, alpha=0.15, linewidth=0)
    if corpus.get("log_vocabulary") is not None:
        # An untrained model may start far above the uniform guess, and would flatten everything of interest.
        axes.set_ylim(top=min(axes.get_ylim()[1], 1.05 * corpus["log_vocabulary"]))
    _references(axes, corpus, axes.axhline)
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.set(title="Learning curves", xlabel="tokens seen in training", ylabel=BOUND)
    axes.legend(frameon=False)


def bounds(axes: Axes, rows: list[Row], corpus: dict[str, Any]) -> None:
    """The final bound of each arm; the bar is two standard errors, over seeds if there are several, else sequences."""
    over_seeds = any(row.seeds_error is not None for row in rows)
    for place, (row, colour, marker) in enumerate(_styled(rows)):
        value, error = row.metrics[NLL], _error(row)
        axes.errorbar(value, place, xerr=2 * error, color=colour, marker=marker, capsize=4, markersize=7)
        axes.annotate(f"{value:.3f}", (value, place), xytext=(0, 9), textcoords="offset points", ha="center",
                      fontsize=9)
    axes.set_yticks(range(len(rows)), [_name(row, rows) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.7)
    _references(axes, corpus, axes.axvline)
    if corpus.get("unigram_entropy") is not None:
        axes.legend(frameon=False, loc="upper center")
    axes.grid(axis="x", alpha=0.3)
    axes.set(title=f"Final bound ± 2 standard errors over {'seeds' if over_seeds else 'sequences'}", xlabel=BOUND)


def bound_against_speed(axes: Axes, rows: list[Row], corpus: dict[str, Any]) -> None:
    """The final bound against training throughput: better is down and to the right."""
    for row, colour, marker in _styled(rows):
        if row.speed is None:
            continue
        axes.errorbar(row.speed, row.metrics[NLL], yerr=2 * _error(row), color=colour, marker=marker,
                      capsize=3, markersize=8, linestyle="none", label=_name(row, rows))
    _references(axes, corpus, axes.axhline)
    axes.set_xlim(0, 1.1 * max(row.speed or 0 for row in rows) or 1)
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.grid(alpha=0.3)
    axes.set(title="Bound ± 2 standard errors against training speed (better: down and right)",
             xlabel="training throughput (tokens/s)", ylabel=BOUND)
    axes.legend(frameon=False)


def _name(row: Row, rows: list[Row]) -> str:
    """The arm and, where numbers of different kinds stand side by side, of what kind its own is."""
    return row.cell if len({other.kind for other in rows}) == 1 else f"{row.cell} ({row.kind})"


def _styled(rows: list[Row]) -> list[tuple[Row, str, str]]:
    """Each arm with its colour and marker, the same in every plot: given by name, not by rank."""
    names = sorted(row.cell for row in rows)
    place = {name: index for index, name in enumerate(names)}
    return [(row, COLOURS[place[row.cell] % len(COLOURS)], MARKERS[place[row.cell] % len(MARKERS)]) for row in rows]


def _error(row: Row) -> float:
    return row.seeds_error if row.seeds_error is not None else row.sequences_error or 0.0


def _references(axes: Axes, corpus: dict[str, Any], line: Callable[..., Any]) -> None:
    """The unigram entropy, which a model must beat to have learned anything about order; the floor, where known."""
    if corpus.get(ENTROPY_RATE) is not None:
        line(corpus[ENTROPY_RATE], color="black", linewidth=1, label=f"entropy rate {corpus[ENTROPY_RATE]:.3f}")
    if corpus.get("unigram_entropy") is not None:
        line(corpus["unigram_entropy"], color="grey", linestyle="--", linewidth=1,
             label=f"unigram entropy {corpus['unigram_entropy']:.3f}")
