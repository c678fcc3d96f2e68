"""A worker over training on two devices: a request to stop reaches both, and they agree on the step."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[2]
EXPERIMENT = {
    "data": {"path": "shards", "length": 32, "val_sequences": 4},
    "model": {"d_model": 32},
    "denoiser": {"name": "transformer", "n_layers": 1, "mixer": {"name": "attention", "head_dim": 16}},
    "training": {"steps": 100_000, "batch_size": 4, "warmup_steps": 1, "val_every": 0, "checkpoint_every": 5,
                 "samples": 0, "devices": 2, "accelerator": "cpu", "precision": "float32"},
}


@pytest.fixture
def study(tmp_path):
    """A study of one trial on two processes joined by gloo, in a folder of its own."""
    (tmp_path / "text").mkdir()
    for number in range(20):
        (tmp_path / "text" / f"{number}.txt").write_text(f"a line of words, number {number}, and some more. " * 8)
    command = [sys.executable, "-m", "data_prep", "shard", "--source", str(tmp_path / "text"), "--out",
               str(tmp_path / "shards"), "--length", "32", "--val-fraction", "0.2"]
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, timeout=100)
    tree = {**EXPERIMENT, "data": {**EXPERIMENT["data"], "path": str(tmp_path / "shards")}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"experiment": str(tmp_path / "tiny.yaml")}))
    return tmp_path / "study.yaml"


def processes(folder):
    """Ids of the processes whose command line names the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_both_devices_stop_at_one_step_with_a_checkpoint(study, eventually):
    root = study.parent / "runs"
    worker = subprocess.Popen([sys.executable, "-m", "sweeps", "run", str(study), "--root", str(root)], cwd=PROJECT,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    trial = root / "study" / "0000-tiny"
    checkpoint = trial / "checkpoints" / "last.ckpt"
    try:
        eventually(checkpoint.exists, 120)
        assert len(processes(trial)) == 2, "two devices"
        worker.send_signal(signal.SIGUSR1)
        began = time.monotonic()
        said, _ = worker.communicate(timeout=60)
    finally:
        worker.kill()
    log = (trial / "train.log").read_text()
    assert worker.returncode == 75 and "stopped; the same command continues it" in said, said + log
    assert time.monotonic() - began < 30 and processes(trial) == [], "nobody waits for anybody"
    step = int(re.search(r"interrupted at step (\d+)", log)[1])
    assert json.loads((trial / "result.json").read_text())["step"] == step

    import torch

    assert torch.load(checkpoint, weights_only=True)["global_step"] == step
