"""Whether the kernel killed a process of ours because its memory was used up."""

import re
from pathlib import Path

ROOT, PROC = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
COUNT = re.compile(r"^oom_kill (\d+)$", re.M)


def kills(root: Path = ROOT, proc: Path = PROC) -> int | None:
    """How many processes of this job, or of this cgroup, were killed so far; None if the kernel does not say.

    A step that srun starts is a cgroup beside the worker's, so under SLURM the job's own is asked, which counts all in
    it. Without memory accounting there is no such file.
    """
    for path in _places(root, proc):
        try:
            found = COUNT.search(path.read_text())
        except OSError:
            continue
        if found:
            return int(found[1])
    return None


def _places(root: Path, proc: Path) -> list[Path]:
    """Version 2's file, and version 1's."""
    try:
        lines = proc.read_text().splitlines()
    except OSError:
        return []
    # The last two: a container that sees its own group as the root. A machine's root counts nothing.
    places, roots = [], [root / "memory.events", root / "memory" / "memory.oom_control"]
    for line in lines:
        _, controllers, name = line.split(":", 2)
        group = _of_job(Path(name.lstrip("/")))
        if not controllers:
            places += [root / group / "memory.events", root / "unified" / group / "memory.events"]
        elif "memory" in controllers.split(","):
            places.append(root / "memory" / group / "memory.oom_control")
    return places + roots


def _of_job(group: Path) -> Path:
    """The part of the path up to SLURM's ``job_123``; the whole where there is none."""
    parts = group.parts
    jobs = [index for index, part in enumerate(parts) if re.fullmatch(r"job_\d+", part)]
    return Path(*parts[: jobs[0] + 1]) if jobs else group
