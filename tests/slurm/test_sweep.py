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
pytestmark = pytest.mark.slurm


def test_sweep_on_three_nodes_survives_a_killed_worker(cluster, submit, tiny, tmp_path, records_of, over, logs):
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

    cluster.until(over(job), 240)
    records = records_of(study, root)
    said = logs()
    assert [record.state for record in records] == ["complete"] * 4, said
    assert {record.number: record.note("restarts") for record in records} == {
        **dict.fromkeys(range(4), 0), number: 1}, "one trial changed hands, none was trained twice"
    assert "resuming at step" in (victim / "train.log").read_text(), "its successor began at its last checkpoint"
    nodes = Counter(json.loads(path.read_text())["host"] for path in (root / "study" / "claims").iterdir())
    assert len(nodes) > 1, nodes
    assert [record.trial.number for record in records if len(record.reports) != 4] == []
    assert "attention" in (root / "study" / "report.md").read_text(), "the last worker writes the report"


def test_jobs_near_their_time_limit_go_back_to_the_queue(cluster, submit, tiny, tmp_path, records_of, over, logs):
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

    cluster.until(lambda: "starts, continued in its life 2" in logs(), 60)
    cluster.until(over(sweep), 60)
    (record,) = records_of(study, root)
    begun = [int(line.split()[-1]) for line in (record.folder / "lives.txt").read_text().splitlines()]
    assert record.state == "complete" and record.note("restarts") == 1, logs()
    assert len(begun) == 2 and begun[1] > 0
    cluster.until(lambda: "resuming at step" in logs(), 60)
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
