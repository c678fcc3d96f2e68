"""What all plots of studies share: colours, canvas, and how a figure becomes a file or a part of a page."""

import io
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffusion_lm.files import atomic_path

INK = "#1f2328"
"""Of text and lines. In a page it becomes the page's own colour of text, so that a plot can be read in the dark too."""
GREY = "#7d8590"
# Okabe and Ito's colours, which stay apart for colour-blind readers, without black and yellow: on a dark page, or on a
# white one, these two are not seen.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8c6d46", GREY)
PALE = ("#CC79A7", "#E69F00", "#56B4E9")
"""Of these, those that need dark letters on them."""
LINES = ("-", "--", ":", "-.")
WIDTH, ROW = 9.0, 0.24
"""Inches: of a plot, and of a row of text in it."""
STYLE = {"text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
         "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 11, "axes.titlelocation": "left",
         "axes.titleweight": "bold", "font.size": 9, "svg.fonttype": "none", "figure.dpi": 100, "axes.axisbelow": True,
         "grid.color": GREY, "grid.alpha": 0.3, "font.family": "sans-serif"}


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure with the stem of its file, and what stands under it."""

    name: str
    figure: Figure
    caption: str

    def write_png(self, folder: Path) -> Path:
        """``NAME.png`` in `folder`."""
        path = folder / f"{self.name}.png"
        with atomic_path(path) as temporary:
            self._save(temporary, format="png", dpi=150, facecolor="white")
        return path

    def svg(self) -> str:
        """For a page: the same text for the same figure, without a background, in the page's colour of text."""
        out = io.StringIO()
        with matplotlib.rc_context({"svg.hashsalt": self.name}):
            self._save(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        text = out.getvalue()
        text = text[text.index("<svg"):]
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        known = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
        text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in known else "", text)
        return text.replace(INK, "currentColor")

    def _save(self, place: Any, **keywords: Any) -> None:
        with styled():
            self.figure.savefig(place, **keywords)
        # What was laid out once stays so: the picture is the same in every file, and laying out is most of the work.
        self.figure.set_layout_engine("none")


def styled() -> AbstractContextManager[None]:
    """What figures are drawn in, so that every text and line has the common looks."""
    return matplotlib.rc_context(STYLE)


def canvas(height: float, columns: int = 1, rows: int = 1, width: float = WIDTH,
           **keywords: Any) -> tuple[Figure, list[Axes]]:
    """An empty figure of `width` x `height` inches and its axes, row by row."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **keywords).flat)


def apart(places: list[float], gap: float) -> list[float]:
    """`places` in [0, 1] moved until they are `gap` apart, in the same order, inside [0, 1] if there is room."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved, floor = list(places), 0.0
    for index in order:
        moved[index] = max(moved[index], floor)
        floor = moved[index] + gap
    ceiling = 1.0
    for index in reversed(order):
        moved[index] = min(moved[index], ceiling)
        ceiling = moved[index] - gap
    return moved
