"""Plots of a comparison: how the arms learn, where they end, what speed and hours it costs. All numbers an arm has in
one plot (its place in the table, its colour) are the same in the others.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator

from diffusion_lm.evaluation.floor import ENTROPY_RATE
from diffusion_lm.numbers import fixed
from sweeps.analysis import pareto
from sweeps.analysis.comparison import Comparison, Row
from sweeps.analysis.drawing import COLOURS, GREY, INK, LINES, PALE, ROW, Picture, apart, canvas, styled
from sweeps.analysis.statistics import SEEDS, Estimate, quantile
from sweeps.definition.study import StudyConfig
from sweeps.records.trial_files import NLL, NLL_ERROR, SPEED

CAUTION = ("Upper bounds where not marked exact; bounds of different kinds (process, continuous time or T steps) have "
           "different slack: no kind is ranked against another.")
BOUND = "validation bound (nats/token, lower is better)"
LABELS = {NLL: BOUND, SPEED: "training throughput (tokens/s, higher is better)"}
SHORT = {NLL: "Bound", SPEED: "training speed"}
WILD = 4
"""Standard errors in half an interval from which on it would squeeze everything else in a plot: of two or three seeds.
"""
BEGUN = 0.15
"""The share of training after which learning curves have to be seen in full."""
KEY_ROW = 0.165
"""Inches of a line of text beside a plot."""
MOST_BANDS = 12
"""Arms in a plot of learning curves that still has bands; more would hide each other."""


@dataclass(frozen=True, slots=True)
class Arm:
    """A row with its place in the table and its looks."""

    row: Row
    place: int
    colour: str
    line: str
    kind: str
    """Of its numbers; empty where all arms are of one kind."""


def pictures(config: StudyConfig, comparison: Comparison, suffix: str = "") -> list[Picture]:
    """Every plot of `comparison` that has data; `suffix` tells the files of several corpora apart."""
    arms = _arms(comparison)
    with styled():
        drawn = [draw(config, comparison, arms, suffix)
                 for draw in (bounds, differences, learning_curves, bound_against_speed, cost)]
    return [picture for picture in drawn if picture is not None]


def _arms(comparison: Comparison) -> list[Arm]:
    """Colours go by name, not by rank, so that an arm keeps its own while others finish."""
    names = sorted({row.cell for row in comparison.rows})
    kinds = comparison.kinds
    return [Arm(row, place + 1, COLOURS[(index := names.index(row.cell)) % len(COLOURS)],
                LINES[index // len(COLOURS) % len(LINES)],
                "" if len(kinds) == 1 else row.kind.over if row.kind.exact else str(row.kind))
            for place, row in enumerate(comparison.rows)]


def _lines(arms: Sequence[Arm]) -> list[tuple[Arm | None, str]]:
    """What stands one under the other beside a plot: the arms, and over those of each kind its name."""
    lines: list[tuple[Arm | None, str]] = []
    for kind, group in groupby(arms, key=lambda arm: arm.kind):
        lines += [(None, kind)] if kind else []
        lines += [(arm, arm.row.cell) for arm in group]
    return lines


def bounds(config: StudyConfig, comparison: Comparison, arms: list[Arm], suffix: str) -> Picture | None:
    """The final bound of each arm with its seeds and interval."""
    shown = [arm for arm in arms if arm.row.metrics[NLL] is not None]
    if not shown:
        return None

    def points(arm: Arm) -> tuple[list[float], Estimate]:
        values = [run.last[NLL] for run in arm.row.runs if run.last.get(NLL) is not None]
        found = arm.row.value if config.objective == NLL and arm.row.value and arm.row.value.n > 1 else None
        return values, found or Estimate(arm.row.metrics[NLL], arm.row.sequences_error, 10**9, "sequences")

    picture = _forest(shown, points, "Final bound of each arm", BOUND, f"bounds{suffix}", CAUTION)
    _references(picture.figure.axes[0], comparison.corpus)
    return picture


def differences(config: StudyConfig, comparison: Comparison, arms: list[Arm], suffix: str) -> Picture | None:
    """Each arm's paired difference to the baseline."""
    shown = [arm for arm in arms if arm.row.against is not None]
    if not shown:
        return None

    def points(arm: Arm) -> tuple[list[float], Estimate]:
        against = arm.row.against
        return [against.mean], against

    label = f"difference in {config.objective} to {config.baseline}, paired"
    title = f"Differences to {config.baseline}"
    picture = _forest(shown, points, title, label, f"differences{suffix}", "Only inside a kind of number.")
    picture.figure.axes[0].axvline(0, color=INK, linewidth=1)
    return picture


