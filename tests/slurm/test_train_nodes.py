"""SLURM/train.sh over two nodes: one task on each, joined by gloo, compute what one process computes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROJECT = Path(__file__).resolve().parents[2]
NODES = ("--nodes=2", "--ntasks-per-node=1")
LENGTH = ("training.steps=120", "training.val_every=40", "training.checkpoint_every=20")

pytestmark = pytest.mark.slurm


def reports(run):
    """The validations by step."""
    lines = (json.loads(line) for line in (run / "report.jsonl").read_text().splitlines())
    return {line["step"]: line["val/nll"] for line in lines}


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu")["state_dict"]


@pytest.fixture(scope="module")
def alone(cluster, tiny, tmp_path_factory):
    """The run of one process, by the same script without sbatch."""
    run = tmp_path_factory.mktemp("alone") / "run"
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = ["bash", "SLURM/train.sh", str(tiny), f"run={run}", *LENGTH]
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return run


def assert_same(run, other):
    ours, theirs = reports(run), reports(other)
    assert list(ours) == list(theirs) == [40, 80, 120]
    assert ours == pytest.approx(theirs, rel=2e-5)
    a, b = weights(run), weights(other)
    assert set(a) == set(b)
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=1e-4, atol=1e-5, msg=lambda text, name=name: name + text)


def test_two_nodes_compute_what_one_process_does(cluster, submit, over, logs, tiny, alone, tmp_path):
    run = tmp_path / "run"
    job = submit("SLURM/train.sh", tiny, f"run={run}", *LENGTH, options=NODES)
    cluster.until(over(job), 120)
    assert "finished at step 120" in logs(), logs()
    assert_same(run, alone)


def test_shares_on_two_nodes_stop_together_and_go_on(cluster, submit, over, logs, tiny, alone, tmp_path):
    """USR1 comes to the batch process alone: all devices write one checkpoint, and the next life goes on from it."""
    run = tmp_path / "run"
    job = submit("SLURM/train.sh", tiny, f"run={run}", "training.strategy=fsdp", *LENGTH, options=NODES)
    cluster.until(lambda: (run / "report.jsonl").exists() or over(job)(), 120)
    cluster.run("scancel", "--signal=USR1", "--batch", job)
    cluster.until(lambda: "resuming at step" in logs() or over(job)(), 60)
    cluster.until(over(job), 120)
    said = logs()
    assert said.count("SIGUSR1: stopping after this step") == 2, said
    assert said.count("interrupted at step") == 1 and "finished at step 120" in said, said
    assert_same(run, alone)


def test_what_is_wrong_is_said_once(cluster, submit, over, logs, tiny, tmp_path):
    wrong = [("training.batch_size=0",), ("data.path=/nowhere",), ("training.devices=3", "training.num_nodes=2")]
    for number, words in enumerate(wrong):
        cluster.until(over(submit("SLURM/train.sh", tiny, f"run={tmp_path}/run", *words, options=NODES)), 60)
        said = logs()
        assert said.count("\nerror: ") == number + 1, said
    assert "training.devices x training.num_nodes: got 3 x 2, but this job has 1 tasks on each of 2 nodes" in said
    assert not (tmp_path / "run").exists()
