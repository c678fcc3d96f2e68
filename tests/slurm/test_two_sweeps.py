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


def running(study):
    """The claims of workers that are in the middle of a trial."""
    return {name: owner for name, owner in owners(study).items() if Path(f"/proc/{owner['pid']}").exists()
            and not list(study.glob(f"{name[:4]}-*/result.json"))}


@pytest.mark.parametrize("storage", ["postgresql"], indirect=True)
def test_two_sweeps_at_once_without_slurm_for_a_while(storage, cluster, submit, stand_in, records_of, over, logs,
                                                      tmp_path):
    root, storages = tmp_path / "runs", {"first": "journal", "second": storage}
    jobs, studies = {}, {}
    for name, kept in storages.items():
        studies[name] = tmp_path / f"{name}.yaml"
        studies[name].write_text(yaml.safe_dump({"experiment": "fake", "overrides": {"steps": 10, "pause": 0.2},
                                                 "arms": ARMS, "seeds": [0, 1, 2, 3]}))
        jobs[name] = submit("SLURM/sweep.sh", studies[name], "--root", root, PYTHON=stand_in, SWEEPS_STORAGE=kept,
                            options=("--array=0-2", "--cpus-per-task=4", "--spread-job"))
    cluster.until(lambda: all(len(running(root / name)) == 3 for name in jobs), 60)

    cluster.lose_slurm()
    killed = {}
    for name in jobs:
        claim, owner = next(iter(running(root / name).items()))
        os.kill(owner["pid"], signal.SIGKILL)
        killed[name] = (claim, owner)
    # The others take up trials meanwhile, and leave alone what they cannot know to be dead.
    cluster.until(lambda: all(len(owners(root / name)) >= 6 for name in jobs), 60)
    for name, (claim, owner) in killed.items():
        successor = owners(root / name).get(f"{claim[:4]}.1")
        assert successor is None or successor["host"] == owner["host"], "only its own machine knows that it is dead"
    cluster.find_slurm()
    for name, job in jobs.items():
        cluster.until(over(job), 120)
        # The same command again: what the dead worker left, if nobody has continued it yet.
        again = submit("SLURM/sweep.sh", studies[name], "--root", root, options=("--array=0",), PYTHON=stand_in)
        cluster.until(over(again), 60)
        records = records_of(studies[name], root)
        assert [(record.number, record.state) for record in records] == [(n, "complete") for n in range(12)], logs()
        once, twice = {f"{number:04d}.0" for number in range(12)}, f"{killed[name][0][:4]}.1"
        assert set(owners(root / name)) == once | {twice}, "a trial changed hands without need"
        assert {owner["task"].partition("_")[0] for owner in owners(root / name).values()} <= {job, again}
        for record in records:
            lives = (record.folder / "lives.txt").read_text().splitlines()
            assert len(lives) == 1 + record.note("restarts"), lives
            assert [line["step"] for line in record.reports] == list(range(1, 11))
