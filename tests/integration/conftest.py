"""Tiny shards, a tiny experiment, and the commands as a person types them."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

ROOT = Path(__file__).parents[2]
WARM = Path(__file__).with_name("warm.py")
WORDS = ["the", "a", "cat", "dog", "river", "runs", "under", "over", "bright", "café", "stone", "old", "\n"]
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "HOME": "/nonexistent", "OMP_NUM_THREADS": "1"}
TINY = {
    "data": {"path": "shards", "length": 32, "val_sequences": 12},
    "model": {"d_model": 32},
    "denoiser": {"name": "transformer", "n_layers": 1, "mixer": {"head_dim": 16}},
    "training": {"steps": 12, "batch_size": 8, "warmup_steps": 3, "val_every": 4, "checkpoint_every": 3, "log_every": 1,
                 "samples": 1, "ema_decay": 0.9, "precision": "float32", "accelerator": "cpu"},
    "evaluation": {"draws": 3},
    "sampler": {"num_steps": 3},
}  # fmt: skip


def pytest_configure(config):
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@dataclass
class Done:
    """A command that ended."""

    code: int
    out: str
    err: str

    def __iter__(self):
        return iter((self.code, self.out, self.err))


class Started:
    """A command that may still run."""

    def __init__(self, server, pid, folder):
        self.server, self.pid, self.folder = server, pid, folder
        self.code = None

    def poll(self):
        """The exit code, or None."""
        if self.code is None:
            self.code = self.server.ask(pid=self.pid)
        return self.code

    def until(self, condition, seconds=60):
        """Wait until `condition()` holds while the command runs; returns what it gave."""
        deadline = time.monotonic() + seconds
        while not (met := condition()):
            assert self.poll() is None, f"ended with {self.code}: {self.output('err')}"
            assert time.monotonic() < deadline, "waited too long"
            time.sleep(0.003)
        return met

    def wait(self, seconds=120):
        """Wait for the end."""
        deadline = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError(f"still running after {seconds} s: {self.output('err')}")
            time.sleep(0.01)
        return Done(self.code, self.output("out"), self.output("err"))

    def output(self, name):
        """What it printed so far."""
        return (self.folder / name).read_text(encoding="utf-8")


class Server:
    """The warm process, see warm.py."""

    def __init__(self, folder):
        self.folder, self.count = folder, 0
        self.process = subprocess.Popen([sys.executable, str(WARM)], env=ENVIRONMENT, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, start_new_session=True)  # fmt: skip
        assert json.loads(self.process.stdout.readline()) == "ready"

    def ask(self, **order):
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, cwd, argv, faults, limit, world):
        self.count += 1
        folder = self.folder / str(self.count)
        folder.mkdir()
        files = {name: str(folder / name) for name in ("out", "err")}
        for path in files.values():
            Path(path).touch()
        return Started(
            self,
            self.ask(argv=list(map(str, argv)), cwd=str(cwd), faults=faults, limit=limit, world=world, **files),
            folder,
        )


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The warm process of this test session."""
    server = Server(tmp_path_factory.mktemp("commands"))
    yield server
    server.process.stdin.close()
    server.process.wait(20)


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """Make shards of `documents` documents by the command line, once per kind; returns the folder."""
    made = {}

    def make(documents=30, length=32):
        key = documents, length
        if key not in made:
            folder = tmp_path_factory.mktemp("text")
            rng = np.random.default_rng(documents)
            (folder / "text").mkdir()
            for number in range(documents):
                text = f"{number} " + " ".join(rng.choice(WORDS, size=rng.integers(5, 40)))
                (folder / "text" / f"{number}.txt").write_text(text, encoding="utf-8")
            command = [sys.executable, "-m", "data_prep", "shard", "--source", "text", "--out", "shards"]
            command += ["--length", str(length), "--val-fraction", "0.4"]
            subprocess.run(command, cwd=folder, env=ENVIRONMENT, check=True, capture_output=True)
            made[key] = folder / "shards"
        return made[key]

    return make


