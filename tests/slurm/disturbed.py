"""A sweep on the test's cluster, and what can be done to it. It reads files, by none of the project's code."""

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Working:
    """A worker in the middle of a trial that has a checkpoint: what happens to it now may cost a few steps."""

    number: int
    life: int
    folder: Path
    task: str
    node: str
    pid: int


class Sweep:
    """The array `job`, which works on the study in `folder`."""

    def __init__(self, cluster, job: str, folder: Path):
        self.cluster, self.job, self.folder = cluster, job, folder

    def victim(self, *spared: str, seconds: float = 120) -> Working:
        """A worker whose trial has a checkpoint and half of its steps to go; none whose task is `spared`."""
        self.cluster.until(lambda: self._working(spared), seconds)
        return self._working(spared)[0]

    def lives(self) -> dict[int, int]:
        """How many workers each claimed trial had."""
        counts: dict[int, int] = {}
        for path in self._claims():
            counts[int(path.stem)] = counts.get(int(path.stem), 0) + 1
        return counts

    def kill(self, worker: Working) -> None:
        """SIGKILL: SLURM sees a task that failed, and does not start it again."""
        os.kill(worker.pid, signal.SIGKILL)

    def end_time(self, task: str, minutes: int) -> None:
        """Another time limit for a task. SLURM sends it the script's own signal when that comes near."""
        self.cluster.run("scontrol", "update", f"JobId={task}", f"TimeLimit={minutes}")

    def restarts(self, task: str) -> int:
        """How often SLURM queued a task again."""
        return int(self._told(task, "Restarts"))

    def waits(self, task: str) -> bool:
        """Whether a task is in the queue."""
        return self._told(task, "JobState") == "PENDING"

    def wait_for_restart(self, task: str, seconds: float) -> None:
        self.cluster.until(lambda: self.restarts(task) > 0 and self.waits(task), seconds)

    def _working(self, spared: tuple[str, ...]) -> list[Working]:
        running = set(self.cluster.run("squeue", "-h", "-t", "R", "-o", "%i %N").splitlines())
        last = {int(path.stem): path for path in sorted(self._claims(), key=lambda path: int(path.suffix[1:]))}
        found = []
        for number, path in last.items():
            owner = json.loads(path.read_text())
            for folder in self.folder.glob(f"{number:04d}-*"):
                begun = (folder / "checkpoints" / "last.ckpt").exists() and not (folder / "result.json").exists()
                halfway = (folder / "report.jsonl").exists()
                here = f"{owner['task']} {owner['host']}" in running and Path(f"/proc/{owner['pid']}").exists()
                if begun and not halfway and here and owner["task"] not in spared:
                    found.append(Working(number, int(path.suffix[1:]), folder, owner["task"], owner["host"],
                                         owner["pid"]))
        return found

    def _claims(self) -> list[Path]:
        return list((self.folder / "claims").glob("[0-9]*.[0-9]*"))

    def _told(self, task: str, field: str) -> str:
        words = self.cluster.run("scontrol", "show", "job", task).split()
        return next(word.partition("=")[2] for word in words if word.startswith(f"{field}="))
