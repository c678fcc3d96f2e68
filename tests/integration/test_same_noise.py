"""The corruption of the example at a place of the training order is the same on any number of devices, in any cut."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("ranks.py")


@pytest.fixture(scope="module")
def ranks():
    """ranks.py, imported."""
    spec = importlib.util.spec_from_file_location("ranks", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def wanted(ranks, shards):
    """What one device draws that takes the global batch at once. {arm: {position: tensors}}"""
    return ranks.rows_of(0, 1, ranks.GLOBAL, str(shards()))


def same(parts: list[dict], wanted: dict) -> None:
    """The ranks' rows together are those of one device, bit for bit."""
    positions = [position for part in parts for position in part]
    assert sorted(positions) == sorted(wanted)
    for part in parts:
        for position, row in part.items():
            assert len(row) == len(wanted[position]) >= 3
            assert all(a.equal(b) for a, b in zip(row, wanted[position]))


def test_every_row_has_noise_of_its_own(ranks, wanted):
    assert set(wanted) == set(ranks.ARMS)
    for rows in wanted.values():
        first = ranks.FIRST_STEP * ranks.GLOBAL
        assert list(rows) == list(range(first, first + ranks.STEPS * ranks.GLOBAL))
        states = [tuple(row[0].flatten().tolist()) for row in rows.values()]
        assert len(set(states)) > 0.8 * len(states)  # a text that comes again may be left whole twice
        times = [float(row[1]) for row in rows.values()]
        assert len(set(times)) > len(times) / 2  # exact counts of masks repeat
        given = [bool(row[-1].any()) for row in rows.values()]
        assert any(given) and not all(given)


@pytest.mark.slow
@pytest.mark.parametrize(("world", "micro"), [(1, 1), (1, 2), (2, 4), (2, 1), (4, 2), (4, 1)])
def test_ranks_and_accumulation_change_nothing(ranks, wanted, shards, world, micro):
    """Every rank's share, drawn in turn in this process."""
    found = [ranks.rows_of(rank, world, micro, str(shards())) for rank in range(world)]
    for arm in ranks.ARMS:
        same([part[arm] for part in found], wanted[arm])


@pytest.mark.slow
@pytest.mark.parametrize(("world", "micro"), [(2, 2), pytest.param(4, 1, marks=pytest.mark.long)])
def test_processes_joined_by_gloo_change_nothing(ranks, wanted, shards, place, world, micro):
    import torch

    out = place.folder / "rows.pt"
    command = [sys.executable, str(SCRIPT), str(world), str(micro), str(shards()), str(out)]
    environment = {"PYTHONPATH": str(place.root), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=place.folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = torch.load(out, weights_only=True)
    for arm in ranks.ARMS:
        assert len(found[arm]) == world
        same(found[arm], wanted[arm])
