"""Means, standard errors, differences and curves of numbers that were written down by hand."""

import csv
import io
import math
from types import SimpleNamespace

import pytest
import torch

from diffusion_lm.config import config_class
from diffusion_lm.evaluation.levels import LevelCurve, curves_csv
from diffusion_lm.evaluation.likelihood import Estimate, Scores, difference, metrics
from diffusion_lm.evaluation.load import LoadedRun
from diffusion_lm.lightning_module import bound_metrics


def numbers(*values):
    """A float64 tensor."""
    return torch.tensor(values, dtype=torch.float64)


def scores(nll, level=0.5):
    """Scores whose bound is `nll`."""
    rows = numbers(*nll)
    levels = torch.full((len(nll), 1), level, dtype=torch.float64)
    return Scores(rows, torch.full_like(rows, 8.0), {}, {}, levels, rows.unsqueeze(1))


def run_of(process):
    """A run of which only the process is known."""
    run = object.__new__(LoadedRun)
    object.__setattr__(run, "config", SimpleNamespace(process=config_class("processes", process)()))
    return run


def test_the_difference_is_paired():
    """Sequences differ by nats, the runs by hundredths: paired, the standard error is of the hundredths."""
    a, b = [1.0, 2.0, 4.0, 3.0], [0.98, 1.99, 3.97, 3.02]
    found = difference(run_of("masked"), run_of("masked"), scores(a), scores(b))
    apart = [y - x for x, y in zip(a, b)]
    mean = sum(apart) / 4
    error = math.sqrt(sum((d - mean) ** 2 for d in apart) / 3 / 4)
    assert found.nll.mean == pytest.approx(mean) == pytest.approx(-0.01)
    assert found.nll.standard_error == pytest.approx(error) and error < 0.02
    assert found.better_share == 0.75 and found.common_levels


def test_levels_are_common_only_for_one_process_and_equal_levels():
    a = scores([1.0, 2.0])
    assert not difference(run_of("masked"), run_of("uniform"), a, a).common_levels
    assert not difference(run_of("masked"), run_of("masked"), a, scores([1.0, 2.0], level=0.4)).common_levels


def test_one_sequence_has_no_standard_error():
    assert Estimate.of(numbers(2.0)) == Estimate(2.0, None)
    assert metrics(scores([2.0]), 1.0)["val/nll_se"] is None
    assert "val/nll_se" not in bound_metrics(numbers(2.0), 1.0)


def test_metrics_by_hand():
    found = metrics(scores([1.0, 2.0, 3.0]), 4.0)
    assert found == pytest.approx({
        "val/nll": 2.0, "val/nll_se": 1 / math.sqrt(3), "val/ppl_bound": math.e**2, "val/bpb": 2 / math.log(2) / 4,
    })  # fmt: skip


def test_a_curve_as_csv():
    """Band (0, 0.1]: sums 1 and 2 + 6 over 1 and 2 draws. Mean 3; residuals -2 and 2; s.e. sqrt(2 (4 + 4)) / 3."""
    level = torch.tensor([[0.05, 0.55], [0.02, 0.08]], dtype=torch.float64)
    curve = LevelCurve.of(level, torch.tensor([[1.0, 7.0], [2.0, 6.0]], dtype=torch.float64))
    rows = list(csv.DictReader(io.StringIO(curves_csv({"one, two": curve}))))
    assert [list(row) for row in rows] == 2 * [
        ["run", "level_low", "level_high", "draws", "nats_per_predicted_token", "standard_error"]
    ]
    assert list(rows[0].values())[:5] == ["one, two", "0.0", "0.1", "3", "3.0"]
    assert float(rows[0]["standard_error"]) == pytest.approx(4 / 3)
    # one sequence alone has no error
    assert list(rows[1].values()) == ["one, two", "0.5", "0.6", "1", "7.0", ""]
