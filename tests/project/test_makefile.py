"""The Makefile's promises that need no installation: its help, the Python check, where torch comes from."""

import itertools
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
PHONY = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE).group(1).split()


def make(*args: str) -> subprocess.CompletedProcess:
    """Run make as a person would, whether or not make runs these tests."""
    ours = ("MAKE", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHON", "VENV", "TORCH_INDEX_URL")
    env = {name: value for name, value in os.environ.items() if name not in ours}
    return subprocess.run(["make", *args], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)


def test_make_alone_lists_every_target():
    listed = re.findall(r"^  make (\S+) +\S", make().stdout, re.MULTILINE)
    assert listed == PHONY


@pytest.mark.parametrize("target", PHONY)
def test_every_listed_target_exists(target, tmp_path):
    result = make("-n", target, f"VENV={tmp_path}/venv")
    assert result.returncode == 0, result.stderr
    assert result.stdout


def install_commands(tmp_path, *args: str) -> list[str]:
    result = make("-n", "install", f"VENV={tmp_path}/venv", *args)
    assert result.returncode == 0, result.stderr
    return [line for line in result.stdout.splitlines() if "pip" in line and " install " in line]


def test_install_keeps_to_the_constraints_and_the_default_index(tmp_path):
    (command,) = install_commands(tmp_path)
    assert command.endswith('install -q -c constraints.txt -e ".[test]"')


def test_torch_index_url_serves_the_pinned_torch_and_nothing_else(tmp_path):
    pin = re.search(r"^torch==\S+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE).group()
    torch, project = install_commands(tmp_path, "TORCH_INDEX_URL=https://wheels.invalid/cpu")
    assert torch.endswith(f'install -q --index-url "https://wheels.invalid/cpu" "{pin}"')
    assert "--index-url" not in project


def test_install_runs_again_only_when_the_dependencies_changed(tmp_path):
    stamp = tmp_path / "venv" / ".installed"
    stamp.parent.mkdir()
    stamp.touch()
    up_to_date = make("-n", "install", f"VENV={tmp_path}/venv")
    assert "pip" not in up_to_date.stdout
    os.utime(stamp, (0, 0))
    assert install_commands(tmp_path)


def test_the_test_targets_share_all_tests_between_them(tmp_path):
    """Whatever markers a test has, one of the commands runs it; `make test` those that have none."""
    said = "".join(make("-n", target, f"VENV={tmp_path}/venv").stdout for target in ("test", "test-slow", "test-long"))
    expressions = [found.strip('"') for found in re.findall(r'-n \d+ -m ("[^"]*"|\w+)', said)]
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
    markers = [marker.split(":")[0] for marker in declared]
    for values in itertools.product([False, True], repeat=len(markers)):
        chosen = [bool(eval(expression, dict(zip(markers, values)))) for expression in expressions]
        assert sum(chosen) == 1 and chosen[0] == (not any(values)), (markers, values)


def fake_python(path: Path, version: tuple[int, int]) -> Path:
    """An interpreter of another version, as far as `python -c` can tell."""
    info = (*version, 0, "final", 0)
    path.write_text(f"#!{sys.executable}\nimport sys\nsys.version_info = {info}\nexec(sys.argv[2])\n")
    path.chmod(0o755)
    return path


def oldest_python() -> tuple[int, int]:
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    major, minor = re.fullmatch(r">=(\d+)\.(\d+)", requires).groups()
    return int(major), int(minor)


def test_an_old_python_is_refused_in_one_line(tmp_path):
    major, minor = oldest_python()
    python = fake_python(tmp_path / "old-python", (major, minor - 1))
    result = make("install", f"VENV={tmp_path}/venv", f"PYTHON={python}")
    assert result.returncode != 0
    said = [line for line in result.stderr.splitlines() if not line.startswith("make")]
    expected = f"expected {major}.{minor} or newer: make PYTHON=/path/to/python3"
    assert said == [f"PYTHON: {python} is Python {major}.{minor - 1}; {expected}"]
    assert not (tmp_path / "venv").exists()


def test_the_oldest_supported_python_is_accepted(tmp_path):
    result = make("check-python", f"PYTHON={fake_python(tmp_path / 'python', oldest_python())}")
    assert (result.returncode, result.stderr) == (0, "")


def test_a_missing_python_is_named(tmp_path):
    result = make("check-python", "PYTHON=no-such-python")
    assert result.returncode != 0
    assert "PYTHON: 'no-such-python' not found; expected Python 3.11 or newer" in result.stderr
