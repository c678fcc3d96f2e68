"""The front of bound and throughput: dominated is only what the noise lets one call so."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from diffusion_lm.kind import Kind
from sweeps.analysis import pareto

METRICS = {"val/nll": "minimize", "throughput/tokens_per_second": "maximize"}
MASKED = Kind("masked", "continuous time")


def row(bounds, speeds, kind=MASKED, error=0.0, feasible=True):
    """A row by the bounds and throughputs of its seeds 0, 1, ..."""
    found = {"val/nll": dict(enumerate(bounds)), "throughput/tokens_per_second": dict(enumerate(speeds))}
    best = SimpleNamespace(feasible=feasible, folder=Path("none"), last={"val/nll_se": error})
    return SimpleNamespace(kind=kind, best=best, by_seed=found.__getitem__, speed=sum(speeds) / len(speeds),
                           metrics={"val/nll": sum(bounds) / len(bounds)})


def front(*rows):
    return pareto.front(rows, METRICS)


def test_without_noise_it_is_the_usual_front():
    rows = [row([1.0], [10.0]), row([2.0], [20.0]), row([2.5], [15.0]), row([0.5], [5.0]), row([2.0], [15.0])]
    assert front(*rows) == ["front", "front", "dominated", "front", "dominated"]


def test_a_difference_inside_its_interval_does_not_dominate():
    """Pairs: 0.1 and 0.3. Mean 0.2, standard error 0.1, t of one degree of freedom 12.7: the interval is 0.2 ± 1.27."""
    fast = row([1.0, 1.0], [20.0, 20.0])
    assert front(fast, row([1.1, 1.3], [10.0, 10.0])) == ["front", "close"]
    # Pairs 0.199 and 0.201: 0.2 ± 0.0127.
    assert front(fast, row([1.199, 1.201], [10.0, 10.0])) == ["front", "dominated"]


def test_noise_in_the_second_metric_counts_too():
    """Throughputs 0 and 2 apart: 1 ± 12.7, whatever the bounds are."""
    assert front(row([1.0, 1.0], [11.0, 12.0]), row([5.0, 5.0], [11.0, 10.0])) == ["front", "close"]


def test_with_one_seed_the_error_over_sequences_counts():
    """1.96 x sqrt(0.03^2 + 0.04^2) = 0.098."""
    fast = row([1.0], [20.0], error=0.03)
    assert front(fast, row([1.09], [10.0], error=0.04)) == ["front", "close"]
    assert front(fast, row([1.11], [10.0], error=0.04)) == ["front", "dominated"]


def test_kinds_do_not_dominate_each_other():
    exact = row([1.0], [20.0], kind=Kind("masked", "exact"))
    assert front(exact, row([2.0], [10.0])) == ["front", "front"]


def test_what_breaks_a_constraint_or_lacks_a_number_is_outside():
    slow = row([2.0], [10.0])
    assert front(slow, row([1.0], [20.0], feasible=False)) == ["front", None]
    lost = row([1.0], [20.0])
    lost.speed = None
    assert front(slow, lost) == ["front", None]


@pytest.mark.parametrize(("metrics", "expected"), [
    ({"val/nll": "minimize"}, METRICS),
    ({"val/bpb": "minimize", "val/nll": "minimize", "x": "maximize"}, {"val/bpb": "minimize", "val/nll": "minimize"})])
def test_the_two_metrics(metrics, expected):
    assert pareto.pair(SimpleNamespace(metrics=metrics)) == expected
