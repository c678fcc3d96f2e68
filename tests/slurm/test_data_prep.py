"""SLURM/data_prep.sh: an array on a real cluster makes what one process makes, byte for byte, also when begun twice."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slurm


@pytest.fixture
def source(tmp_path):
    """Seven files of thirty documents."""
    for number in range(7):
        lines = [json.dumps({"text": f"file {number}, document {line} " * 9}) + "\n" for line in range(30)]
        (tmp_path / "source").mkdir(exist_ok=True)
        (tmp_path / "source" / f"shard_{number:08d}.jsonl").write_text("".join(lines))
    return tmp_path / "source"


@pytest.fixture
def submit(cluster, tmp_path):
    """Submit the array and wait for its end; returns its logs."""

    def run(array, *arguments):
        cluster.environment["PYTHON"] = sys.executable
        options = ["--parsable", f"--output={tmp_path}/%x-%A_%a.out", f"--array={array}", "--cpus-per-task=2"]
        job = cluster.run("sbatch", *options, "SLURM/data_prep.sh", *map(str, arguments), cwd=PROJECT)
        cluster.until(lambda: job not in cluster.run("squeue", "-h", "-o", "%i", "-u", cluster.user), 120)
        return {path.stem.rpartition("_")[2]: path.read_text() for path in tmp_path.glob(f"data_prep-{job}_*.out")}

    return run


def content(folder):
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {**files, "dataset.json": {**json.loads(files["dataset.json"]), "name": "", "code_version": ""}}


def test_an_array_makes_what_one_process_makes(submit, source, tmp_path):
    options = ["--tokenizer", "bytes", "--length", 32, "--val-fraction", 0.2]
    command = ["bash", "SLURM/data_prep.sh", "--source", source, "--out", tmp_path / "here", *options, "--processes", 1]
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable}
    alone = subprocess.run(list(map(str, command)), cwd=PROJECT, env=environment, capture_output=True, text=True)
    assert alone.returncode == 0 and "7 parts; this task makes 7" in alone.stdout, alone

    logs = submit("1-5:2", "--source", source, "--out", tmp_path / "out", *options)  # three tasks: 1, 3 and 5
    made = {task: log.count("\npart ") for task, log in logs.items()}
    assert made == {"1": 3, "3": 2, "5": 2}, logs
    assert any("\nhash  " in log for log in logs.values()), "the last task makes the dataset"
    assert content(tmp_path / "out") == content(tmp_path / "here")

    (tmp_path / "out" / "dataset.json").unlink()
    (tmp_path / "out" / "parts" / "part-00004.json").unlink()
    logs = submit("0-1", "--source", source, "--out", tmp_path / "out", *options)  # another number of tasks
    assert "\n".join(logs.values()).count("\npart ") == 1, logs
    assert content(tmp_path / "out") == content(tmp_path / "here")


def test_bad_input_ends_the_task_with_one_line(submit, tmp_path):
    logs = submit("0", "--source", "nowhere", "--out", tmp_path / "out", "--tokenizer", "bytes")
    assert "--source 'nowhere': no such file or folder; expected a path of text files" in logs["0"], logs
    assert logs["0"].startswith("error: ") and logs["0"].count("\n") == 1
