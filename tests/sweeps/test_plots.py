"""Plots hold what they should, also with forty arms: nothing cut, nothing on top of another."""

import math
from itertools import pairwise

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from sweeps.analysis import comparison, drawing, plots

MASKED = {"process": "masked", "over": "continuous time", "depends_on": {}}
EXACT = {"process": "left_to_right", "over": "exact", "depends_on": {}}


@pytest.fixture
def pictures(write_study, trained, records_of):
    """The plots of a study of so many arms, two of them with bounds that are hard to tell apart."""

    def draw(arms):
        names = [f"an-arm-with-a-rather-long-name-{place}" for place in range(arms)]
        path = write_study(arms={name: {} for name in names}, baseline=names[0])
        folder = trained(path, lambda params, seed: {
            "val/nll": 2.0 + 0.01 * (names.index(params["arm"]) // 2), "speed": 1000.0 + names.index(params["arm"]),
            "result": {"kind": EXACT if params["arm"] == names[-1] else MASKED}})
        (table,) = comparison.compare(folder.config, records_of(path))
        return {picture.name: picture for picture in plots.pictures(folder.config, table)}

    return draw


@pytest.mark.slow
def test_forty_arms_are_readable(pictures, tmp_path):
    drawn = pictures(40)
    assert list(drawn) == ["bounds", "differences", "learning_curves", "bound_against_speed", "cost"]
    for picture in drawn.values():
        picture.write_png(tmp_path)
        figure = picture.figure
        # All that is drawn, with names beside the axes, in inches.
        box = figure.get_tightbbox(FigureCanvasAgg(figure).get_renderer())
        assert box.x0 > -0.02 and box.x1 < figure.get_figwidth() + 0.02, picture.name
        assert box.y0 > -0.02 and box.y1 < figure.get_figheight() + 0.02, picture.name
        names = [text.get_window_extent() for axes in figure.axes for text in [*axes.texts, *axes.get_yticklabels()]
                 if "long-name" in text.get_text()]
        names.sort(key=lambda name: name.y0)
        assert len(names) >= 38 and not any(lower.overlaps(upper) for lower, upper in pairwise(names)), picture.name


def test_a_figure_is_part_of_a_page(pictures):
    """No identifiers that two figures share, the page's own colour of text, nothing loaded, the same each time."""
    drawn = pictures(2)
    texts = {name: picture.svg() for name, picture in drawn.items()}
    for name, text in texts.items():
        assert text.startswith("<svg") and "currentColor" in text and drawing.INK not in text
        assert "<script" not in text and "<image" not in text
        assert drawn[name].svg() == text

    def identifiers(text):
        return {part.split('"')[0] for part in text.split(' id="')[1:]}

    assert not identifiers(texts["bounds"]) & identifiers(texts["learning_curves"])


def test_labels_move_apart():
    moved = drawing.apart([0.5, 0.5, 0.52, 0.0, 0.99, 1.0], 0.1)
    ordered = sorted(moved)
    assert all(high - low >= 0.1 - 1e-9 for low, high in pairwise(ordered))
    assert min(moved) >= 0 and max(moved) <= 1 and moved[3] == 0.0
    assert moved.index(max(moved)) == 5 and math.isclose(max(moved), 1.0)
    assert drawing.apart([0.2, 0.8], 0.1) == [0.2, 0.8], "what is apart stays"
