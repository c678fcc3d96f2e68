"""Failures by class: what is started again and how often, and what is told."""

import json
import signal
import socket
from types import SimpleNamespace

import pytest

from sweeps.cluster import launch
from sweeps.work import ending, oom


def lives(record):
    """The step at which each life of the trial's training began."""
    return [int(line.split()[-1]) for line in (record.folder / "lives.txt").read_text().splitlines()]


def classes(record):
    """{class: how often} over all lives."""
    kinds = [failure["class"] for failure in record.note("failures")]
    return {kind: kinds.count(kind) for kind in kinds}


@pytest.mark.slow
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
    assert record.note("failures")[0].keys() == {"class", "life", "reason", "step", "node"}
    assert record.note("failure") == (kind if state == "fail" else None)


def test_a_failed_trial_says_what_how_often_and_where_the_log_is(write_study, work, records_of):
    path = write_study(overrides={"fault": "killed"}, restarts={"node": 2})
    codes, said = work(path)
    (record,) = records_of(path)
    assert codes == [1] and lives(record) == [0, 1, 2]
    assert record.note("reason") == (f"killed by SIGKILL: the log is empty (node, 3 times on {socket.gethostname()}; "
                                     f"restarts.node is 2; log: {record.folder / 'train.log'})")
    assert record.note("reason") in said and "Traceback" not in said


def stop(start, path, checkpoint, eventually, number):
    """Starts a worker and ends it by signal `number` when its trial is one step further."""
    before = checkpoint.read_text() if checkpoint.exists() else ""
    (worker,) = start(path)
    eventually(lambda: checkpoint.exists() and checkpoint.read_text() not in (before, ""))
    worker.send_signal(number)
    return worker.communicate(timeout=20)[0]


@pytest.mark.slow
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
    assert record.note("reason").startswith(why) and f"({kind}, 2 times on {socket.gethostname()}; " in said


def test_ctrl_c_is_no_failure(write_study, start, work, records_of, folder_of, eventually):
    path = write_study(overrides={"steps": 30, "pause": 0.02}, restarts={"node": 0, "time": 0})
    stop(start, path, folder_of(path).path / "0000-fake" / "checkpoint", eventually, signal.SIGINT)
    assert work(path)[0] == [0]
    (record,) = records_of(path)
    assert record.state == "complete" and record.note("failures") is None and len(lives(record)) == 2


def test_constraints_are_told_with_the_values(write_study, work, records_of):
    """The stand-in has 20,000 parameters beside its embeddings, and speeds of 1,250 and 1,500 tokens/s."""
    speed = "throughput/tokens_per_second"
    path = write_study(space={"width": [32, 64]}, overrides={"steps": 1},
                       constraints={"parameters": {"max": 15000}, speed: {"min": 1400}})
    assert work(path)[0] == [0]
    small, large = (record.trial.constraints for record in records_of(path))
    assert small == pytest.approx({"parameters": 5000 / 15000, speed: 150 / 1400}), "broken where above 0"
    assert large == pytest.approx({"parameters": 5000 / 15000, speed: -100 / 1400})


def test_the_trial_says_what_it_is_and_where_it_runs(write_study, work, records_of):
    path = write_study(arms={"a": {}}, space={"width": [32]}, seeds=[3])
    work(path)
    (record,) = records_of(path)
    assert json.loads((record.folder / "hparams.json").read_text()) == {"arm": "a", "width": 32, "seed": 3}
    assert record.note("node") and record.note("slurm_job") is None


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


@pytest.mark.parametrize(
    ("code", "added", "killed", "kind"),
    [
        (-9, "", 1, "out_of_memory"),
        (-9, "", 0, "node"),
        (137, "", 0, "node"),  # as srun says it
        (-9, "", None, "node"),
        (1, "", 1, "code"),
        (-11, "", 1, "code"),
        (137, "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of them\n", 0, "out_of_memory"),
        (143, "slurmstepd: error: *** STEP 7.0 ON n1 CANCELLED AT noon DUE TO NODE FAILURE ***\n", 0, "node"),
        (143, "slurmstepd: error: *** STEP 7.0 ON n1 CANCELLED AT noon DUE TO TIME LIMIT ***\n", 0, "time"),
        (0, "", 0, "code"),  # without a result
    ],
)
def test_what_the_kernel_and_slurm_say(tmp_path, monkeypatch, code, added, killed, kind):
    log, counts = tmp_path / "train.log", iter([3, None if killed is None else 3 + killed])
    log.write_text("slurmstepd: error: Detected 1 oom_kill event in StepId=6.0.\n")  # of an earlier life
    (tmp_path / "failure.json").write_text('{"class": "disk", "message": "of an earlier life"}')
    monkeypatch.setattr(oom, "kills", lambda: next(counts))
    watch = ending.Watch(tmp_path)
    with open(log, "a") as file:
        file.write(added + "the end\n")
    found = watch.ending(code)
    assert found.kind == kind and found.reason.endswith(": the end")


@pytest.mark.parametrize(("code", "said"), [
    (-signal.SIGSEGV, "killed by SIGSEGV"), (-signal.SIGWINCH, "killed by SIGWINCH"),
    (128 + signal.SIGTERM, "killed by SIGTERM"), (-40, "killed by signal 40"),
    (128 + signal.SIGWINCH, "exit status 156"), (128 + signal.SIGCHLD, "exit status 145"), (193, "exit status 193"),
    (255, "exit status 255"), (4, "exit status 4")])
def test_only_signals_that_end_programs_are_read_into_an_exit_status(tmp_path, code, said):
    assert ending.Watch(tmp_path).ending(code).reason.startswith(f"{said}: ")


def test_a_disk_that_training_could_not_even_complain_on(tmp_path):
    watch = ending.Watch(tmp_path)
    assert watch.ending(1).kind == "code"
    tmp_path.rmdir()
    assert watch.ending(1).kind == "disk"


@pytest.mark.parametrize(
    ("attributes", "died"),
    [
        ({}, True),
        ({"stopped": 1}, False),
        ({"stopped": 0}, True),
        ({"failures": [{"life": 1, "class": "time"}]}, False),  # pre-empted: only training was told
        ({"failures": [{"life": 0, "class": "time"}]}, True),
        ({"failures": [{"life": 1, "class": "time"}, {"life": 1, "class": "code"}]}, True),
    ],
)
def test_which_lives_ended_by_the_death_of_their_worker(attributes, died):
    """Of a trial in its third life, numbered 2."""
    claim = SimpleNamespace(life=2, trial=SimpleNamespace(user_attrs=attributes), before="n1:42 job 7_0")
    assert ending.death(claim) == (ending.Ending("node", "its worker died (n1:42 job 7_0)") if died else None)
    assert ending.death(SimpleNamespace(life=0, trial=SimpleNamespace(user_attrs={}), before=None)) is None


def test_what_dies_with_its_worker():
    """Of an srun that is killed the tasks train on; told to end it takes them along."""
    assert launch.deadly(["/usr/bin/python", "-m", "diffusion_lm"]) == signal.SIGKILL
    assert launch.deadly(["/usr/bin/srun", "--ntasks=2", "python"]) == signal.SIGTERM
