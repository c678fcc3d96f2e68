"""Liveness: dead is what is known to be dead."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.cluster import slurm
from sweeps.records.owner import Owner


@pytest.fixture
def me(monkeypatch):
    for name in [name for name in os.environ if name.startswith("SLURM")]:
        monkeypatch.delenv(name)
    return Owner.current()


@pytest.fixture
def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def never(user):
    raise AssertionError("SLURM is asked")


def test_this_process_is_alive_and_survives_json(me):
    assert Owner.from_dict(json.loads(json.dumps(me.to_dict()))) == me
    assert not me.is_gone(me, never)


def test_ended_process_is_gone(me, dead_pid):
    assert dataclasses.replace(me, pid=dead_pid).is_gone(me, never)


def test_zombie_is_gone(me):
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
    started = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
    owner = dataclasses.replace(me, pid=process.pid, started=started)
    assert not owner.is_gone(me, never)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has taken note of it
    assert owner.is_gone(me, never)
    process.wait()


def test_reused_process_id_is_another_process(me):
    assert dataclasses.replace(me, started="1").is_gone(me, never)


def test_machine_started_again(me):
    boot = "00000000-0000 pid:[1]"
    assert dataclasses.replace(me, boot=boot).is_gone(me, never)


def test_other_container_on_this_machine_is_unknown(me, dead_pid):
    boot = me.boot.partition(" ")[0] + " pid:[1]"
    assert not dataclasses.replace(me, boot=boot, pid=dead_pid).is_gone(me, never)


def test_other_host_without_slurm_is_unknown(me, dead_pid):
    assert not dataclasses.replace(me, host="elsewhere", machine="m", pid=dead_pid).is_gone(me, never)


@pytest.mark.parametrize(("queued", "gone"), [({"7_1"}, False), ({"7_2"}, True), (set(), True), (None, False)])
def test_other_host_under_slurm_is_as_gone_as_its_job(me, queued, gone):
    inside = dataclasses.replace(me, cluster="c", task="7_2")
    other = dataclasses.replace(inside, host="elsewhere", machine="m", task="7_1")
    assert other.is_gone(inside, lambda user: queued) is gone


def test_other_cluster_is_unknown(me):
    inside = dataclasses.replace(me, cluster="c", task="7_2")
    other = dataclasses.replace(inside, host="elsewhere", machine="m", cluster="d")
    assert not other.is_gone(inside, never) and not other.is_gone(me, never)


def test_earlier_life_of_this_task_is_gone(me):
    inside = dataclasses.replace(me, cluster="c", task="7_2", life=1)
    other = dataclasses.replace(inside, host="elsewhere", machine="m", life=0)
    assert other.is_gone(inside, never) and other.same_task(inside)
    assert not dataclasses.replace(other, life=1).is_gone(inside, never), "a second worker of this task, elsewhere"


def test_task_has_a_name_that_survives_a_requeue(monkeypatch):
    for name, value in {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "10", "SLURM_ARRAY_TASK_ID": "2",
                        "SLURM_RESTART_COUNT": "3"}.items():
        monkeypatch.setenv(name, value)
    assert slurm.task() == "10_2" and slurm.life() == 3
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID")
    assert slurm.task() == "12"


def test_squeue_that_fails_says_nothing(monkeypatch, tmp_path):
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\necho 10_1\nexit 1\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert slurm.tasks("someone") is None
    squeue.write_text("#!/bin/sh\necho 10_1\necho 11\n")
    assert slurm.tasks("someone") == {"10_1", "11"}
    monkeypatch.setenv("PATH", "/nonexistent")
    assert slurm.tasks("someone") is None
