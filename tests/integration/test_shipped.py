"""The experiments and studies that the project ships: they load, and the arms of a comparison have one size."""

import pytest
import yaml

from diffusion_lm.commands.describe import describe
from diffusion_lm.experiment import ROOT, load

FIRST_LIGHT = ("transformer_masked", "mamba_masked", "hybrid_masked", "mamba_gaussian", "dimba_gaussian")
FILES = sorted((ROOT / "experiments").rglob("*.yaml"))


def overrides(arm: dict) -> list[str]:
    """The arm's parts as overrides; nested mappings in YAML's flow style."""
    return [f"{key}={yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}" for key, value in arm.items()]


def same_size(counts: list[int]) -> None:
    assert max(counts) / min(counts) < 1.005, counts


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT / "experiments")) for path in FILES])
def test_an_experiment_loads_under_its_own_name(path):
    assert load(path).name == str(path.relative_to(ROOT / "experiments").with_suffix(""))


def test_the_arms_of_first_light_have_one_size():
    same_size([describe(load(f"first_light/{name}"))["parameters, non-embedding"] for name in FIRST_LIGHT])


def test_the_arms_of_the_quickstart_have_one_size_and_are_the_five_promised():
    study = yaml.safe_load((ROOT / "sweeps" / "quickstart.yaml").read_text())
    found = {name: describe(load(study["experiment"], overrides(arm))) for name, arm in study["arms"].items()}
    assert {(facts["denoiser"], facts["process"]) for facts in found.values()} >= {
        ("transformer", "masked"),
        ("mamba", "masked"),
        ("hybrid", "masked"),
        ("mamba", "gaussian"),
        ("dimba", "gaussian"),
    }
    same_size([facts["parameters, non-embedding"] for facts in found.values()])
