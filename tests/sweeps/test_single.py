"""A single command as a job: its exit code is ours, a request to stop reaches it once."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.cluster import single as single_module

PROGRAM = """
import signal, sys, time
got = []
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, lambda number, frame: got.append(number))
print("ready", flush=True)
while not got: time.sleep(0.01)
time.sleep(0.2)
print(len(got), "signal", flush=True)
sys.exit(75)
"""


def single(*command):
    command = [sys.executable, "-m", "sweeps.cluster.single", *command]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("code", "expected"), [("exit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137)])
def test_exit_code_is_the_commands(code, expected):
    with single(sys.executable, "-c", code) as process:
        assert process.wait(timeout=20) == expected


def test_signals_are_relayed_once():
    with single(sys.executable, "-c", PROGRAM) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 75 and process.stdout.read() == "1 signal\n"


def test_second_ctrl_c_does_not_wait():
    with single(sys.executable, "-c", PROGRAM.replace("sys.exit(75)", "time.sleep(60)")) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "1 signal\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 137


def test_child_dies_with_its_parent():
    with single(sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)") as process:
        process.stdout.readline()
        process.kill()
        assert process.stdout.read() == "", "the pipe is closed only when the child has ended too"


@pytest.mark.parametrize(("experiment", "overrides", "folder", "root"), [
    ("quickstart", [], "runs/quickstart", "runs"),
    ("dimba/small", ["seed=1"], "runs/dimba/small", "runs"),
    ("experiments/dimba/small.yaml", [], "runs/dimba/small", "runs"),
    ("other/own.yaml", [], "runs/mine", "runs"),
    ("quickstart", ["name=b"], "runs/b", "runs"),
    ("quickstart", ["name=b", "run=/x/y"], "/x/y", "/x"),
    ("runs/b/config.yaml", [], "runs/b", "runs"),
    ("broken.yaml", [], "runs/broken", "runs"),
])
def test_the_runs_folder_is_where_training_puts_it(tmp_path, monkeypatch, experiment, overrides, folder, root):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIFFUSION_LM_RUNS", raising=False)
    for name, text in {"experiments/dimba/small.yaml": "seed: 1\n", "other/own.yaml": "name: mine\n",
                       "experiments/quickstart.yaml": "{}\n", "broken.yaml": "a: [\n"}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert single_module.places(experiment, overrides) == (Path(folder), Path(root))
