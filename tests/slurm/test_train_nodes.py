"""Training over two nodes: one task on each, joined by gloo, compute what one process computes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

PROJECT = Path(__file__).resolve().parents[2]
NODES = ("--nodes=2", "--ntasks-per-node=1")
LENGTH = {"training.steps": 120, "training.val_every": 40, "training.checkpoint_every": 20}
WORDS = [f"{key}={value}" for key, value in LENGTH.items()]

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
    command = ["bash", "SLURM/train.sh", str(tiny), f"run={run}", *WORDS]
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
    """A trial of a sweep, each device with the whole model, beside a run of shares that is told to stop in its middle.

    USR1 comes to the batch process alone: all devices write one checkpoint, and the next life goes on from it.
    """
    study, root, run = tmp_path / "study.yaml", tmp_path / "runs", tmp_path / "run"
    study.write_text(yaml.safe_dump({"experiment": str(tiny), "overrides": LENGTH}))
    jobs = [submit("SLURM/sweep.sh", study, "--root", root, options=(*NODES, "--array=0")),
            submit("SLURM/train.sh", tiny, f"run={run}", "training.strategy=fsdp", *WORDS, options=NODES)]
    cluster.until(lambda: (run / "report.jsonl").exists() or over(jobs[1])(), 120)
    cluster.run("scancel", "--signal=USR1", "--batch", jobs[1])
    for job in jobs:
        cluster.until(over(job), 180)
    said = logs()
    assert said.count("SIGUSR1: stopping after this step") == 2, said
    assert said.count("interrupted at step") == said.count("resuming at step") == 1, said
    assert "finished at step 120" in said, said
    assert_same(run, alone)
    assert_same(root / "study" / "0000-tiny", alone)
    assert (run / "code").read_text() == (root / "study" / "code").read_text(), "both ran the same copy of the code"


def test_what_is_wrong_for_all_tasks_is_said_once(cluster, submit, over, logs, tiny, tmp_path):
    wrong = [("training.batch_size=0",), ("training.devices=3", "training.num_nodes=2")]
    jobs = [submit("SLURM/train.sh", tiny, f"run={tmp_path}/run", *words, options=NODES) for words in wrong]
    for job in jobs:
        cluster.until(over(job), 120)
    said = logs()
    assert said.count("\nerror: ") == 2 and said.count("batch_size: got 0") == 1, said
    assert said.count("training.devices x training.num_nodes: got 3 x 2, but this job has 1 task on each of 2 nodes; "
                      "leave both keys out (SLURM/train.sh sets them), or give sbatch --nodes=2 "
                      "--ntasks-per-node=3") == 1, said
    assert not (tmp_path / "run").exists()
