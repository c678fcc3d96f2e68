"""Bad input through ``python -m sweeps``: one line, exit status 2, nothing written. And --help does not wait."""

import json
import os
import subprocess
import sys

import pytest

from diffusion_lm.errors import run_command
from sweeps.__main__ import main


@pytest.fixture
def command(tmp_path, capsys):
    """Runs a command line in this process; returns exit code, standard output and standard error."""

    def run(name, study, *more):
        code = run_command(main, [name, str(study), "--root", str(tmp_path / "runs"), *more])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def refused(command, tmp_path, study, *parts, name="run"):
    code, out, error = command(name, study)
    assert code == 2 and out == ""
    assert error.startswith("error: ") and error.count("\n") == 1, error
    for part in parts:
        assert part in error
    assert not (tmp_path / "runs").exists(), "nothing is written"


def test_study_that_does_not_exist(command, tmp_path):
    refused(command, tmp_path, "quickstar", "study 'quickstar' does not exist", "did you mean 'quickstart'?")


def test_of_many_studies_the_nearest_are_named(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweeps" / "large").mkdir(parents=True)
    names = [f"study_of_{letter}" for letter in "abcdefghijkl"] + ["nosuchx", "large/nosuchy"]
    for name in names:
        (tmp_path / "sweeps" / f"{name}.yaml").write_text("experiment: x\n")
    code, _, error = command("status", "nosuch")
    assert code == 2 and error.count(".yaml") == 8 and "(14 in sweeps/)" in error and len(error) < 400
    assert "for example sweeps/nosuchx.yaml, sweeps/large/nosuchy.yaml, " in error
    assert error.endswith("; did you mean 'nosuchx'?\n")


def test_unknown_key_names_the_file(command, tmp_path, write_study):
    path = write_study(metric={"val/nll": "minimize"})
    refused(command, tmp_path, path, f"{path}: unknown key 'metric'", "did you mean 'metrics'?")


def test_file_that_is_no_yaml(command, tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("experiment: [\n")
    refused(command, tmp_path, path, f"{path}: not readable as YAML")


def test_key_given_twice(command, tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("experiment: a\nexperiment: b\n")
    refused(command, tmp_path, path, "found duplicate key experiment")


def test_unknown_sampler_and_its_argument(command, tmp_path, write_study):
    refused(command, tmp_path, write_study(sampler="TPSampler"), "sampler: no class 'TPSampler'", "mean 'TPESampler'?")
    path = write_study(sampler={"name": "TPESampler", "startup": 3})
    refused(command, tmp_path, path, "sampler: TPESampler has no argument 'startup'")


def test_unknown_pruner_and_bad_value(command, tmp_path, write_study):
    refused(command, tmp_path, write_study(pruner="Median"), "pruner: no class 'Median'", "mean 'MedianPruner'?")
    path = write_study(pruner={"name": "PercentilePruner", "percentile": 400})
    refused(command, tmp_path, path, "pruner: PercentilePruner: ")


def test_grid_sampler_is_refused_with_the_way_out(command, tmp_path, write_study):
    path = write_study(sampler="GridSampler", space={"width": [1, 2]}, trials=1)
    refused(command, tmp_path, path, "GridSampler repeats cells when several workers ask", "visited exactly once")


def test_missing_experiment(command, tmp_path, write_study):
    refused(command, tmp_path, write_study(experiment="quickstrat"), "experiment 'quickstrat': no such file",
            "did you mean 'quickstart'?")


def test_arm_with_an_unknown_key_names_the_arm(command, tmp_path, write_study):
    path = write_study(experiment="quickstart", arms={"good": {}, "bad": {"denoizer": "mamba"}})
    refused(command, tmp_path, path, "arm bad: denoizer: unknown key 'denoizer'", "mean 'denoiser'?", name="plan")


def test_arm_with_an_unknown_variant(command, tmp_path, write_study):
    path = write_study(experiment="quickstart", arms={"bad": {"denoiser": "mamba22"}})
    refused(command, tmp_path, path, "arm bad: denoiser: no variant 'mamba22'", "did you mean 'mamba'?")


def test_every_value_of_the_space_is_tried(command, tmp_path, write_study):
    path = write_study(experiment="quickstart", space={"denoiser": ["mamba", "mambo"]})
    refused(command, tmp_path, path, "denoiser=mambo: denoiser: no variant 'mambo'")
    path = write_study(experiment="quickstart", space={"training.lr": {"low": -1.0, "high": 1.0}}, trials=2)
    refused(command, tmp_path, path, "training.lr=-1.0: training: lr: got -1.0, expected a positive number")


def test_root_that_cannot_be_written(command, tmp_path, write_study):
    (tmp_path / "runs").write_text("a file")
    code, _, error = command("plan", write_study(experiment="quickstart"))
    assert code == 2 and error.endswith("cannot be written (Not a directory); name another folder by --root\n")


@pytest.mark.parametrize("name", ["status", "report"])
def test_looking_at_a_study_that_was_not_started(command, tmp_path, write_study, name):
    refused(command, tmp_path, write_study(), "study 's' was not started", "python -m sweeps run", name=name)


def test_status_and_report_of_a_planned_study(command, write_study):
    path = write_study(experiment="quickstart", arms={"a": {}, "b": {"denoiser": "mamba"}})
    code, out, _ = command("plan", path)
    assert code == 0 and "2 trials planned" in out
    code, out, _ = command("status", path, "--json")
    assert code == 0 and [trial["state"] for trial in json.loads(out)["trials"]] == ["waiting", "waiting"]
    code, out, _ = command("report", path)
    assert code == 0 and "No trial is finished yet." in out


@pytest.mark.slow
def test_a_reader_that_has_enough(tmp_path, write_study):
    path = write_study(experiment="quickstart")
    command = [sys.executable, "-m", "sweeps", "plan", path, "--root", tmp_path / "runs"]
    end, start = os.pipe()
    os.close(end)
    done = subprocess.run(command, stdout=start, stderr=subprocess.PIPE, text=True)
    os.close(start)
    assert done.returncode == 1 and done.stderr == ""


def test_a_pipe_that_breaks_elsewhere_is_not_passed_over():
    def main(argv):
        raise BrokenPipeError("of a process that died")

    with pytest.raises(BrokenPipeError, match="of a process that died"):
        run_command(main, [])


def test_help_imports_neither_optuna_nor_torch():
    code = ("import sys; from sweeps.__main__ import main\n"
            "try: main(['--help'])\n"
            "except SystemExit: print({'optuna', 'torch', 'omegaconf', 'matplotlib'} & set(sys.modules))")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.startswith("usage:") and out.endswith("set()\n")
