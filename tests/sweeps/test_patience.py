"""Workers whose disk or storage fails: training goes on, one line says it, and no trial is lost."""

import os
import resource
import signal

import pytest

from diffusion_lm.errors import DiskError, RunError
from sweeps.__main__ import main
from sweeps.analysis import report
from sweeps.cluster import slurm, snapshot
from sweeps.definition import planner
from sweeps.work import child, patience
from sweeps.work.patience import may_pass
from sweeps.work.worker import Worker


def lives(record):
    """The step at which each life of the trial's training began."""
    return [int(line.split()[-1]) for line in (record.folder / "lives.txt").read_text().splitlines()]


@pytest.fixture
def unanswered(tmp_path, monkeypatch):
    """A file; while it is there, the storage fails for the workers of the test."""
    flag = tmp_path / "outage"
    monkeypatch.setenv("OUTAGE", str(flag))
    monkeypatch.setenv("REPORT_EVERY", "0.05")
    return flag


@pytest.mark.slow
def test_training_goes_on_while_the_storage_does_not_answer(write_study, start, records_of, folder_of, eventually,
                                                            unanswered):
    path = write_study(overrides={"steps": 40, "pause": 0.05})
    (worker,) = start(path)
    folder = folder_of(path).path / "0000-fake"
    eventually(lambda: (folder / "checkpoint").exists())
    unanswered.touch()
    eventually((folder / "result.json").exists)
    unanswered.unlink()
    said, _ = worker.communicate(timeout=20)
    (record,) = records_of(path)
    assert worker.returncode == 0 and record.state == "complete" and lives(record) == [0], said
    assert max(record.trial.intermediate_values) == 40
    told = "0000-fake   the study's storage failed (gone); training goes on, and its reports are passed on later"
    assert said.count(told) == 1 and "Traceback" not in said


def test_a_storage_that_stays_away_is_left_in_one_line(write_study, start, work, records_of, folder_of, eventually,
                                                       unanswered, monkeypatch):
    path = write_study(overrides={"steps": 5, "pause": 0.05})
    monkeypatch.setenv("PATIENCE", "0.3")
    (worker,) = start(path)
    eventually((folder_of(path).path / "0000-fake" / "checkpoint").exists)
    unanswered.touch()
    said, _ = worker.communicate(timeout=20)
    assert worker.returncode == 75 and said.endswith(
        "error: the study's storage failed (gone); no trial is lost: the same command goes on when this is mended\n")
    assert "Traceback" not in said
    unanswered.unlink()
    assert [record.state for record in records_of(path)] == ["running"]
    assert work(path)[0] == [0]
    (record,) = records_of(path)
    assert record.state == "complete" and lives(record) == [0], "training had ended, and is not repeated"


def test_a_job_told_to_stop_while_the_storage_is_away_is_queued_again(write_study, start, records_of, folder_of, work,
                                                                      eventually, unanswered, monkeypatch, tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, does in (("scontrol", f'echo "$@" >> {tmp_path}/asked'), ("squeue", "exit 1")):
        (tools / name).write_text(f"#!/bin/sh\n{does}\n")
        (tools / name).chmod(0o755)
    with monkeypatch.context() as job:
        for name, value in {"SLURM_JOB_ID": "7", "PATH": f"{tools}:{os.environ['PATH']}"}.items():
            job.setenv(name, value)
        path = write_study(overrides={"steps": 200, "pause": 0.05})
        (worker,) = start(path)
    eventually((folder_of(path).path / "0000-fake" / "checkpoint").exists)
    unanswered.touch()
    worker.send_signal(signal.SIGUSR1)
    said, _ = worker.communicate(timeout=20)
    assert worker.returncode == 75 and said.count("error: ") == 1, said
    assert "the study's storage failed (gone); no trial is lost" in said
    assert (tmp_path / "asked").read_text() == "requeue 7\n"


@pytest.mark.parametrize(("code", "reports"), [(0, 1), (1, 1), (75, 0), (130, 0)])
def test_a_worker_that_has_to_stop_does_not_ask_the_storage_for_a_report(write_study, monkeypatch, tmp_path, code,
                                                                        reports):
    asked = []
    monkeypatch.setattr(snapshot, "enter", lambda *arguments: None)
    monkeypatch.setattr(snapshot, "record", lambda *arguments: None)
    monkeypatch.setattr(child, "hold", lambda: None)
    monkeypatch.setattr(Worker, "run", lambda self: code)
    monkeypatch.setattr(report, "close", asked.append)
    path = write_study(experiment="quickstart")
    assert main(["run", str(path), "--root", str(tmp_path / "runs")]) == code and len(asked) == reports


@pytest.mark.parametrize("told", [True, False])
def test_a_job_that_starts_while_the_storage_is_away(write_study, monkeypatch, tmp_path, capsys, told):
    """It tries for a while; told to stop meanwhile, it goes back into the queue at once."""
    def away(*arguments):
        raise RunError("gone")

    asked, held = [], signal.pthread_sigmask(signal.SIG_BLOCK, ())
    monkeypatch.setattr(snapshot, "enter", lambda *arguments: None)
    monkeypatch.setattr(planner, "plan", away)
    monkeypatch.setattr(patience, "FIRST", 0.05)
    monkeypatch.setattr(patience, "LIMIT", 60 if told else 0.1)
    monkeypatch.setattr(slurm, "requeue", asked.append)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    path, before = write_study(experiment="quickstart"), signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    child.hold()
    try:
        if told:
            signal.raise_signal(signal.SIGUSR1)
        assert main(["run", str(path), "--root", str(tmp_path / "runs")]) == 75
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # what is held is dropped
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        signal.signal(signal.SIGUSR1, before)
    assert asked == ["7"] * told
    assert capsys.readouterr().out.splitlines()[-1] == (
        "error: gone; no trial is lost: the same command goes on when this is mended")


def test_a_full_disk_in_the_worker_costs_one_line_and_no_trial(write_study, start, work, records_of, folder_of,
                                                              experiments, monkeypatch):
    path = write_study(overrides={"steps": 4}, seeds=[0, 1])
    planner.plan(folder_of(path), experiments)
    monkeypatch.setenv("PATIENCE", "0.3")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Room for the first claim, not for the result.
    resource.setrlimit(resource.RLIMIT_FSIZE, (folder_of(path).journal.stat().st_size + 1500, before[1]))
    try:
        (worker,) = start(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said, _ = worker.communicate(timeout=20)
    assert worker.returncode == 75 and "Traceback" not in said, said
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "File too large" in errors[0] and "no trial is lost" in errors[0]
    assert work(path)[0] == [0]
    records = records_of(path)
    assert [record.state for record in records] == ["complete"] * 2
    assert all(lives(record) == [0] for record in records), "training had ended, and is not repeated"


def test_what_waiting_helps_against():
    full, read_only = OSError(28, "No space left on device"), OSError(30, "Read-only file system")
    assert may_pass(full) and not may_pass(read_only) and may_pass(DiskError("the journal"))
    with pytest.raises(DiskError) as caught:
        try:
            raise read_only
        except OSError:
            raise DiskError("the journal") from None
    assert not may_pass(caught.value)
