"""Failures by class: what is started again and how often, what is told, and what is asked for again by hand."""

import json
import signal

import pytest

from diffusion_lm.errors import DiskError, UserError
from sweeps import oom, retry, slurm, storage
from sweeps.__main__ import main
from sweeps.patience import may_pass


def lives(record):
    """The step at which each life of the trial's training began."""
    return [int(line.split()[-1]) for line in (record.folder / "lives.txt").read_text().splitlines()]


def classes(record):
    """{class: how often} over all lives."""
    kinds = [failure["class"] for failure in record.note("failures")]
    return {kind: kinds.count(kind) for kind in kinds}


@pytest.mark.parametrize(
    ("fault", "kind", "begun", "state"),
    [
        ("memory", "out_of_memory", [0], "fail"),
        ("diverged", "not_finite", [0], "fail"),
        ("broken", "code", [0, 1], "fail"),
        ("broken once", "code", [0, 1], "complete"),
        ("disk once", "disk", [0, 1], "complete"),
        ("disk", "disk", [0, 1, 2, 3], "fail"),
        ("killed once", "node", [0, 1], "complete"),
        ("interrupted once", "time", [0, 1], "complete"),
        ("bad", "input", [0], "fail"),
    ],
)
def test_each_class_is_started_again_as_often_as_it_may(write_study, work, records_of, fault, kind, begun, state):
    path = write_study(overrides={"fault": fault})
    codes, said = work(path)
    (record,) = records_of(path)
    assert codes == [int(state == "fail")], said
    assert (record.state, lives(record)) == (state, begun)
    assert classes(record) == {kind: len(begun) - (state == "complete")}
    assert record.note("failures")[0].keys() == {"class", "life", "reason", "step"}
    assert record.note("failure") == (kind if state == "fail" else None)


def test_a_failed_trial_says_what_how_often_and_where_the_log_is(write_study, work, records_of):
    path = write_study(overrides={"fault": "killed"}, restarts={"node": 2})
    codes, said = work(path)
    (record,) = records_of(path)
    assert codes == [1] and lives(record) == [0, 1, 2]
    assert record.note("reason") == ("killed by SIGKILL: the log is empty (node, 3 times; restarts.node is 2; log: "
                                     f"{record.folder / 'train.log'})")
    assert record.note("reason") in said and "Traceback" not in said


def stop(start, path, checkpoint, eventually, number):
    """Starts a worker and ends it by signal `number` when its trial is one step further."""
    before = checkpoint.read_text() if checkpoint.exists() else ""
    (worker,) = start(path)
    eventually(lambda: checkpoint.exists() and checkpoint.read_text() not in (before, ""))
    worker.send_signal(number)
    return worker.communicate(timeout=20)[0]


@pytest.mark.parametrize(("number", "kind", "why"), [(signal.SIGKILL, "node", "its worker died ("),
                                                     (signal.SIGUSR1, "time", "stopped by SIGUSR1 (")])
def test_ends_of_workers_are_counted_and_bounded(write_study, start, work, records_of, folder_of, eventually, number,
                                                 kind, why):
    path = write_study(overrides={"steps": 500, "pause": 0.02}, restarts={kind: 1})
    checkpoint = folder_of(path).path / "0000-fake" / "checkpoint"
    stop(start, path, checkpoint, eventually, number)
    stop(start, path, checkpoint, eventually, number)
    codes, said = work(path)
    (record,) = records_of(path)
    assert codes == [1] and record.state == "fail" and len(lives(record)) == 2, "it is not trained a third time"
    assert classes(record) == {kind: 2} and record.note("failure") == kind
    assert [failure["life"] for failure in record.note("failures")] == [0, 1]
    assert all(failure["step"] > 0 for failure in record.note("failures"))
    assert record.note("reason").startswith(why) and f"({kind}, 2 times; restarts.{kind} is 1; " in said


def test_ctrl_c_is_no_failure(write_study, start, work, records_of, folder_of, eventually):
    path = write_study(overrides={"steps": 30, "pause": 0.02}, restarts={"node": 0, "time": 0})
    stop(start, path, folder_of(path).path / "0000-fake" / "checkpoint", eventually, signal.SIGINT)
    assert work(path)[0] == [0]
    (record,) = records_of(path)
    assert record.state == "complete" and record.note("failures") is None and len(lives(record)) == 2


def test_the_trial_says_what_it_is_and_where_it_runs(write_study, work, records_of):
    path = write_study(arms={"a": {}}, space={"width": [32]}, seeds=[3])
    work(path)
    (record,) = records_of(path)
    assert json.loads((record.folder / "hparams.json").read_text()) == {"arm": "a", "width": 32, "seed": 3}
    assert record.note("node") and record.note("slurm_job") is None


# By hand.


def test_failed_cells_are_asked_for_again_once(write_study, work, records_of, tmp_path, capsys):
    path = write_study(arms={"good": {}, "bad": {"fault": "bad"}, "memory": {"fault": "memory"}}, seeds=[0, 1])
    assert work(path)[0] == [1]
    options = [str(path), "--root", str(tmp_path / "runs")]
    assert main(["retry", *options, "--class", "out_of_memory"]) == 0
    said = capsys.readouterr().out
    assert "trial 2 (memory seed 0) is asked for again\ntrial 5 (memory seed 1) is asked for again\n" in said
    assert "2 trials wait" in said
    assert main(["retry", *options]) == 0 and "2 trials wait" in capsys.readouterr().out, "the other two"
    assert main(["retry", *options]) == 0
    assert capsys.readouterr().out == "study 's': no failed trial to ask for again\n"
    waiting = [record for record in records_of(path) if record.state == "waiting"]
    assert [(record.cell, record.seed, record.note("retry_of")) for record in waiting] == [
        ("memory", 0, 2), ("memory", 1, 5), ("bad", 0, 1), ("bad", 1, 4)]

    assert work(path)[0] == [1], "nothing was mended"
    assert main(["retry", *options, "--trial", "2"]) == 0, "by the number that it had first"
    records = records_of(path)
    assert [record.note("retry_of") for record in records if record.state == "waiting"] == [6]
    assert [record.number for record in records if record.cell == "good"] == [0, 3], "what is done is not done again"
    assert all(lives(record) == [0] for record in records if record.folder)


