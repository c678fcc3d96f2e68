"""Plots of a design's factors and of a search's dimensions."""

from collections.abc import Sequence
from typing import Any

from matplotlib.ticker import MaxNLocator

from diffusion_lm.numbers import fixed
from sweeps.analysis.drawing import COLOURS, GREY, ROW, Picture, canvas, styled
from sweeps.analysis.effects import Effects, Interaction
from sweeps.analysis.search import Search
from sweeps.definition.study import StudyConfig

MOST_COLUMNS, MOST_HEAT_MAPS = 4, 3


def pictures(config: StudyConfig, effects: Sequence[Effects], searches: Sequence[Search],
             suffix: str = "") -> list[Picture]:
    """Main effects and interactions of each kind; importances and the best so far of each search."""
    with styled():
        return [*_of_designs(config, effects, suffix), *_of_searches(config, searches, suffix)]


def _of_designs(config: StudyConfig, effects: Sequence[Effects], suffix: str) -> list[Picture]:
    drawn = []
    for place, found in enumerate(effects):
        end = f"{suffix}-{place}" if len(effects) > 1 else suffix
        drawn += [main_effects(config, found, f"main_effects{end}")] if found.main else []
        drawn += [interactions(config, found, f"interactions{end}")] if found.interactions else []
    return drawn


def _of_searches(config: StudyConfig, searches: Sequence[Search], suffix: str) -> list[Picture]:
    drawn = []
    for place, search in enumerate(searches):
        end = f"{suffix}-{place}" if len(searches) > 1 else suffix
        drawn += [best_so_far(config, search, f"best_so_far{end}")] if len(search.values) > 1 else []
        drawn += [importance(config, search, f"importance{end}")] if search.importances else []
    return drawn


