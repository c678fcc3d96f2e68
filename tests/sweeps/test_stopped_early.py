"""A job whose time limit is hardly longer than its warning is told to stop while it still starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
EARLY = f"""
import os, signal, sys
sys.path[:0] = [{str(HERE)!r}, {str(HERE.parents[1])!r}]
from sweeps.work import child
child.hold()
os.kill(os.getpid(), signal.SIGUSR1)
"""


def run(code, *arguments, **environment):
    command = [sys.executable, "-c", EARLY + code, *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_the_signal_is_kept_until_the_worker_catches_it_also_over_an_exec():
    later = f"import sys; sys.path[:0] = [{str(HERE.parents[1])!r}]; " \
            "from sweeps.work.child import Stop; stop = Stop(); stop.install(); print(stop.signal.name)"
    assert run(f"os.execv(sys.executable, [sys.executable, '-c', {later!r}])") == (0, "SIGUSR1\n")


@pytest.mark.parametrize(("life", "expected"), [("0", 75), ("3", 2)])
def test_a_job_that_never_begins_goes_back_to_the_queue_only_so_often(write_study, tmp_path, life, expected):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "7",
                   "SLURM_RESTART_COUNT": life}
    code, said = run("import fake_worker; sys.exit(fake_worker.main(*sys.argv[1:]))", write_study(), tmp_path / "runs",
                     **environment)
    assert code == expected, said
    assert "job 7 was told to stop before it began a trial: ask for more time (sbatch --time)" in said
    asked = (tmp_path / "asked").read_text() if (tmp_path / "asked").exists() else ""
    assert asked == ("requeue 7\n" if expected == 75 else "")
    assert not list((tmp_path / "runs" / "s").glob("0*")), "no trial was taken up"
