"""Who works on a trial, and whether that process is known to be gone. Unknown is not dead."""

import getpass
import os
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from sweeps.cluster import slurm

PROC = Path("/proc")


@dataclass(frozen=True, kw_only=True, slots=True)
class Owner:
    """A worker process: enough to tell it from every other one, on this machine or on another.

    `machine` names the computer, `boot` its present start and the process namespace (a container's): a process id
    means something only where both are equal.
    """

    user: str
    host: str
    machine: str
    boot: str | None
    pid: int
    started: str | None
    cluster: str | None = None
    task: str | None = None
    life: int = 0

    @classmethod
    def current(cls) -> Self:
        """This process."""
        pid, host = os.getpid(), slurm.node() or socket.gethostname()
        return cls(user=getpass.getuser(), host=host, machine=_machine(host), boot=_boot(), pid=pid,
                   started=_started(pid), cluster=slurm.cluster(), task=slurm.task(), life=slurm.life())

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        """Read back what `to_dict` gave; keys of a newer version are ignored."""
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in raw.items() if key in known})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}" + (f" job {self.task}" if self.task else "")

    def same_task(self, other: "Owner") -> bool:
        """Whether both belong to one array task, perhaps in different lives of it."""
        return self.task is not None and (self.cluster, self.task) == (other.cluster, other.task)

    def is_gone(self, me: "Owner", tasks: Callable[[str], set[str] | None] = slurm.tasks) -> bool:
        """Whether the process is known to be dead, judged from `me`; `tasks` answers for SLURM."""
        if self.same_task(me) and self.life != me.life:
            return True  # an earlier life of this very task: SLURM ended it before it started this one
        here = (self.host, self.machine) == (me.host, me.machine)
        if here and self.boot == me.boot:
            return _started(self.pid) != self.started
        if self.task is None:
            return here and _start_of(self.boot) != _start_of(me.boot)  # the machine was started again
        if self.same_task(me) or self.cluster != me.cluster:
            return False
        queued = tasks(self.user)
        return queued is not None and self.task not in queued

    def is_alive(self, me: "Owner", tasks: Callable[[str], set[str] | None] = slurm.tasks) -> bool:
        """Whether the process is known to live, judged from `me`. If neither this nor `is_gone`: unknown."""
        if self.is_gone(me, tasks):
            return False
        if (self.host, self.machine, self.boot) == (me.host, me.machine, me.boot):
            return True
        return self.task is not None and self.cluster == me.cluster and self.task in (tasks(self.user) or ())


def _machine(host: str) -> str:
    """The machine's own id where there is one: host names repeat."""
    try:
        return Path("/etc/machine-id").read_text().strip() or host
    except OSError:
        return host


def _boot() -> str | None:
    """This start of the machine and this process namespace: within both, a process id names one process."""
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink(PROC / 'self/ns/pid')}"
    except OSError:
        return None


def _start_of(boot: str | None) -> str | None:
    return boot and boot.partition(" ")[0]


def _started(pid: int) -> str | None:
    """When process `pid` started, as the kernel counts; None if there is none, or if it is only a zombie.

    Without /proc (macOS) the answer is "running", so there a reused id passes for the old process: it waits.
    """
    if not PROC.is_dir():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return "running"
    try:
        # The command's name, in parentheses, may hold spaces: count fields after it.
        state, *rest = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else rest[18]