def main_effects(config: StudyConfig, found: Effects, name: str) -> Picture:
    """A panel per factor: the mean at each level with its interval."""
    columns = min(MOST_COLUMNS, len(found.main))
    rows = -(-len(found.main) // columns)
    figure, axes = canvas(0.5 + 2.9 * rows, columns, rows, sharey=True, width=min(9, 2.2 + 2.3 * columns))
    for panel, effect in zip(axes, found.main):
        places = range(len(effect.levels))
        panel.plot(places, [level.mean for level in effect.levels], color=COLOURS[0], linewidth=1.2, marker="o")
        for place, level in zip(places, effect.levels):
            if level.half_width is not None:
                panel.errorbar(place, level.mean, yerr=level.half_width, color=COLOURS[0], capsize=3)
        panel.axhline(_middle(effect.levels), color=GREY, linewidth=0.8, linestyle="--")
        labels = [_level(level.value) for level in effect.levels]
        tilt = sum(map(len, labels)) > 22
        panel.set_xticks(list(places), labels, rotation=35 if tilt else 0, ha="right" if tilt else "center", fontsize=8)
        panel.margins(x=0.2)
        panel.set_title(f"{effect.factor.rpartition('.')[2]}  ({effect.share:.1%})", fontsize=10, fontweight="normal")
        panel.grid(axis="y")
    for panel in axes[len(found.main):]:
        panel.set_visible(False)
    for panel in axes[::columns]:
        panel.set_ylabel(config.objective)
    figure.suptitle(f"Main effects ({found.kind})", fontsize=11, fontweight="bold", x=0.01, ha="left")
    error = f"95 % interval; error from {found.error}" if found.error else "no replicates and nothing left: no interval"
    return Picture(name, figure, "Mean of the objective at each level, the other factors averaged over; "
                   f"{error}. In brackets: share of the sum of squares.")


def _middle(levels: Sequence[Any]) -> float:
    return sum(level.mean for level in levels) / len(levels)


def _level(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def interactions(config: StudyConfig, found: Effects, name: str) -> Picture:
    """Heat maps of the pairs of factors whose interaction explains most."""
    shown = found.interactions[:MOST_HEAT_MAPS]
    height = max(1.6 + 0.42 * max(len(pair.levels[0]) for pair in shown), 2.6)
    figure, axes = canvas(height, len(shown), width=min(12, 1.5 + sum(2.2 + 0.4 * len(p.levels[1]) for p in shown)))
    for panel, pair in zip(axes, shown):
        _heat_map(panel, pair, config)
    figure.suptitle(f"Two factors together ({found.kind})", fontsize=11, fontweight="bold", x=0.01, ha="left")
    return Picture(name, figure, f"Mean of {config.objective} at each pair of levels; darker is better. In brackets: "
                   "share of the sum of squares that both explain together beyond what each does alone.")


def _heat_map(panel: Any, pair: Interaction, config: StudyConfig) -> None:
    import numpy as np

    values = np.array([[np.nan if value is None else value for value in line] for line in pair.means], dtype=float)
    darker_is_less = config.metrics[config.objective] == "minimize"
    low, high = np.nanmin(values), np.nanmax(values)
    panel.imshow(values, cmap="cividis" if darker_is_less else "cividis_r", aspect="auto", vmin=low, vmax=high)
    for (line, column), value in np.ndenumerate(values):
        depth = (value - low) / (high - low) if high > low else 0.0
        dark = depth < 0.55 if darker_is_less else depth > 0.45
        panel.annotate("–" if np.isnan(value) else fixed(value, 3), (column, line), ha="center", va="center",
                       fontsize=8, color="#ffffff" if dark else "#000000")
    panel.set_xticks(range(len(pair.levels[1])), [_level(level) for level in pair.levels[1]], fontsize=8,
                     rotation=35 if sum(len(_level(level)) for level in pair.levels[1]) > 24 else 0)
    panel.set_yticks(range(len(pair.levels[0])), [_level(level) for level in pair.levels[0]], fontsize=8)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    panel.set(xlabel=pair.factors[1].rpartition(".")[2], ylabel=pair.factors[0].rpartition(".")[2])
    names = " x ".join(name.rpartition(".")[2] for name in pair.factors)
    panel.set_title(f"{names}  ({pair.share:.1%})", fontsize=10, fontweight="normal")


def importance(config: StudyConfig, found: Search, name: str) -> Picture:
    """What sets the good trials apart."""
    figure, (axes,) = canvas(1.3 + 1.3 * ROW * len(found.importances), width=7.5)
    values = list(found.importances.values())
    axes.barh(range(len(values)), values, color=COLOURS[0], height=0.6)
    for place, value in enumerate(values):
        axes.annotate(f"{value:.2f}", (value, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(values)), list(found.importances), fontsize=8)
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.set(title=f"Importance ({found.kind})", xlabel="share of what sets the best quarter apart")
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.1)
    return Picture(name, figure, f"PED-ANOVA over {len(found.values)} finished trials; a parameter that only "
                   "some trials have is judged among those.")


def best_so_far(config: StudyConfig, found: Search, name: str) -> Picture:
    """Each trial's objective and the best up to it."""
    figure, (axes,) = canvas(3.6, width=7.5)
    axes.plot(found.numbers, found.values, "o", color=GREY, markersize=4, label="trial")
    axes.step(found.numbers, found.best, where="post", color=COLOURS[1], linewidth=1.8, label="best so far")
    low, high = sorted((found.best[0], found.best[-1]))
    spread = sorted(found.values)
    # A few diverged trials would flatten the rest.
    quarter = len(spread) // 4
    reach = 3 * (spread[-1 - quarter] - spread[quarter])
    if reach:
        axes.set_ylim(max(spread[0], low - reach) - 0.05 * reach, min(spread[-1], high + reach) + 0.05 * reach)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(title=f"History of the search ({found.kind})", xlabel="trial", ylabel=config.objective)
    axes.grid(axis="y")
    axes.legend(frameon=False)
    return Picture(name, figure, "Trials far outside the frame are cut.")
