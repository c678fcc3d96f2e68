"""Whether a worker begins another trial: time in its job, and the study's budget."""

import pytest

from sweeps.cluster import slurm


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Stand-ins for squeue and scontrol, in a job of this task; `time_left` is what squeue says. What was asked of
    scontrol is in the file that is returned."""
    tools, asked = tmp_path / "bin", tmp_path / "asked"
    tools.mkdir()
    (tools / "squeue").write_text('#!/bin/sh\ncase "$*" in *%L*) echo "$TIME_LEFT";; *) echo 77_0;; esac\n')
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    for name, value in {"ARRAY_JOB_ID": "77", "ARRAY_TASK_ID": "0", "JOB_ID": "78"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    return asked


@pytest.mark.parametrize(
    ("left", "code", "done"),
    [
        ("0:01 1:00:00", 75, 1),  # the stand-in's trials say 1.5 s, so another one wants 1.8 s
        ("0:01 0:01", 0, 3),  # no job is long enough: they go on from checkpoints
        ("0:02 1:00:00", 0, 3),
        ("UNLIMITED UNLIMITED", 0, 3),
    ],
)
def test_no_trial_is_begun_that_the_job_has_no_time_for(write_study, work, records_of, monkeypatch, cluster, left, code,
                                                       done):
    monkeypatch.setenv("TIME_LEFT", left)
    path = write_study(seeds=[0, 1, 2], overrides={"steps": 2})
    codes, said = work(path)
    states = [record.state for record in records_of(path)]
    assert codes == [code] and states == ["complete"] * done + ["waiting"] * (3 - done), said
    if code:
        assert cluster.read_text() == "requeue 77_0\n"
        assert "no new trial in this job (1 s left, and a trial takes about 2 s); it goes back into the queue" in said
        assert work(path)[0] == [75], "the next life begins with one trial, however long it takes"
        assert [record.state for record in records_of(path)] == ["complete"] * 2 + ["waiting"]
    else:
        assert not cluster.exists()


@pytest.mark.parametrize(("budget", "used"),
                         [({"trials": 2}, "2 of 2 trials"), ({"tokens": 3000}, "4,000 of 3,000 tokens")])
def test_no_trial_is_begun_beyond_the_budget(write_study, work, records_of, budget, used):
    """Of trials of 2,000 tokens the second begins below 3,000."""
    path = write_study(seeds=[0, 1, 2], overrides={"steps": 2, "pause": 0.1}, budget=budget)
    codes, said = work(path, 2 if "trials" in budget else 1)
    assert set(codes) == {0} and f"no new trial: the budget is used up ({used})" in said
    assert [record.state for record in records_of(path)] == ["complete", "complete", "waiting"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0:09", 9), ("59:59", 3599), ("1:00:00", 3600), ("2-03:04:05", 183845), ("UNLIMITED", None), ("INVALID", None)],
)
def test_durations_of_slurm(text, seconds):
    assert slurm._seconds(text) == seconds
