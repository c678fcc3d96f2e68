"""The cluster that the SLURM tests share, a tiny experiment, and how a script is submitted."""

import importlib.util
import sys
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


def _module(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def cluster():
    """A SLURM cluster of three nodes. Where SLURM is not installed its tests skip, which in CI is a failure."""
    module = _module("cluster")
    if missing := module.missing():
        pytest.skip(f"no {', '.join(missing)}: apt-get install slurmctld slurmd slurm-client munge")
    with module.Cluster(nodes=3) as running:
        yield running


@pytest.fixture(scope="session")
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
    """Submits a script as a user would, from the project's folder, with `environment` set; returns the job's number."""

    def run(script, *arguments, options=(), **environment):
        wanted = {**cluster.environment, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, **environment}
        return cluster.run("sbatch", "--parsable", f"--output={tmp_path}/%x-%A_%a.out", *options, str(script),
                           *map(str, arguments), cwd=PROJECT, env=wanted)

    return run


@pytest.fixture
def stand_in(tmp_path):
    """A command in Python's place: `python -m sweeps run STUDY --root ROOT` works with stand-in trainings."""
    path = tmp_path / "python"
    path.write_text(f"""#!{sys.executable}
import os, sys
study, root = sys.argv[sys.argv.index("run") + 1], sys.argv[sys.argv.index("--root") + 1]
os.execv({sys.executable!r}, [{sys.executable!r}, "{PROJECT}/tests/sweeps/fake_worker.py", study, root])
""")
    path.chmod(0o755)
    return str(path)


@pytest.fixture(scope="session")
def database():
    """A PostgreSQL server; its `url()` is a new database. Where it is not installed its tests skip: in CI a failure."""
    module = _module("../sweeps/postgresql")
    if module.binaries() is None:
        pytest.skip("no initdb: apt-get install postgresql")
    with module.PostgreSQL() as server:
        yield server


@pytest.fixture
def storage(request):
    """Where a test's studies are kept, as SWEEPS_STORAGE says it: a journal, or by parameter a new database."""
    return request.getfixturevalue("database").url() if request.param == "postgresql" else "journal"


@pytest.fixture(scope="session")
def disturbed():
    """The class of a sweep that a test does things to."""
    return _module("disturbed").Sweep


@pytest.fixture(scope="session")
def traces():
    """What a training leaves behind, read for comparison."""
    return _module("traces")


@pytest.fixture
def over(cluster):
    """Whether nothing of a job is in the queue any more."""

    def ask(job):
        return lambda: not [line for line in cluster.run("squeue", "-h", "-o", "%A %F").splitlines()
                            if job in line.split()]

    return ask


@pytest.fixture
def logs(tmp_path):
    """What the jobs of this test said, in one text."""

    def read():
        return "\n".join(f"{path.name}:\n{path.read_text()}" for path in sorted(tmp_path.glob("*.out")))

    return read


@pytest.fixture
def records_of():
    """The trials of a study file in a root, joined with their folders."""

    def read(path, root):
        from sweeps.definition import study
        from sweeps.records import history, storage
        from sweeps.records.folder import StudyFolder

        folder = StudyFolder(study.load(path), root)
        return history.records(folder, storage.load(folder))

    return read
