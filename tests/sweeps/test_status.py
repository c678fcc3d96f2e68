"""`status`: states, jobs, progress, cost and what is left, for people and for programs."""

import json
import os
from dataclasses import replace

import pytest
from optuna.trial import TrialState

from diffusion_lm.errors import run_command
from sweeps.__main__ import main
from sweeps.cluster import slurm
from sweeps.definition import planner
from sweeps.records import storage
from sweeps.records.claim import Claims
from sweeps.records.owner import Owner
from sweeps.watch import outlook, status


@pytest.fixture
def command(tmp_path, capsys):
    """`python -m sweeps` with this test's folder of studies; returns the exit code and what was printed."""

    def run(*words):
        code = run_command(main, [*map(str, words), "--root", str(tmp_path / "runs")])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def claimed(write_study, folder_of, experiments):
    """A planned study of six trials, of which the given owners claimed the first ones; returns folder and study."""

    def make(owners, **keys):
        folder = folder_of(path := write_study(seeds=[0, 1, 2, 3, 4, 5], **keys))
        study = planner.plan(folder, experiments)
        for owner in owners:
            claim = Claims(folder, study, owner).fresh()
            claim.folder.mkdir()
            (claim.folder / "config.yaml").write_text("training: {steps: 50, accelerator: cpu}\n")
            lines = [{"step": step, "tokens": 1000 * step, "val/nll": 2.5, "throughput/tokens_per_second": 500.0}
                     for step in (10, 20)]
            (claim.folder / "report.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path, folder, study

    return make


def elsewhere(**changes):
    return replace(Owner.current(), **{"host": "n7", "machine": "m7", "boot": "b7", "cluster": "c", **changes})


def test_workers_are_alive_gone_or_unknown(claimed, command, monkeypatch):
    """Judged from a login node, where SLURM's variables are not set but its commands answer."""
    me = Owner.current()
    owners = [me, replace(me, started="another process"), elsewhere(task="12_0"), elsewhere(task="12_1"),
              elsewhere(task="9", cluster="other"), elsewhere(task=None)]
    path, _, _ = claimed(owners)
    monkeypatch.setattr(slurm, "tasks", lambda user: {"12_0"})
    monkeypatch.setattr(slurm, "cluster_here", lambda: "c")
    code, out, _ = command("status", path, "--json")
    found = json.loads(out)
    assert code == 0
    assert [trial["worker_state"] for trial in found["trials"]] == [
        "alive", "gone", "alive", "gone", "unknown", "unknown"]
    assert found["workers"] == {"alive": 2, "gone": 2, "unknown": 2}
    assert [(trial["slurm_job"], trial["node"]) for trial in found["trials"]][2:4] == [("12_0", "n7"), ("12_1", "n7")]
    _, out, _ = command("status", path)
    assert "workers: 2 alive, 2 gone, 2 unknown" in out and "12_0" in out
    assert out.count("whether its worker is alive is") == 2 and out.count("its worker is gone") == 2


def test_time_left(claimed, command):
    """30 of 50 steps of 1,000 tokens at 500 tokens per second are a minute; four such trials wait for two workers."""
    me = Owner.current()
    path, folder, study = claimed([me, me])
    found = outlook.look(folder, study)
    assert [line.left for line in found.lines] == [60.0, 60.0, None, None, None, None]
    trial = 60 + found.lines[0].record.seconds
    assert found.left == pytest.approx((2 * 60 + 4 * trial) / 2, rel=0.01)
    _, out, _ = command("status", path)
    assert "20 of 50" in out and "0:01:00" in out and "2 running, 4 waiting" in out
    assert "done in about 0:03:0" in out and "with the 2 workers that are alive" in out


def test_without_a_worker_the_end_is_not_guessed(claimed, command):
    path, folder, _ = claimed([replace(Owner.current(), started="another process")])
    _, out, _ = command("status", path)
    assert f"no worker is known to be alive: sbatch SLURM/sweep.sh {folder.definition}" in out and "done in" not in out
    assert json.loads(command("status", path, "--json")[1])["seconds_left"] is None


def test_hours_restarts_and_failures(claimed):
    _, folder, study = claimed([Owner.current()])
    number = study.get_trials()[0]._trial_id
    kept = {"machine": "8 x CPU, 4 x H200, Linux", "restarts": 3, "reason": "out of memory on the GPU",
            "failures": [{"class": "node"}, {"class": "node"}, {"class": "out_of_memory"}]}
    for key, value in kept.items():
        study._storage.set_trial_user_attr(number, key, value)
    trial = folder.path / "0000-fake-seed0"
    (trial / "config.yaml").write_text("training: {steps: 50, devices: 4, num_nodes: 2, accelerator: cuda}\n")
    study.tell(0, state=TrialState.FAIL)
    (trial / "result.json").write_text(json.dumps({"seconds": 1800, "status": "finished"}))
    found = outlook.look(folder, storage.load(folder))
    assert (found.gpu_hours, found.cpu_hours, found.restarts) == (4.0, 0.0, 3)
    assert found.failures == {"node": 2, "out_of_memory": 1}
    said = status.summary(folder, found)
    assert "4.00 GPU hours" in said and "3 restarts" in said and "failures: 2 node, 1 out_of_memory" in said


def test_hours_without_a_gpu_are_named_so(claimed):
    _, folder, study = claimed([Owner.current()])
    study._storage.set_trial_user_attr(study.get_trials()[0]._trial_id, "machine", "8 x CPU, no GPU, Linux")
    found = replace(outlook.look(folder, study), cpu_hours=1.5)
    assert found.gpu_hours == 0 and "1.50 CPU hours (no GPU)" in status.summary(folder, found)


def test_many_trials_are_counted_where_they_are_not_shown(claimed, command):
    path, _, _ = claimed([Owner.current(), Owner.current()])
    _, out, _ = command("status", path, "--limit", 3)
    rows = [line for line in out.splitlines() if "fake seed" in line]
    assert len(rows) == 3 and sum("running" in row for row in rows) == 2 and "seed 2" in rows[2]
    assert "not shown: 3 waiting; --limit 0 shows all" in out
    _, out, _ = command("status", path, "--limit", 0)
    assert sum("fake seed" in line for line in out.splitlines()) == 6 and "not shown" not in out


@pytest.mark.parametrize(("words", "said"), [
    (["--watch", "0"], "--watch: got 0, expected seconds above 0"),
    (["--watch", "5", "--json"], "--watch: got --json beside it"),
    (["--limit", "-1"], "--limit: got -1, expected a number of trials from 0 on"),
])
def test_what_makes_no_sense_is_refused(command, write_study, words, said):
    code, _, error = command("status", write_study(), *words)
    assert code == 2 and said in error


def test_watching_ends_with_the_study(write_study, start, command, eventually, folder_of):
    path = write_study(overrides={"steps": 10, "pause": 0.1})
    (worker,) = start(path)
    eventually(lambda: (folder_of(path).path / "0000-fake" / "report.jsonl").exists())
    code, out, _ = command("status", path, "--watch", "0.2")
    assert code == 0 and worker.wait(timeout=20) == 0
    assert "s: 1 trials: 1 complete" in out and os.path.exists(folder_of(path).path / "0000-fake" / "result.json")
