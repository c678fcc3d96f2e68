"""Where and from what code a trial ran."""

import json
import os
import platform
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NO_GPU = "no GPU"
COPIED = "code.json"


@cache
def commit() -> str | None:
    """The commit of the code, with ``+changes`` if files differ from it; None outside a git checkout.

    A copy that a study runs from (sweeps/cluster/snapshot.py) says of what commit it was made.
    """
    if (ROOT / COPIED).is_file():
        return json.loads((ROOT / COPIED).read_text())["git"]
    head = _output("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD")
    if head is None:
        return None
    return head + ("+changes" if _output("git", "-C", str(ROOT), "status", "--porcelain", "-uno") else "")


@cache
def machine() -> str:
    """Processor, cores and GPUs in one line: throughput means nothing without it."""
    gpus = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    names = gpus.splitlines() if gpus else []
    counted = [f"{names.count(name)} x {name}" for name in dict.fromkeys(names)]
    return ", ".join([f"{os.cpu_count()} x {_processor()}", *(counted or [NO_GPU]), platform.system()])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
