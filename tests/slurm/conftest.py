"""The cluster that the SLURM tests share."""

import importlib.util
from pathlib import Path

import pytest


def _module(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def cluster():
    """A SLURM cluster of three nodes. Where SLURM is not installed its tests skip, which in CI is a failure."""
    module = _module("cluster")
    if missing := module.missing():
        pytest.skip(f"no {', '.join(missing)}: apt-get install slurmctld slurmd slurm-client munge")
    with module.Cluster(nodes=3) as running:
        yield running
