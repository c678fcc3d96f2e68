"""Workers whose disk or storage fails: training goes on, one line says it, and no trial is lost."""

import resource

import pytest

from diffusion_lm.errors import DiskError
from sweeps.definition import planner
from sweeps.work.patience import may_pass


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
