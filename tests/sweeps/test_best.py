"""The best cell as an experiment: which one it is, what is refused, and that the file gives the same config."""

from dataclasses import replace

import pytest

from diffusion_lm import experiment
from diffusion_lm.errors import run_command
from sweeps.__main__ import main

KINDS = {"a": "continuous time", "b": "continuous time", "c": "exact"}
BOUNDS = {"a": 2.0, "b": 1.5, "c": 1.0}
SPEEDS = {"a": 300.0, "b": 100.0, "c": 200.0}


@pytest.fixture
def study(write_study, trained):
    """Arms a, b with a bound and c with an exact number; each trained from a real experiment."""
    path = write_study(arms={name: {} for name in KINDS}, seeds=[0, 1])
    folder = trained(path, lambda params, seed: {
        "val/nll": BOUNDS[params["arm"]] + 0.1 * seed, "speed": SPEEDS[params["arm"]],
        "throughput/tokens_per_second": SPEEDS[params["arm"]],
        "result": {"kind": {"process": "masked", "over": KINDS[params["arm"]], "depends_on": {}}}})
    for place in folder.path.glob("0*"):
        width = {"a": 64, "b": 96, "c": 128}[place.name[5]]
        experiment.save(experiment.load("quickstart", [f"model.d_model={width}"]), place / "config.yaml")
    return path


@pytest.fixture
def best(study, tmp_path, capsys):
    """Runs the command; returns exit status, output and errors."""

    def run(*arguments):
        code = run_command(main, ["best", str(study), "--root", str(tmp_path / "runs"), *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def test_the_export_is_the_config_of_the_best_run(best, tmp_path):
    file = tmp_path / "experiments" / "chosen" / "winner.yaml"
    code, said, _ = best("--kind", "masked, continuous time", "--export", file)
    assert code == 0 and f"b (trial 1) as {file}" in said
    (trained,) = (tmp_path / "runs" / "s").glob("0001-b*/config.yaml")
    exported = experiment.load(file)
    assert exported.name == "chosen/winner" and exported.model.d_model == 96
    assert exported == replace(experiment.load(trained), name="chosen/winner")
    head = file.read_text().splitlines()[:3]
    assert head[0] == "# The best of study s by val/nll: b, 1.5500 (2 seeds); masked, continuous time."
    assert head[1].endswith(str(trained.parent)) and head[2] == "# commit abc, corpus c0ffee"
    before = file.read_text()
    code, _, error = best("--arm", "a", "--export", file)
    assert code == 2 and f"{file} exists and is not written over" in error and file.read_text() == before


def test_without_export_it_is_printed(best):
    code, said, _ = best("--arm", "a")
    assert code == 0 and said.startswith("# The best of study s by val/nll: a, 2.0500") and "d_model: 64" in said


def test_another_metric(best):
    """Throughput is no likelihood: it is compared across kinds."""
    code, said, _ = best("--metric", "throughput/tokens_per_second")
    assert code == 0 and "by throughput/tokens_per_second: a, 300.0000 (2 seeds)" in said


@pytest.mark.parametrize(("arguments", "said"), [
    ((), "val/nll is of 2 kinds here (masked, continuous time; masked, exact), and none is better than another; name "
         "one by --kind, or an arm by --arm"),
    (("--arm", "d"), "--arm: no arm with a finished trial 'd'; expected one of a, b, c"),
    (("--kind", "masked, exakt"), "--kind: no kind of number 'masked, exakt'; expected one of masked, continuous time, "
                                  "masked, exact; did you mean 'masked, exact'?"),
    (("--metric", "val/nl"), "--metric: no metric 'val/nl'; expected one of "),
    (("--arm", "a", "--export", "here.txt"), "--export: got 'here.txt', expected the name of a .yaml file"),
    (("--arm", "a", "--export", "/proc/no/such.yaml"), "/proc/no/such.yaml cannot be written")])
def test_refusals(best, arguments, said):
    code, output, error = best(*arguments)
    assert code == 2 and said in error and error.count("\n") == 1 and output == ""
