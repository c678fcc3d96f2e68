"""A sweep on the test's cluster, and what can be done to it. It reads files, by none of the project's code."""

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Held:
    """A worker whose trial has a checkpoint, is in the midst of a step and waits for `go`; `life` counts from 0."""

    number: int
    life: int
    folder: Path
    task: str
    node: str
    pid: int

    def go(self) -> None:
        """Let the trial train on, in this life and in later ones."""
        (self.folder / "go").touch()

    @property
    def asked(self) -> bool:
        """Whether training was told to stop, by a signal."""
        return "stopping after this step" in (self.folder / "train.log").read_text()


class Sweep:
    """The array `job`, which works on the study in `folder`."""

    def __init__(self, cluster, job: str, folder: Path):
        self.cluster, self.job, self.folder = cluster, job, folder

    def held(self, count: int = 1, seconds: float = 120) -> list[Held]:
        """The workers that are held, once there are `count` of them, by their nodes' names."""
        self.cluster.until(lambda: len(self._held()) >= count, seconds)
        return self._held()

    def go(self) -> None:
        """Let all trials train on."""
        (self.folder / "go").touch()

    def lives(self) -> dict[int, int]:
        """How many workers each claimed trial had."""
        claimed = [int(path.stem) for path in self._claims()]
        return {number: claimed.count(number) for number in claimed}

    def kill(self, worker: Held) -> None:
        """SIGKILL: SLURM sees a task that failed, and does not start it again."""
        os.kill(worker.pid, signal.SIGKILL)

    def limit(self, task: str, minutes: int) -> None:
        """Another time limit for a task. SLURM sends it the script's own signal when that comes near."""
        self.cluster.run("scontrol", "update", f"JobId={task}", f"TimeLimit={minutes}")

    def restarts(self, task: str) -> int:
        """How often SLURM queued a task again."""
        words = self.cluster.run("scontrol", "show", "job", task).split()
        return next(int(word.partition("=")[2]) for word in words if word.startswith("Restarts="))

    def _held(self) -> list[Held]:
        last = {int(path.stem): path for path in sorted(self._claims(), key=lambda path: int(path.suffix[1:]))}
        found = []
        for number, path in last.items():
            owner = json.loads(path.read_text())
            for mark in self.folder.glob(f"{number:04d}-*/held"):
                if _parent(mark.read_text()) == owner["pid"] and not (mark.parent / "go").exists():
                    life = int(path.suffix[1:])
                    found.append(Held(number, life, mark.parent, owner["task"], owner["host"], owner["pid"]))
        return sorted(found, key=lambda worker: worker.node)

    def _claims(self) -> list[Path]:
        return list((self.folder / "claims").glob("[0-9]*.[0-9]*"))


def _parent(pid: str) -> int | None:
    """The process that started `pid`, if that still runs."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return None
