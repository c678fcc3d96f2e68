"""What a worker asks of SLURM: who am I, which jobs exist, how long do I have, put me back into the queue."""

import os
import re
import subprocess

TIMEOUT = 20  # seconds; a controller that does not answer leaves the question open
DURATION = re.compile(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)")


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


def cluster_here() -> str | None:
    """The cluster that this machine's own commands ask, also outside a job; None without SLURM."""
    try:
        answer = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, timeout=TIMEOUT,
                                check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    settings = (line.partition("=") for line in answer.stdout.splitlines())
    return next((value.strip() for key, _, value in settings if key.strip() == "ClusterName"), None)


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


def time_left(task: str) -> tuple[float, float] | None:
    """Seconds that `task` has left, and its whole limit; None without a limit, or if SLURM did not say."""
    command = ["squeue", "--noheader", f"--jobs={task}", "--format=%L %l"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    found = [_seconds(word) for word in answer.stdout.split()]
    return (found[0], found[1]) if len(found) == 2 and None not in found else None


def _seconds(text: str) -> float | None:
    """SLURM's ``days-hours:minutes:seconds``, where what is 0 in front is left out; None for UNLIMITED and the like."""
    found = DURATION.fullmatch(text)
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