def test_a_cell_that_was_mended_is_trained_once_more_and_no_more(write_study, work, records_of, folder_of, experiments):
    """A sampled study, where the number of trials is no bound: it stays, and so do the parameters."""
    path = write_study(space={"lr": {"low": 1e-4, "high": 1e-2}}, trials=3, overrides={"fault": "broken"})
    assert work(path)[0] == [1]
    folder = folder_of(path)
    retry.ask_again(folder, storage.load(folder), numbers=[1])
    for record in records_of(path):
        if record.state == "waiting":
            number = record.number
    text = folder.path / f"{number:04d}-fake"
    text.mkdir()
    config = experiments.load("fake", [f"lr={records_of(path)[1].trial.params['lr']}"])
    experiments.save(config, text / "config.yaml")  # the fault is gone
    assert work(path)[0] == [0]
    records = records_of(path)
    assert [record.state for record in records] == ["fail"] * 3 + ["complete"]
    assert records[3].trial.params == records[1].trial.params and records[3].note("row") == 1
    assert retry.ask_again(folder, storage.load(folder), numbers=[1]) == []


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"numbers": [0]}, r"^--trial: trial 0 is complete; only trials that failed can be asked for again$"),
        ({"numbers": [9]}, r"^--trial: got 9, but the study has trials 0 to 1$"),
        ({"cell": "badd"}, r"^--cell: no cell 'badd'; expected one of bad, good; did you mean 'bad'\?$"),
        ({"kind": "oom"}, r"^--class: no failure class 'oom'; expected one of code, disk, input, node, not_fin"),
    ],
)
def test_asking_for_what_is_not_there(write_study, work, records_of, folder_of, asked, text):
    path = write_study(arms={"good": {}, "bad": {"fault": "bad"}})
    work(path)
    folder = folder_of(path)
    with pytest.raises(UserError, match=text):
        retry.ask_again(folder, storage.load(folder), **asked)
    assert len(records_of(path)) == 2


# Without the storage, the disk, or time.


def test_a_full_disk_in_the_worker_costs_one_line_and_no_trial(write_study, start, work, records_of, folder_of,
                                                              monkeypatch):
    import resource

    path = write_study(overrides={"steps": 4}, seeds=[0, 1])
    monkeypatch.setenv("PATIENCE", "0.3")
    (worker,) = start(path)
    worker.wait(20)
    whole = folder_of(path).journal.stat().st_size
    for name in ("study.journal", "claims"):
        target = folder_of(path).path / name
        assert target.exists()
    # The same study elsewhere, with a disk that takes half of that journal.
    other = write_study("t", overrides={"steps": 4}, seeds=[0, 1])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (whole * 2 // 3, before[1]))
    try:
        (worker,) = start(other)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said, _ = worker.communicate(timeout=20)
    assert worker.returncode == 75 and "Traceback" not in said, said
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "File too large" in errors[0] and "no trial is lost" in errors[0]
    assert work(other)[0] == [0]
    records = records_of(other)
    assert [record.state for record in records] == ["complete"] * 2
    assert all(len(lives(record)) == 1 for record in records), "training had ended, and was not repeated"


def test_what_waiting_helps_against():
    full, read_only = OSError(28, "No space left on device"), OSError(30, "Read-only file system")
    assert may_pass(full) and not may_pass(read_only) and may_pass(DiskError("the journal"))
    with pytest.raises(DiskError) as caught:
        try:
            raise read_only
        except OSError:
            raise DiskError("the journal") from None
    assert not may_pass(caught.value)


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


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0:09", 9), ("59:59", 3599), ("1:00:00", 3600), ("2-03:04:05", 183845), ("UNLIMITED", None), ("INVALID", None)],
)
def test_durations_of_slurm(text, seconds):
    assert slurm._seconds(text) == seconds


@pytest.mark.parametrize(
    ("line", "place", "text", "count"),
    [
        ("0::/slurm/uid_0/job_7/step_batch/user", "slurm/uid_0/job_7/memory.events", "oom 5\noom_kill 3\n", 3),
        ("0::/user.slice/app", "user.slice/app/memory.events", "oom_kill 0\noom_group_kill 9\n", 0),
        ("4:cpu,memory:/a/job_7/b", "memory/a/job_7/memory.oom_control", "under_oom 0\noom_kill 2\n", 2),
        ("4:cpu:/a", "memory/a/memory.oom_control", "oom_kill 2\n", None),
        ("0::/elsewhere", "memory.events", "oom_kill 4\n", 4),
    ],
)
def test_what_the_kernel_killed_for_memory(tmp_path, line, place, text, count):
    (tmp_path / "cgroup").write_text(line + "\n")
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_text(text)
    assert oom.kills(tmp_path, tmp_path / "cgroup") == count
