"""Plots for the Optuna dashboard, which has one point per trial: means over seeds with their 95 % intervals,
paired differences to the baseline, main effects. The numbers are those of the report.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sweeps.analysis import effects
from sweeps.analysis.comparison import Comparison, Row
from sweeps.definition.study import StudyConfig

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

LINE, CARD = 32, 420  # pixels: of height for each row; of the place that the dashboard keeps for a plot


def make(config: StudyConfig, comparisons: Sequence[Comparison]) -> dict[str, "Figure"]:
    """{id: figure}; a figure without data is left out."""
    found: dict[str, Figure] = {}
    for table in comparisons:
        suffix = f"-{table.corpus['hash'][:8]}" if len(comparisons) > 1 else ""
        found |= {f"means-over-seeds{suffix}": _means(config, table)} if table.rows else {}
        if any(row.against for row in table.rows):
            found[f"differences-to-the-baseline{suffix}"] = _differences(config, table)
        for index, group in enumerate(effects.of_design(config, table)):
            found |= {f"main-effect-{_identifier(effect.factor)}-{index}{suffix}": _effect(config, effect, group)
                      for effect in group.main}
    return found


def _means(config: StudyConfig, table: Comparison) -> "Figure":
    """Each arm's mean with its interval, and its seeds as dots."""
    from plotly.graph_objects import Scatter

    rows = [row for row in reversed(table.rows) if row.value]
    names = [_name(row, table) for row in rows]
    halves = [row.value.half_width for row in rows]
    seeds = [(name, value, seed) for name, row in zip(names, rows) for seed, value in
             row.by_seed(config.objective).items()]
    dots = Scatter(x=[value for _, value, _ in seeds], y=[name for name, _, _ in seeds], mode="markers", opacity=0.5,
                   text=[f"seed {seed}" for *_, seed in seeds], name="seeds", marker={"size": 6})
    means = Scatter(x=[row.value.mean for row in rows], y=names, mode="markers", name="mean", marker={"size": 10},
                    error_x=_bars(halves), text=[f"n = {row.value.n}" for row in rows])
    return _figure([dots, means], f"{config.objective}: mean over seeds, 95 % interval", config.objective, len(rows))


def _differences(config: StudyConfig, table: Comparison) -> "Figure":
    """Each arm's paired difference to the baseline; the interval that does not touch zero stands out."""
    from plotly.graph_objects import Scatter

    rows = [row for row in reversed(table.rows) if row.against]
    points = Scatter(x=[row.against.mean for row in rows], y=[_name(row, table) for row in rows], mode="markers",
                     marker={"size": 10}, error_x=_bars([row.against.half_width for row in rows]),
                     text=[f"{row.against.n} pairs of {row.against.over}" for row in rows])
    figure = _figure([points], f"{config.objective} minus {config.baseline}, paired, 95 % interval",
                     f"difference in {config.objective}", len(rows))
    figure.add_vline(x=0, line_dash="dash", line_color="grey")
    return figure


def _effect(config: StudyConfig, effect: effects.Effect, group: effects.Effects) -> "Figure":
    """The mean at each level of one factor."""
    from plotly.graph_objects import Scatter

    levels = list(reversed(effect.levels))
    points = Scatter(x=[level.mean for level in levels], y=[str(level.value) for level in levels], mode="lines+markers",
                     marker={"size": 10}, error_x=_bars([level.half_width for level in levels]),
                     text=[f"{level.trials} trials" for level in levels])
    kind = f" ({group.kind})" if str(group.kind) else ""
    title = f"main effect of {effect.factor}: {effect.share:.0%} of the variation{kind}"
    return _figure([points], title, config.objective, len(levels))


def _figure(traces: list, title: str, axis: str, rows: int) -> "Figure":
    from plotly.graph_objects import Figure, layout

    # Plotly's own template is 7 kB in every figure, and every figure is lines in the journal.
    return Figure(traces, layout={"template": layout.Template(), "title": {"text": title, "font": {"size": 15}},
                                  "showlegend": len(traces) > 1, "height": max(CARD, 220 + LINE * rows),
                                  "xaxis": {"title": {"text": axis}, "zeroline": False},
                                  "yaxis": {"automargin": True, "type": "category"}})


def _bars(halves: list[float | None]) -> dict | None:
    return {"type": "data", "array": halves} if any(halves) else None


def _name(row: Row, table: Comparison) -> str:
    return row.cell if len(table.kinds) == 1 else f"{row.cell} ({row.kind})"


def _identifier(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)
