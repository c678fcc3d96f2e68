"""Plots of a comparison: how the arms learn, where they end, what speed and hours it costs. All numbers an arm has in
one plot (its place in the table, its colour) are the same in the others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator

from diffusion_lm.evaluation.floor import ENTROPY_RATE
from sweeps import pareto
from sweeps.comparison import Comparison, Row
from sweeps.drawing import COLOURS, GREY, INK, LINES, ROW, Picture, apart, canvas
from sweeps.statistics import SEEDS, Estimate, quantile
from sweeps.study import StudyConfig
from sweeps.trial_files import NLL, NLL_ERROR, SPEED

CAUTION = ("Upper bounds where not marked exact; bounds of different kinds (process, continuous time or T steps) have "
           "different slack: no kind is ranked against another.")
BOUND = "validation bound (nats/token, lower is better)"
LABELS = {NLL: BOUND, SPEED: "training throughput (tokens/s, higher is better)"}
MOST_BANDS = 12
"""Arms in a plot of learning curves that still has bands; more would hide each other."""


@dataclass(frozen=True, slots=True)
class Arm:
    """A row with its place in the table and its looks."""

    row: Row
    place: int
    colour: str
    line: str
    name: str


def pictures(config: StudyConfig, comparison: Comparison, suffix: str = "") -> list[Picture]:
    """Every plot of `comparison` that has data; `suffix` tells the files of several corpora apart."""
    arms = _arms(comparison)
    drawn = (draw(config, comparison, arms, suffix)
             for draw in (bounds, differences, learning_curves, bound_against_speed, cost))
    return [picture for picture in drawn if picture is not None]


def write(folder: Path, pictures: Sequence[Picture]) -> list[Path]:
    """The pictures as PNG files in `folder`."""
    return [picture.write_png(folder) for picture in pictures]


def _arms(comparison: Comparison) -> list[Arm]:
    """Colours go by name, not by rank, so that an arm keeps its own while others finish."""
    names = sorted({row.cell for row in comparison.rows})
    several = len(comparison.kinds) > 1
    return [Arm(row, place + 1, COLOURS[(index := names.index(row.cell)) % len(COLOURS)],
                LINES[index // len(COLOURS) % len(LINES)],
                f"{row.cell} ({row.kind})" if several and row.kind.over != "" else row.cell)
            for place, row in enumerate(comparison.rows)]


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
    figure, (axes,) = canvas(1.4 + ROW * len(arms))
    extent: list[float] = []
    for place, arm in enumerate(arms):
        values, found = points(arm)
        half = found.half_width
        seeds = found.over == SEEDS
        if half is not None:
            axes.plot([found.mean - half, found.mean + half], [place, place], color=arm.colour, linewidth=1.6,
                      alpha=0.8, linestyle="-" if seeds else (0, (2, 1)))
        if len(values) > 1:
            axes.plot(values, [place] * len(values), "|", color=arm.colour, markersize=9)
        axes.plot(found.mean, place, "o", color=arm.colour, markersize=6)
        axes.annotate(f"{found.mean:{'+' if 'difference' in label else ''}.3f}", (1, place), (6, 0), fontsize=8,
                      xycoords=axes.get_yaxis_transform(), textcoords="offset points", va="center")
        extent += [*values, *([found.mean - half, found.mean + half] if half is not None and not _wild(found) else [])]
    _fit(axes, extent)
    axes.set_yticks(range(len(arms)), [f"{arm.name}  {arm.place}" for arm in arms], fontsize=8)
    axes.set_ylim(len(arms) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.set(title=title, xlabel=label)
    return Picture(name, figure, "Dot: mean; strokes: seeds; solid line: 95 % interval over seeds (Student's t; cut at "
                   f"the frame where few seeds make it wide); dashed: over validation sequences, one seed. {caption}")


def _wild(found: Estimate) -> bool:
    """Whether an interval of very few seeds would squeeze everything else."""
    return found.over == SEEDS and quantile(found.n - 1) > 4


def _fit(axes: Axes, extent: list[float]) -> None:
    low, high = min(extent), max(extent)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
    axes.set_xlim(low - margin, high + margin)
    axes.xaxis.set_major_locator(MaxNLocator(7))


def learning_curves(config: StudyConfig, comparison: Comparison, arms: list[Arm], suffix: str) -> Picture | None:
    """The bound against the tokens seen: the mean over the seeds of an arm, and their range."""
    curves = [(arm, curve) for arm in arms if len(curve := _curve(arm.row)) > 1]
    if not curves:
        return None
    figure, (axes,) = canvas(max(4.2, 1.2 + 0.17 * len(curves)))
    for arm, curve in curves:
        tokens, means, low, high = zip(*curve)
        axes.plot(tokens, means, color=arm.colour, linestyle=arm.line, linewidth=1.6)
        if len(curves) <= MOST_BANDS:
            axes.fill_between(tokens, low, high, color=arm.colour, alpha=0.15, linewidth=0)
    if comparison.corpus.get("log_vocabulary") is not None:
        # An untrained model may start far above the uniform guess, and would flatten everything of interest.
        axes.set_ylim(top=min(axes.get_ylim()[1], 1.05 * comparison.corpus["log_vocabulary"]))
    _references(axes, comparison.corpus, horizontal=True)
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.set(title="Learning curves", xlabel="tokens seen in training", ylabel=BOUND)
    axes.grid(axis="y")
    axes.set_xlim(right=max(curve[-1][0] for _, curve in curves))
    _names_beside(axes, [(arm, curve[-1][0], curve[-1][1]) for arm, curve in curves])
    bands = "; band: their range (one seed: one standard error over sequences)" if len(curves) <= MOST_BANDS else ""
    return Picture(f"learning_curves{suffix}", figure, f"Mean over the seeds of an arm{bands}. {CAUTION}")


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


def _names_beside(axes: Axes, ends: list[tuple[Arm, float, float]]) -> None:
    """Each line's name at the right of the frame, moved apart, with a thread to the line's end."""
    low, high = axes.get_ylim()
    height = axes.figure.get_figheight() - 1.1
    wanted = [min(max((y - low) / (high - low), 0), 1) for _, _, y in ends]
    for (arm, x, y), place in zip(ends, apart(wanted, 0.155 / height)):
        axes.annotate(f"{arm.place}  {arm.name}", (x, min(max(y, low), high)), (1.04, place), fontsize=8,
                      textcoords="axes fraction", va="center", color=arm.colour, annotation_clip=False,
                      arrowprops={"arrowstyle": "-", "color": arm.colour, "linewidth": 0.6, "alpha": 0.7})


def bound_against_speed(config: StudyConfig, comparison: Comparison, arms: list[Arm], suffix: str) -> Picture | None:
    """The two metrics of the Pareto front against each other; arms of the front are filled."""
    metrics = pareto.pair(config)
    vertical, horizontal = metrics
    places = pareto.front([arm.row for arm in arms], metrics)
    shown = [(arm, place) for arm, place in zip(arms, places) if place]
    if len(shown) < 2:
        return None
    figure, (axes,) = canvas(max(4.2, 1.2 + 0.17 * len(shown)))
    for arm, place in shown:
        x, y = pareto.mean(arm.row, horizontal), pareto.mean(arm.row, vertical)
        _numbered(axes, x, y, arm, place)
        if (half := _half_width(arm.row, vertical)) is not None:
            axes.plot([x, x], [y - half, y + half], color=arm.colour, linewidth=1, alpha=0.5)
    _stairs(axes, shown, metrics)
    _key(axes, shown)
    axes.margins(0.08)
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.grid()
    axes.set(title=f"{vertical} against {horizontal}", xlabel=LABELS.get(horizontal, horizontal),
             ylabel=LABELS.get(vertical, vertical))
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
                  color="white" if place == pareto.FRONT and arm.colour != INK else INK,
                  fontweight="bold" if place == pareto.FRONT else "normal")


def _key(axes: Axes, shown: list[tuple[Arm, str]]) -> None:
    height = axes.figure.get_figheight() - 1.1
    for line, (arm, place) in enumerate(shown):
        axes.annotate(f"{arm.place}  {arm.name}", (1.02, 1 - (line + 0.5) * 0.165 / height), fontsize=8, va="center",
                      xycoords="axes fraction", color=arm.colour, annotation_clip=False,
                      fontweight="bold" if place == pareto.FRONT else "normal")


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
    figure, (axes,) = canvas(1.2 + ROW * len(arms))
    axes.barh(range(len(arms)), [times * value for value in hours], color=[arm.colour for arm in arms], height=0.6)
    for place, value in enumerate(hours):
        axes.annotate(f"{times * value:.3g}", (times * value, place), (4, 0), textcoords="offset points", va="center",
                      fontsize=8)
    axes.set_yticks(range(len(arms)), [f"{arm.name}  {arm.place}" for arm in arms], fontsize=8)
    axes.set_ylim(len(arms) - 0.4, -0.6)
    axes.margins(x=0.1)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
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
        place = {"xy": (0, value), "xycoords": axes.get_yaxis_transform(), "xytext": (4, 3)} if horizontal else {
            "xy": (value, 1), "xycoords": axes.get_xaxis_transform(), "xytext": (3, -2), "va": "top"}
        axes.annotate(f"{name} {value:.3f}", textcoords="offset points", fontsize=7.5, color=GREY, **place)
        low, high = min(low, value - 0.02 * (high - low)), max(high, value + 0.02 * (high - low))
        (axes.set_ylim if horizontal else axes.set_xlim)(low, high)
