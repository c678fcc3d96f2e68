"""The SLURM scripts on a real cluster of three nodes, with real training on a tiny experiment."""

import pytest
import yaml

pytestmark = pytest.mark.slurm


def test_jobs_near_their_time_limit_go_back_to_the_queue(cluster, submit, stand_in, tiny, tmp_path, records_of, over,
                                                         logs):
    """USR1, which SLURM sends before the limit: the trial goes on in the next life of its array task."""
    study, root = tmp_path / "study.yaml", tmp_path / "runs"
    study.write_text(yaml.safe_dump({"experiment": "fake", "overrides": {"steps": 60, "pause": 0.1}}))
    sweep = submit("SLURM/sweep.sh", study, "--root", root, options=("--array=0",), PYTHON=stand_in)
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
    from sweeps.cluster import slurm

    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, cluster.environment[name])
    job = cluster.run("sbatch", "--parsable", "--array=0-1", "--output=/dev/null", "--wrap", "sleep 60")
    assert {f"{job}_0", f"{job}_1"} <= slurm.tasks(cluster.user)
    cluster.run("scancel", f"{job}_0")
    cluster.until(lambda: f"{job}_0" not in slurm.tasks(cluster.user), 20)
    assert f"{job}_1" in slurm.tasks(cluster.user)
    left, limit = slurm.time_left(f"{job}_1")
    assert limit == 600 and 500 < left <= limit, "the partition's ten minutes"
    cluster.run("scancel", job)
    monkeypatch.setenv("SLURM_CONF", "/nonexistent")
    assert slurm.tasks(cluster.user) is None, "a SLURM that does not answer says nothing about any job"
    assert slurm.time_left(f"{job}_1") is None