def _forest(arms: list[Arm], points: Callable[[Arm], tuple[list[float], Estimate]], title: str, label: str, name: str,
            caption: str) -> Picture:
    """One line per arm: values, mean and 95 % interval. The frame fits the values; what is wider is cut."""
    lines = _lines(arms)
    figure, (axes,) = canvas(1.4 + ROW * len(lines))
    extent: list[float] = []
    for place, arm in ((place, arm) for place, (arm, _) in enumerate(lines) if arm is not None):
        values, found = points(arm)
        extent += [*values, *_interval(axes, place, arm, found)]
        if len(values) > 1:
            axes.plot(values, [place] * len(values), "|", color=arm.colour, markersize=9)
        axes.plot(found.mean, place, "o", color=arm.colour, markersize=6)
        axes.annotate(fixed(found.mean, 3, "+" if "difference" in label else ""), (1, place), (6, 0), fontsize=8,
                      xycoords=axes.get_yaxis_transform(), textcoords="offset points", va="center")
    low, high = min(extent), max(extent)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
    axes.set_xlim(low - margin, high + margin)
    axes.xaxis.set_major_locator(MaxNLocator(7))
    _rows(axes, lines)
    axes.set(title=title, xlabel=label)
    return Picture(name, figure, "Dot: mean; strokes: seeds; solid line: 95 % interval over seeds (Student's t; thin, "
                   "and cut at the frame, where few seeds make it wide); dashed: over validation sequences, one seed. "
                   f"{caption}")


def _interval(axes: Axes, place: int, arm: Arm, found: Estimate) -> list[float]:
    """Draw the interval of `found`. Returns what of it the frame has to show."""
    if found.interval is None:
        return []
    wild = found.over == SEEDS and quantile(found.n - 1) > WILD
    axes.plot(found.interval, [place, place], color=arm.colour, linewidth=0.8 if wild else 1.8,
              alpha=0.6 if wild else 0.9, linestyle="-" if found.over == SEEDS else (0, (2, 1)))
    return [] if wild else [*found.interval]


def _rows(axes: Axes, lines: Sequence[tuple[Arm | None, str]]) -> None:
    """A line of the plot per arm, the first on top; kinds as headings."""
    labels = axes.set_yticks(range(len(lines)), [f"{name}  {arm.place}" if arm else name for arm, name in lines],
                             fontsize=8)
    for tick, (arm, _) in zip(labels, lines):
        if arm is None:
            tick.label1.set(color=GREY, style="italic")
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")


def learning_curves(config: StudyConfig, comparison: Comparison, arms: list[Arm], suffix: str) -> Picture | None:
    """The bound against the tokens seen: the mean over the seeds of an arm, and their range."""
    curves = [(arm, curve) for arm in arms if len(curve := _curve(arm.row)) > 1]
    if not curves:
        return None
    figure, (axes,) = canvas(_height(arm for arm, _ in curves))
    for arm, curve in curves:
        tokens, means, low, high = zip(*curve)
        axes.plot(tokens, means, color=arm.colour, linestyle=arm.line, linewidth=1.6)
        if len(curves) <= MOST_BANDS:
            axes.fill_between(tokens, low, high, color=arm.colour, alpha=0.15, linewidth=0)
    # The first steps fall from far above, and would flatten everything of interest.
    begun = BEGUN * max(curve[-1][0] for _, curve in curves)
    late = [value for _, curve in curves for tokens, _, *band in curve for value in band if tokens > begun]
    axes.set_ylim(min(late) - 0.05 * (spread := max(late) - min(late)), max(late) + 0.1 * spread)
    _references(axes, comparison.corpus, horizontal=True)
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.set(title="Learning curves", xlabel="tokens seen in training", ylabel=BOUND)
    axes.grid(axis="y")
    axes.set_xlim(right=max(curve[-1][0] for _, curve in curves))
    _numbers_beside(axes, [(arm, curve[-1][0], curve[-1][1]) for arm, curve in curves])
    _key(axes, [arm for arm, _ in curves], 1.07)
    bands = "; band: their range (one seed: one standard error over sequences)" if len(curves) <= MOST_BANDS else ""
    return Picture(f"learning_curves{suffix}", figure, f"Mean over the seeds of an arm{bands}. The frame fits what "
                   f"comes after the first {BEGUN:.0%} of the tokens. {CAUTION}")


