"""A trial's folder: ``config.yaml`` is what it trains, written first; training writes what ``auto`` chose into it, and
the other files beside it.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

CONFIG = "config.yaml"
REPORT, RESULT, LOG, STOP, SAMPLES = "report.jsonl", "result.json", "train.log", "STOP", "samples.txt"
HPARAMS, FAILURE = "hparams.json", "failure.json"
NLL, NLL_ERROR, BITS, SPEED = "val/nll", "val/nll_se", "val/bpb", "throughput/tokens_per_second"
OF_BOUND = {NLL, BITS, "val/ppl_bound"}
ABSURD = 10
"""So many times a uniform guess no run is off that learns anything."""


def config(folder: Path) -> Mapping[str, Any]:
    """What the trial trains, as plain values; empty where the file is not there."""
    try:
        return _config(folder / CONFIG, (folder / CONFIG).stat().st_mtime_ns)
    except FileNotFoundError:
        return {}


@lru_cache(maxsize=4096)
def _config(path: Path, changed: int) -> Mapping[str, Any]:
    """Read once, however many of its values are asked for: a study may have thousands of trials."""
    import yaml

    return yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}


def result(folder: Path) -> dict[str, Any] | None:
    """The result, or None if training did not end yet."""
    try:
        return json.loads((folder / RESULT).read_text())
    except FileNotFoundError:
        return None


def diverged(result: Mapping[str, Any]) -> str | None:
    """Why the bound of a trial that finished is no result: its run diverged, with numbers that are finite still."""
    bound, uniform = result.get("metrics", {}).get(NLL), result.get("corpus", {}).get("log_vocabulary")
    if bound is None or not uniform or bound <= ABSURD * uniform:
        return None
    return f"{NLL} is {bound:.3g}, more than {ABSURD} times log V = {uniform:.3g} (a uniform guess): it diverged"


def failure(folder: Path) -> dict[str, Any] | None:
    """What training said about its own failure, `class` and `message`; None if it said nothing."""
    try:
        found = json.loads((folder / FAILURE).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"class", "message"} <= found.keys() else None


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


def size(path: Path) -> int:
    """Bytes in a file; 0 if it is not there."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def log_since(folder: Path, start: int) -> str:
    """What the log got after its first `start` bytes."""
    try:
        with open(folder / LOG, "rb") as file:
            file.seek(start)
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def writable(folder: Path) -> bool:
    """Whether the disk takes a few thousand bytes in `folder`: rights alone do not tell a full one or a used-up quota.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(8192))
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        return False
    return True


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
