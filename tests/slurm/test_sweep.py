"""The SLURM scripts on a real cluster of three nodes, with real training on a tiny experiment."""

import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[2]
WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "saw", "that", "dog", "run", "to", "some", "old", "tree")
EXPERIMENT = {
    "model": {"d_model": 32},
    "denoiser": {"name": "transformer", "n_layers": 1, "mixer": {"name": "attention", "head_dim": 16}},
    "training": {"steps": 60, "batch_size": 8, "warmup_steps": 5, "val_every": 15, "checkpoint_every": 15,
                 "samples": 1},
    "sampler": {"num_steps": 4},
    "evaluation": {"draws": 2},
}

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def tiny(cluster, tmp_path_factory):
    """A tiny experiment on shards of its own."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "text").mkdir()
    for number in range(100):
        words = (WORDS[(number * 7 + place * place) % len(WORDS)] for place in range(120))
        (folder / "text" / f"{number}.txt").write_text(" ".join(words))
    cluster.run(sys.executable, "-m", "data_prep", "shard", "--source", str(folder / "text"), "--out",
                str(folder / "shards"), "--length", "64", "--val-fraction", "0.2", cwd=PROJECT)
    data = {"path": str(folder / "shards"), "length": 64, "val_sequences": 16}
    (folder / "tiny.yaml").write_text(yaml.safe_dump({"data": data, **EXPERIMENT}))
    return folder / "tiny.yaml"


@pytest.fixture
def submit(cluster, tmp_path):
    """Submits a script as a user would, from the project's folder; returns the job's number."""

    def run(script, *arguments, options=(), **environment):
        cluster.environment.update({"OMP_NUM_THREADS": "1", "PYTHON": sys.executable, **environment})
        return cluster.run("sbatch", "--parsable", f"--output={tmp_path}/%x-%A_%a.out", *options, str(script),
                           *map(str, arguments), cwd=PROJECT)

    return run


def trials(path, root):
    from sweeps import history, storage, study
    from sweeps.folder import StudyFolder

    folder = StudyFolder(study.load(path), root)
    return history.records(folder, storage.load(folder))


def idle(cluster, job):
    return lambda: not cluster.run("squeue", "-h", "-o", "%i", "-u", cluster.user).count(job)


def logs(folder):
    return "\n".join(f"{path.name}:\n{path.read_text()}" for path in sorted(folder.glob("*.out")))


def test_sweep_on_three_nodes_survives_a_killed_worker(cluster, submit, tiny, tmp_path):
    study, root = tmp_path / "study.yaml", tmp_path / "runs"
    arms = {"attention": {}, "mamba": {"denoiser": {"name": "mamba", "n_layers": 1}}}
    study.write_text(yaml.safe_dump({"experiment": str(tiny), "arms": arms, "seeds": [0, 1]}))
    job = submit("SLURM/sweep.sh", study, "--root", root, options=("--array=0-2", "--cpus-per-task=8"))

    # Kill the first worker whose trial has a checkpoint and is not over.
    def under_way():
        folders = [path.parent.parent for path in root.glob("study/*/checkpoints/last.ckpt")]
        return [folder for folder in folders if not (folder / "result.json").exists()]

    cluster.until(under_way, 120)
    victim = under_way()[0]
    number = int(victim.name[:4])
    os.kill(json.loads((root / "study" / "claims" / f"{number:04d}.0").read_text())["pid"], signal.SIGKILL)

    cluster.until(idle(cluster, job), 240)
    records = trials(study, root)
    said = logs(tmp_path)
    assert [record.state for record in records] == ["complete"] * 4, said
    assert {record.number: record.note("restarts") for record in records} == {
        **dict.fromkeys(range(4), 0), number: 1}, "one trial changed hands, none was trained twice"
    assert "resuming at step" in (victim / "train.log").read_text(), "its successor began at its last checkpoint"
    nodes = Counter(json.loads(path.read_text())["host"] for path in (root / "study" / "claims").iterdir())
    assert len(nodes) > 1, nodes
    assert [record.trial.number for record in records if len(record.reports) != 4] == []
    assert "attention" in (root / "study" / "report.md").read_text(), "the last worker writes the report"


def test_jobs_near_their_time_limit_go_back_to_the_queue(cluster, submit, tiny, tmp_path):
    """USR1, which SLURM sends before the limit: the trial goes on in the next life of its array task."""
    worker = PROJECT / "tests" / "sweeps" / "fake_worker.py"
    python = tmp_path / "python"  # it is called with: -m sweeps run STUDY --root ROOT
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {worker} "$4" "$6"\n')
    python.chmod(0o755)
    study, root = tmp_path / "study.yaml", tmp_path / "runs"
    study.write_text(yaml.safe_dump({"experiment": "fake", "overrides": {"steps": 60, "pause": 0.1}}))
    sweep = submit("SLURM/sweep.sh", study, "--root", root, options=("--array=0",), PYTHON=str(python))
    run = tmp_path / "run"
    train = submit("SLURM/train.sh", tiny, f"run={run}", "training.steps=400", "training.val_every=10",
                   "training.checkpoint_every=10")
    checkpoint = root / "study" / "0000-fake" / "checkpoint"
    cluster.until(lambda: checkpoint.exists() and checkpoint.read_text(), 30)
    cluster.run("scancel", "--signal=USR1", "--batch", f"{sweep}_0")
    cluster.until((run / "report.jsonl").exists, 60)
    cluster.run("scancel", "--signal=USR1", "--batch", train)

    cluster.until(lambda: "starts, continued in its life 2" in logs(tmp_path), 60)
    cluster.until(idle(cluster, sweep), 60)
    (record,) = trials(study, root)
    begun = [int(line.split()[-1]) for line in (record.folder / "lives.txt").read_text().splitlines()]
    assert record.state == "complete" and record.note("restarts") == 1, logs(tmp_path)
    assert len(begun) == 2 and begun[1] > 0
    cluster.until(lambda: "resuming at step" in logs(tmp_path), 60)
    cluster.run("scancel", train)


def test_squeue_tells_which_tasks_are_there(cluster, submit, monkeypatch):
    from sweeps import slurm

    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, cluster.environment[name])
    job = cluster.run("sbatch", "--parsable", "--array=0-1", "--output=/dev/null", "--wrap", "sleep 60")
    assert {f"{job}_0", f"{job}_1"} <= slurm.tasks(cluster.user)
    cluster.run("scancel", f"{job}_0")
    cluster.until(lambda: f"{job}_0" not in slurm.tasks(cluster.user), 20)
    assert f"{job}_1" in slurm.tasks(cluster.user)
    cluster.run("scancel", job)
    monkeypatch.setenv("SLURM_CONF", "/nonexistent")
    assert slurm.tasks(cluster.user) is None, "a SLURM that does not answer says nothing about any job"