def _curve(row: Row) -> list[tuple[float, float, float, float]]:
    """Tokens, mean, low, high wherever all runs of the row report."""
    found: dict[float, list[tuple[float, float]]] = {}
    for run in row.runs:
        for line in run.reports:
            if line.get(NLL) is not None and line.get("tokens") is not None:
                found.setdefault(line["tokens"], []).append((line[NLL], line.get(NLL_ERROR) or 0.0))
    curve = []
    for tokens, values in sorted(found.items()):
        if len(values) == len(row.runs):
            middle = sum(value for value, _ in values) / len(values)
            spread = ([value for value, _ in values] if len(values) > 1
                      else [middle - values[0][1], middle + values[0][1]])
            curve.append((tokens, middle, min(spread), max(spread)))
    return curve


def _numbers_beside(axes: Axes, ends: list[tuple[Arm, float, float]]) -> None:
    """Each line's number at the right of the frame, moved apart, with a thread to the line's end."""
    low, high = axes.get_ylim()
    height = axes.figure.get_figheight() - 1.1
    wanted = [min(max((y - low) / (high - low), 0), 1) for _, _, y in ends]
    for (arm, x, y), place in zip(ends, apart(wanted, 0.14 / height)):
        axes.annotate(str(arm.place), (x, min(max(y, low), high)), (1.035, place), textcoords="axes fraction",
                      fontsize=8, va="center", ha="center", color=arm.colour, annotation_clip=False,
                      arrowprops={"arrowstyle": "-", "color": arm.colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 0})


def bound_against_speed(config: StudyConfig, comparison: Comparison, arms: list[Arm], suffix: str) -> Picture | None:
    """The two metrics of the Pareto front against each other; arms of the front are filled."""
    metrics = pareto.pair(config)
    vertical, horizontal = metrics
    places = pareto.front([arm.row for arm in arms], metrics)
    shown = [(arm, place) for arm, place in zip(arms, places) if place]
    if len(shown) < 2:
        return None
    figure, (axes,) = canvas(_height(arm for arm, _ in shown))
    for arm, place in shown:
        x, y = pareto.mean(arm.row, horizontal), pareto.mean(arm.row, vertical)
        _numbered(axes, x, y, arm, place)
        if (half := _half_width(arm.row, vertical)) is not None:
            axes.plot([x, x], [y - half, y + half], color=arm.colour, linewidth=1, alpha=0.5)
    _stairs(axes, shown, metrics)
    _key(axes, [arm for arm, _ in shown], 1.02, {arm.place for arm, place in shown if place == pareto.FRONT})
    axes.margins(0.08)
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.grid()
    axes.set(title=f"{SHORT.get(vertical, vertical)} against {SHORT.get(horizontal, horizontal)}",
             xlabel=LABELS.get(horizontal, horizontal), ylabel=LABELS.get(vertical, vertical))
    return Picture(f"bound_against_speed{suffix}", figure,
                   f"Filled: {pareto.FRONT}; half-filled: {pareto.CLOSE}; empty: {pareto.DOMINATED}. {pareto.MEANING} "
                   f"Stroke: 95 % interval over sequences or, from five seeds on, over seeds. {CAUTION}")


def _half_width(row: Row, metric: str) -> float | None:
    if metric == SPEED:
        return None
    if metric != NLL or (row.value and row.value.n >= 5):
        return row.value.half_width if row.value else None
    return None if row.sequences_error is None else quantile(10**9) * row.sequences_error


def _numbered(axes: Axes, x: float, y: float, arm: Arm, place: str) -> None:
    """A disc with the arm's number: full, half or empty."""
    alpha = {pareto.FRONT: 1.0, pareto.CLOSE: 0.45, pareto.DOMINATED: 0.0}[place]
    axes.plot(x, y, "o", markersize=14, color=arm.colour, alpha=alpha)
    axes.plot(x, y, "o", markersize=14, markerfacecolor="none", markeredgecolor=arm.colour)
    axes.annotate(str(arm.place), (x, y), ha="center", va="center", fontsize=7.5,
                  color=INK if place != pareto.FRONT else "#101010" if arm.colour in PALE else "#ffffff",
                  fontweight="bold" if place == pareto.FRONT else "normal")