class Place:
    """A folder to work in, with `tiny.yaml` and shards."""

    root = ROOT

    def __init__(self, folder, server):
        self.folder, self.server = folder, server
        (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY), encoding="utf-8")

    def json(self, *argv):
        """What a command prints with --json."""
        done = self.command(*argv, "--json")
        assert done.code == 0, done.err
        return json.loads(done.out.splitlines()[-1])

    def start(self, *argv, faults=(), limit=None, world=1):
        """Start `python -m diffusion_lm argv` in the warm process, as `world` processes that work together."""
        return self.server.start(self.folder, argv, list(faults), limit, world)

    def command(self, *argv, **options):
        """Run it to its end."""
        return self.start(*argv, **options).wait()

    def train(self, run, *overrides, status=0, **options):
        """Run `train tiny.yaml run=RUN overrides`, which must end with `status`."""
        done = self.command("train", "tiny.yaml", f"run={run}", *overrides, **options)
        assert done.code == status, done
        return done

    def cold(self, *argv, **options):
        """Run it in a Python process of its own, as from a shell."""
        command = [sys.executable, "-m", "diffusion_lm", *map(str, argv)]
        options = {"timeout": 120, **options}
        done = subprocess.run(command, cwd=self.folder, env=ENVIRONMENT, capture_output=True, text=True, **options)
        return Done(done.returncode, done.stdout, done.stderr)

    def snapshot(self):
        """Every file with its time and content, to show that nothing was written or lost."""
        files = [path for path in self.folder.rglob("*") if not path.is_symlink()]
        # a lock that this process holds would end with reading its file
        whole = {path for path in files if path.is_file() and path.name != ".lock"}
        return {path: (path.stat().st_mtime_ns, path.read_bytes() if path in whole else None) for path in files}

    def refused(self, *argv):
        """Run it on bad input: status 2, one line on standard error, nothing changed. Returns the line."""
        before = self.snapshot()
        code, out, err = self.command(*argv)
        assert code == 2, (code, err)
        assert err.startswith("error: ") and err.count("\n") == 1, err
        assert not out, out
        assert self.snapshot() == before
        return err

    def curves(self, run):
        """{tag: {step: value}} of a run's event files, as TensorBoard shows them. No step may stand twice."""
        events = self.events(run)
        found = {}
        for tag in events.Tags()["scalars"]:
            points = [(event.step, event.value) for event in events.Scalars(tag)]
            assert len(dict(points)) == len(points), f"{tag} has steps twice: {points}"
            found[tag] = dict(points)
        return found

    def events(self, run):
        """A run's event files as TensorBoard reads them."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(self.folder / run), size_guidance={"scalars": 0, "tensors": 0})
        return events.Reload()

    def lines(self, run):
        """The lines of report.jsonl; one that a kill cut short is left out."""
        path = self.folder / run / "report.jsonl"
        whole = [text for text in path.read_text().splitlines() if text.endswith("}")] if path.exists() else []
        return [json.loads(text) for text in whole]

    def reports(self, run):
        """{step: metrics} of report.jsonl; the last line of a step counts."""
        return {line["step"]: line for line in self.lines(run)}

    def result(self, run):
        """result.json."""
        return json.loads((self.folder / run / "result.json").read_text())

    def checkpoint(self, run):
        """The last checkpoint."""
        import torch

        return torch.load(self.folder / run / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.fixture
def place(tmp_path, server, shards):
    """A folder with tiny.yaml and the default tiny shards."""
    (tmp_path / "shards").symlink_to(shards())
    return Place(tmp_path, server)


@pytest.fixture(scope="module")
def shared(tmp_path_factory, server, shards):
    """A place that the tests of a file share, to look at and not to change: `run` is a finished run of tiny.yaml."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "shards").symlink_to(shards())
    place = Place(folder, server)
    place.train("run")
    return place
