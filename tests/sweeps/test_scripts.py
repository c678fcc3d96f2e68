"""The scripts in SLURM/ without SLURM: which command they become, from which folder."""

import os
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(tmp_path):
    """Runs a script with an interpreter that prints its folder and arguments; returns exit code, output, errors."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$PWD $* threads=$OMP_NUM_THREADS"\n')
    python.chmod(0o755)

    def run(name, *arguments, copy=False, **environment):
        path = PROJECT / "SLURM" / name
        if copy:  # as sbatch does
            path = tmp_path / "spooled"
            path.write_bytes((PROJECT / "SLURM" / name).read_bytes())
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "OMP"))}
        done = subprocess.run(["bash", str(path), *arguments], cwd=tmp_path, capture_output=True, text=True,
                              env={**clean, "PYTHON": str(python), **environment})
        return done.returncode, done.stdout, done.stderr

    return run


def test_sweep_runs_the_study_from_the_projects_folder(script):
    assert script("sweep.sh")[1] == f"{PROJECT} -m sweeps run sweeps/quickstart.yaml threads=\n"
    assert script("sweep.sh", "my.yaml", "--root", "x")[1] == f"{PROJECT} -m sweeps run my.yaml --root x threads=\n"


def test_spooled_copy_finds_the_project_by_the_submit_folder(script):
    environment = {"SLURM_SUBMIT_DIR": str(PROJECT), "SLURM_CPUS_PER_TASK": "4"}
    assert script("sweep.sh", copy=True, **environment)[1].endswith("sweeps/quickstart.yaml threads=4\n")
    assert script("sweep.sh", copy=True, OMP_NUM_THREADS="2", **environment)[1].endswith("threads=2\n")


@pytest.mark.parametrize("name", ["sweep.sh", "train.sh"])
def test_submitted_from_elsewhere(script, tmp_path, name):
    code, _, error = script(name, "x", copy=True, SLURM_SUBMIT_DIR=str(tmp_path))
    assert (code, error) == (2, f"error: {tmp_path} is not the project's folder; call sbatch there\n")


def test_train_names_its_experiment(script):
    code, out, _ = script("train.sh", "quickstart", "seed=1")
    assert (code, out) == (0, f"{PROJECT} -m sweeps train quickstart seed=1 threads=\n")
    code, _, error = script("train.sh")
    assert code == 2 and error.startswith("error: which experiment?")
