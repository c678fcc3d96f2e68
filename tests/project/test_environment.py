"""The lists of dependencies agree: pyproject.toml (ranges), constraints.txt (pins), environment.yml (conda)."""

import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]
# What conda-forge calls a package that PyPI calls otherwise. matplotlib-base is matplotlib without Qt.
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
CUDA_PACKAGES = {"cuda-version", "mamba-ssm", "causal-conv1d", "flash-attn"}
# lightning depends on pytorch-lightning: named in environment.yml so that its malicious releases stay out too.
CONDA_ONLY = {"python", "pip", "setuptools", "pytorch-lightning"} | CUDA_PACKAGES
MALICIOUS_LIGHTNING = ("2.6.2", "2.6.3")


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements(lines: list[str]) -> dict[str, SpecifierSet]:
    parsed = [Requirement(line) for line in lines]
    return {requirement.name: requirement.specifier for requirement in parsed}


def wanted() -> dict[str, SpecifierSet]:
    extras = project()["optional-dependencies"]
    return requirements(project()["dependencies"] + extras["s3"] + extras["test"])


def pins() -> dict[str, SpecifierSet]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return requirements([line for line in lines if line and not line.startswith("#")])


def conda() -> dict[str, list[str]]:
    """Package -> the rest of its line: [], [version] or [version, build]."""
    entries = [entry.split() for entry in yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]]
    return {name: rest for name, *rest in entries}


def test_every_runtime_dependency_is_pinned():
    assert requirements(project()["dependencies"]).keys() <= pins().keys()


@pytest.mark.parametrize("name", pins())
def test_a_pin_is_one_exact_version_inside_the_range(name):
    (pin,) = pins()[name]
    assert pin.operator == "==" and "*" not in pin.version
    assert name in wanted(), f"constraints.txt pins {name}, which pyproject.toml does not ask for"
    assert wanted()[name].contains(pin.version)


def test_conda_has_the_same_packages():
    assert conda().keys() - CONDA_ONLY == {CONDA_NAMES.get(name, name) for name in wanted()}
    assert conda().keys() >= CONDA_ONLY


@pytest.mark.parametrize("name", wanted())
def test_conda_asks_for_the_same_versions(name):
    version = conda()[CONDA_NAMES.get(name, name)][0]
    assert SpecifierSet(version) == wanted()[name]


def test_conda_builds_for_cuda_from_conda_forge_only():
    assert conda()["pytorch"][1] == "*cuda*"
    assert conda()["cuda-version"], "cuda-version is pinned"
    assert yaml.safe_load((ROOT / "environment.yml").read_text())["channels"] == ["conda-forge", "nodefaults"]


def test_conda_python_is_one_that_the_project_supports():
    (version,) = conda()["python"]
    assert SpecifierSet(project()["requires-python"]).contains(version.removesuffix(".*"))


@pytest.mark.parametrize("version", MALICIOUS_LIGHTNING)
def test_malicious_releases_of_lightning_are_out_of_reach(version):
    assert not wanted()["lightning"].contains(version)
    for name in ("lightning", "pytorch-lightning"):
        assert not SpecifierSet(conda()[name][0]).contains(version)
