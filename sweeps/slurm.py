"""What a worker asks of SLURM: who am I, which jobs exist, put me back into the queue."""

import os
import subprocess

TIMEOUT = 20  # seconds; a controller that does not answer leaves the question open


def task() -> str | None:
    """This array task (``123_4``) or job (``123``), a name that survives a requeue; None outside SLURM."""
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{index}" if array and index else os.environ.get("SLURM_JOB_ID")


def life() -> int:
    """How often this job was requeued."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def node() -> str | None:
    """SLURM's name of this node."""
    return os.environ.get("SLURMD_NODENAME")


def cluster() -> str | None:
    """The cluster's name."""
    return os.environ.get("SLURM_CLUSTER_NAME")


def tasks(user: str) -> set[str] | None:
    """The jobs and array tasks of `user` that are queued or running; None if SLURM did not say.

    All of them are listed: asked for one job that it has forgotten, squeue fails as it does when it knows nothing.
    """
    command = ["squeue", "--noheader", "--array", f"--user={user}", "--format=%i"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return {line.strip() for line in answer.stdout.splitlines()}


def requeue(task: str) -> bool:
    """Ask SLURM to start this task again. It kills the caller soon after."""
    try:
        return subprocess.run(["scontrol", "requeue", task], timeout=TIMEOUT).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False