def _height(arms: Iterable[Arm]) -> float:
    """Inches of a plot beside which the names of `arms` have room."""
    return max(4.2, 1.2 + KEY_ROW * len(_lines(list(arms))))


def _key(axes: Axes, arms: Sequence[Arm], left: float, bold: Collection[int] = ()) -> None:
    """Numbers and names beside the plot, as in the table."""
    height = axes.figure.get_figheight() - 1.1
    for line, (arm, name) in enumerate(_lines(arms)):
        axes.annotate(f"{arm.place}  {name}" if arm else name, (left, 1 - (line + 0.5) * KEY_ROW / height), fontsize=8,
                      xycoords="axes fraction", va="center", color=arm.colour if arm else GREY, annotation_clip=False,
                      style="normal" if arm else "italic",
                      fontweight="bold" if arm and arm.place in bold else "normal")


def _stairs(axes: Axes, shown: list[tuple[Arm, str]], metrics: dict[str, str]) -> None:
    """The edge of what each kind's front reaches."""
    vertical, horizontal = metrics
    for kind in dict.fromkeys(arm.row.kind for arm, _ in shown):
        points = sorted((pareto.mean(arm.row, horizontal), pareto.mean(arm.row, vertical)) for arm, place in shown
                        if arm.row.kind == kind and place == pareto.FRONT)
        if len(points) > 1:
            where = "pre" if metrics[horizontal] == "maximize" else "post"
            axes.step(*zip(*points), where=where, color=GREY, linewidth=1.2, linestyle=(0, (4, 2)), zorder=0)


def cost(config: StudyConfig, comparison: Comparison, arms: list[Arm], suffix: str) -> Picture | None:
    """Device hours of each arm, all its finished runs together."""
    hours = [sum(run.device_hours or 0 for run in arm.row.runs) for arm in arms]
    if not any(hours):
        return None
    unit, times = ("hours", 1) if max(hours) >= 1 else ("minutes", 60)
    lines = _lines(arms)
    figure, (axes,) = canvas(1.2 + ROW * len(lines))
    for place, arm in ((place, arm) for place, (arm, _) in enumerate(lines) if arm is not None):
        value = times * hours[arm.place - 1]
        axes.barh(place, value, color=arm.colour, height=0.6)
        axes.annotate(f"{value:.3g}", (value, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.margins(x=0.1)
    _rows(axes, lines)
    device = "GPU" if any(run.on_gpu for arm in arms for run in arm.row.runs) else "CPU process"
    axes.set(title="Cost of training", xlabel=f"{device} {unit}, all runs of the row")
    return Picture(f"cost{suffix}", figure, "Training and validation of the runs in the table, without failed trials.")


def _references(axes: Axes, corpus: dict[str, Any], horizontal: bool = False) -> None:
    """The unigram entropy, which a model must beat to have learned anything about order; the floor, where known. Left
    out where they are far from all numbers."""
    low, high = sorted(axes.get_ylim() if horizontal else axes.get_xlim())
    reach = 0.4 * (high - low)
    for key, name, style in ((ENTROPY_RATE, "entropy rate", "-"), ("unigram_entropy", "unigram entropy", "--")):
        value = corpus.get(key)
        if value is None or not low - reach <= value <= high + reach:
            continue
        (axes.axhline if horizontal else axes.axvline)(value, color=GREY, linestyle=style, linewidth=1)
        place = {"xy": (1, value), "xycoords": axes.get_yaxis_transform(), "xytext": (-4, 3), "ha": "right"
                 } if horizontal else {
            "xy": (value, 1), "xycoords": axes.get_xaxis_transform(), "xytext": (3, -2), "va": "top"}
        axes.annotate(f"{name} {value:.3f}", textcoords="offset points", fontsize=7.5, color=GREY, **place)
        low, high = min(low, value - 0.02 * (high - low)), max(high, value + 0.02 * (high - low))
        (axes.set_ylim if horizontal else axes.set_xlim)(low, high)
