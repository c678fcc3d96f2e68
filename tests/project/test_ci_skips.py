"""tests/conftest.py: in CI only a missing GPU may skip a test. Shown on a small suite of its own, run as a child."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = """
import pytest

def test_passes(): pass

def test_skips(): pytest.skip("slurmctld is not installed")

@pytest.mark.skip(reason="mamba_ssm: no GPU build")
def test_needs_gpu(): pass

@pytest.mark.skipif(True, reason="needs CUDA")
def test_needs_cuda(): pass

@pytest.fixture
def component(): pytest.importorskip("no_such_component")

def test_fixture_skips(component): pass

@pytest.mark.xfail(reason="known")
def test_xfails(): assert False
"""
MODULE = 'import pytest\npytest.importorskip("no_such_component")\ndef test_never(): pass\n'


def run(folder: Path, suite: str, **environment: str) -> tuple[int, dict[str, int], str]:
    """(exit status, outcome -> count, output) of pytest on `suite` under the project's conftest.py."""
    shutil.copy(Path(__file__).parents[1] / "conftest.py", folder)
    (folder / "test_suite.py").write_text(suite)
    env = {name: value for name, value in os.environ.items() if name != "CI" and not name.startswith("PYTEST")}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(folder), "-rA", str(folder)]
    result = subprocess.run(command, cwd=folder, env=env | environment, capture_output=True, text=True, timeout=60)
    counts = {outcome: int(n) for n, outcome in re.findall(r"(\d+) (\w+)", result.stdout.splitlines()[-1])}
    return result.returncode, counts, result.stdout


def outcomes(counts: dict[str, int]) -> dict[str, int]:
    return {name: counts[name] for name in ("passed", "skipped", "xfailed", "failed", "error") if name in counts}


@pytest.mark.parametrize("environment", [{}, {"CI": ""}, {"CI": "false"}])
def test_outside_ci_skips_stay_skips(tmp_path, environment):
    status, counts, _ = run(tmp_path, SUITE, **environment)
    assert status == 0
    assert outcomes(counts) == {"passed": 1, "skipped": 4, "xfailed": 1}


def test_in_ci_only_gpu_skips_are_left(tmp_path):
    status, counts, output = run(tmp_path, SUITE, CI="true")
    assert status == 1
    # A skip in a fixture is a failed set-up, which pytest counts as an error.
    assert outcomes(counts) == {"passed": 1, "skipped": 2, "xfailed": 1, "failed": 1, "error": 1}
    message = "a skip in CI, where only a missing GPU may skip a test; got: Skipped: slurmctld is not installed"
    assert f"test_suite.py::test_skips: {message}" in output
    assert "could not import 'no_such_component'" in output


def test_in_ci_a_module_that_skips_itself_fails(tmp_path):
    status, counts, output = run(tmp_path, MODULE, CI="true")
    assert status != 0
    assert outcomes(counts) == {"error": 1}
    assert "could not import 'no_such_component'" in output


def test_outside_ci_a_module_may_skip_itself(tmp_path):
    _, counts, _ = run(tmp_path, MODULE)
    assert outcomes(counts) == {"skipped": 1}
