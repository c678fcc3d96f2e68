"""Two studies in one folder on one cluster at once, while SLURM itself is lost: neither knows of the other or of it."""

import json
import os
import signal
from pathlib import Path

import pytest
import yaml

ARMS = {name: {"denoiser": name} for name in ("transformer", "mamba", "hybrid")}

pytestmark = pytest.mark.slurm


def owners(study):
    """Who took up which trial in which life."""
    return {path.name: json.loads(path.read_text()) for path in (study / "claims").glob("[0-9]*.[0-9]*")}


def training(study):
    """The claims of workers whose training has begun and is not over."""
    return {name: owner for name, owner in owners(study).items() if Path(f"/proc/{owner['pid']}").exists()
            and list(study.glob(f"{name[:4]}-*/lives.txt")) and not list(study.glob(f"{name[:4]}-*/result.json"))}


@pytest.mark.parametrize("storage", ["postgresql"], indirect=True)
def test_two_sweeps_at_once_without_slurm_for_a_while(storage, cluster, submit, stand_in, records_of, over, logs,
                                                      tmp_path):
    root = tmp_path / "runs"
    jobs, studies = {}, {}
    # Of eight processors a node has room for one worker of each, so that only SLURM can say which workers are gone.
    for name, kept, processors in (("first", "journal", 5), ("second", storage, 3)):
        studies[name] = tmp_path / f"{name}.yaml"
        studies[name].write_text(yaml.safe_dump({"experiment": "fake", "overrides": {"steps": 10, "pause": 0.3},
                                                 "arms": ARMS, "seeds": [0, 1, 2, 3]}))
        jobs[name] = submit("SLURM/sweep.sh", studies[name], "--root", root, PYTHON=stand_in, SWEEPS_STORAGE=kept,
                            options=("--array=0-2", f"--cpus-per-task={processors}"))
    cluster.until(lambda: all(len(training(root / name)) == 3 for name in jobs), 60)
    cluster.lose_slurm()
    killed = {}
    for name in jobs:
        killed[name], owner = next(iter(training(root / name).items()))
        os.kill(owner["pid"], signal.SIGKILL)
    # The others take up planned trials meanwhile, and leave alone what they cannot know to be dead.
    before = {name: len(owners(root / name)) for name in jobs}
    cluster.until(lambda: all(len(owners(root / name)) > before[name] for name in jobs), 90)
    assert [claim for name in jobs for claim in owners(root / name) if not claim.endswith(".0")] == [], logs()
    cluster.find_slurm()
    cluster.until(lambda: all(over(job)() for job in jobs.values()), 120)
    # The same command again: what the dead workers left, where nobody has continued it yet.
    again = {name: submit("SLURM/sweep.sh", study, "--root", root, options=("--array=0",), PYTHON=stand_in)
             for name, study in studies.items()}
    cluster.until(lambda: all(over(job)() for job in again.values()), 60)
    for name in jobs:
        records = records_of(studies[name], root)
        assert [(record.number, record.state) for record in records] == [(n, "complete") for n in range(12)], logs()
        expected = {f"{number:04d}.0" for number in range(12)} | {f"{killed[name][:4]}.1"}
        assert set(owners(root / name)) == expected, "a trial changed hands without need"
        tasks = {owner["task"].partition("_")[0] for owner in owners(root / name).values()}
        assert tasks <= {jobs[name], again[name]}
        for record in records:
            lives = (record.folder / "lives.txt").read_text().splitlines()
            assert len(lives) == 1 + record.note("restarts"), lives
            assert [line["step"] for line in record.reports] == list(range(1, 11))
