"""The scripts in SLURM/ without SLURM: which command they become, from which folder."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path.name for path in (PROJECT / "SLURM").glob("*.sh") if path.name not in ("env.sh", "common.sh"))
JOBS = [name for name in SCRIPTS if name != "env.example.sh"]


@pytest.fixture
def script(tmp_path):
    """Runs a script with an interpreter that prints its folder and arguments; returns exit code, output, errors."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$PWD $* threads=$OMP_NUM_THREADS"\n')
    python.chmod(0o755)

    def run(name, *arguments, copy=False, project=PROJECT, **environment):
        path = project / "SLURM" / name
        if copy:  # as sbatch does
            path = tmp_path / "spooled"
            path.write_bytes((project / "SLURM" / name).read_bytes())
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "OMP"))}
        done = subprocess.run(["bash", str(path), *arguments], cwd=tmp_path, capture_output=True, text=True,
                              env={**clean, "PYTHON": str(python), **environment})
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def site(tmp_path):
    """A project folder with the scripts and an env.sh of its own."""
    shutil.copytree(PROJECT / "SLURM", tmp_path / "site" / "SLURM", ignore=shutil.ignore_patterns("env.sh"))

    def write(text):
        (tmp_path / "site" / "SLURM" / "env.sh").write_text(text)
        return tmp_path / "site"

    return write


@pytest.mark.parametrize("name", [*SCRIPTS, "common.sh"])
def test_bash_reads_it(name):
    text = (PROJECT / "SLURM" / name).read_text()
    assert subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True).stderr == ""
    assert name not in JOBS or "\nset -euo pipefail\n" in text
    for word in ("--partition", "--account", "--qos", "module load"):  # the site's, not the project's
        assert not [line for line in text.splitlines() if line.startswith("#SBATCH") and word in line], word


def test_sweep_runs_the_study_from_the_projects_folder(script):
    assert script("sweep.sh")[1] == f"{PROJECT} -m sweeps run sweeps/quickstart.yaml threads=\n"
    assert script("sweep.sh", "my.yaml", "--root", "x")[1] == f"{PROJECT} -m sweeps run my.yaml --root x threads=\n"


def test_spooled_copy_finds_the_project_by_the_submit_folder(script):
    environment = {"SLURM_SUBMIT_DIR": str(PROJECT), "SLURM_CPUS_PER_TASK": "4"}
    assert script("sweep.sh", copy=True, **environment)[1].endswith("sweeps/quickstart.yaml threads=4\n")
    assert script("sweep.sh", copy=True, OMP_NUM_THREADS="2", **environment)[1].endswith("threads=2\n")


@pytest.mark.parametrize("name", JOBS)
def test_submitted_from_elsewhere(script, tmp_path, name):
    code, _, error = script(name, "x", copy=True, SLURM_SUBMIT_DIR=str(tmp_path))
    assert (code, error) == (2, f"error: {tmp_path} is not the project's folder; call sbatch there\n")


def test_train_names_its_experiment(script):
    code, out, _ = script("train.sh", "quickstart", "seed=1")
    assert (code, out) == (0, f"{PROJECT} -m sweeps train quickstart seed=1 threads=\n")
    code, _, error = script("train.sh")
    assert code == 2 and error.startswith("error: which experiment?")


def test_dashboard(script):
    assert script("dashboard.sh", "s.yaml")[1] == f"{PROJECT} -m sweeps dashboard s.yaml threads=\n"
    assert script("dashboard.sh")[1] == f"{PROJECT} -m sweeps dashboard threads=\n"


def test_dry_run_estimates_and_runs_nothing(script):
    told = f"{PROJECT} -m sweeps estimate --script SLURM/sweep.sh study"
    assert script("sweep.sh", "s.yaml", "--dry-run", "--sbatch", "-a 0-7 -p x")[1] == (
        f"{told} s.yaml --sbatch -a 0-7 -p x threads=\n")
    assert script("sweep.sh", "--dry-run")[1] == f"{told} sweeps/quickstart.yaml threads=\n"
    assert script("train.sh", "x", "--dry-run", "seed=1")[1] == (
        f"{PROJECT} -m sweeps estimate --script SLURM/train.sh experiment x seed=1 threads=\n")


@pytest.mark.parametrize("name", JOBS)
def test_the_sites_file_is_sourced_and_may_put_a_container_in_front(script, site, name):
    project = site("RUN=(env WHERE='a container')\nexport OMP_NUM_THREADS=3\nPYTHON=$PWD/inside\n")
    (project / "inside").write_text('#!/bin/sh\necho "$WHERE: $1 $2 threads=$OMP_NUM_THREADS"\n')
    (project / "inside").chmod(0o755)
    module = "data_prep" if name == "data_prep.sh" else "sweeps"
    assert script(name, "x", project=project) == (0, f"a container: -m {module} threads=3\n", "")


def test_what_is_wrong_in_the_sites_file_ends_the_job(script, site):
    code, out, error = script("sweep.sh", project=site("module_that_is_not_there load x\n"))
    assert code == 127 and out == "" and "SLURM/env.sh: line 1: module_that_is_not_there: command not found" in error
