"""A trial's folder: ``config.yaml`` is what it trains, written first; training writes what ``auto`` chose into it, and
the other files beside it.
"""

import json
from pathlib import Path
from typing import Any

CONFIG = "config.yaml"
REPORT, RESULT, LOG, STOP = "report.jsonl", "result.json", "train.log", "STOP"
NLL, NLL_ERROR, BITS, SPEED = "val/nll", "val/nll_se", "val/bpb", "throughput/tokens_per_second"


def result(folder: Path) -> dict[str, Any] | None:
    """The result, or None if training did not end yet."""
    try:
        return json.loads((folder / RESULT).read_text())
    except FileNotFoundError:
        return None


def reports(folder: Path) -> list[dict[str, Any]]:
    """One report per validation, by step. A resumed run repeats steps: the last report of a step counts."""
    by_step = {line["step"]: line for line in Tail(folder / REPORT).read()}
    return [by_step[step] for step in sorted(by_step)]


def last_line(folder: Path) -> str:
    """The last line of the log that says something, for a message about a failure."""
    try:
        lines = (folder / LOG).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        lines = []
    return next((line.strip() for line in reversed(lines) if line.strip()), "the log is empty")


class Tail:
    """The lines that were added to a file of JSON lines since the last look."""

    def __init__(self, path: Path):
        self.path = path
        self.offset = 0

    def read(self) -> list[dict[str, Any]]:
        """The new whole lines; half a line is left for the next look, a line that a crash broke is passed over."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        return [line for line in map(_parse, whole.splitlines()) if line is not None]


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and isinstance(value.get("step"), int) else None
