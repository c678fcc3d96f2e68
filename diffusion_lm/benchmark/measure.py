"""Time and memory, measured so that they can be compared: side by side, and with everything that they depend on."""

import csv
import io
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from diffusion_lm.errors import RunError
from diffusion_lm.files import atomic_path, write_json, write_text

_STATUS = Path("/proc/self/status")


PRECISION = {"float32": None, "bfloat16": torch.bfloat16}
"""What autocast is told."""


def check_numbers(config: Any, *may_be_zero: str) -> None:
    """Refuse numbers below 1 (0 for `threads` and those named)."""
    for field in fields(config):
        value, least = getattr(config, field.name), 0 if field.name in ("threads", *may_be_zero) else 1
        for number in value if isinstance(value, list | tuple) else (value,):
            if isinstance(number, int) and number < least:
                raise ValueError(f"{field.name}: got {number}, expected at least {least}")


def check_settings(config: Any, *may_be_zero: str) -> None:
    """Refuse such numbers, and a GPU that is not there."""
    check_numbers(config, *may_be_zero)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: got cuda, but torch finds no GPU here; choose cpu")
    if config.device == "cuda" and getattr(config, "clock", "wall") == "processor":
        raise ValueError("clock: got processor, which does not see the GPU's time; choose wall")


def interleaved(
    steps: dict[Any, Callable[[int], None]],
    repeats: int | Callable[[Any], int],
    device: str,
    uncounted: int = 1,
    ready: Callable[[Any], None] | None = None,
) -> dict[Any, float]:
    """Median seconds of each step over `repeats` rounds (or as many as that says of its name, the first ones), in turn,
    after `uncounted` rounds that do not count.

    A step is called with the number of its round, after `ready` with its name, off the clock. Other load on the machine
    meets all of them alike.
    """
    seconds: dict[Any, list[float]] = {name: [] for name in steps}
    rounds = {name: uncounted + (repeats if isinstance(repeats, int) else repeats(name)) for name in steps}
    for number in range(max(rounds.values(), default=0)):
        for name, step in steps.items():
            if number >= rounds[name]:
                continue
            if ready is not None:
                ready(name)
            _wait(device)
            began = time.perf_counter()
            step(number)
            _wait(device)
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values[uncounted:]) for name, values in seconds.items()}


def both_clocks(
    steps: dict[Any, Callable[[int], None]],
    repeats: int | Callable[[Any], int],
    device: str,
    uncounted: int = 1,
    ready: Callable[[Any], None] | None = None,
) -> dict[str, dict[Any, float]]:
    """`interleaved` by the clock on the `wall` and by that of the `processor`: the time of all threads of this process,
    which leaves out the waiting for cores that other jobs hold."""
    spent: dict[Any, list[float]] = {name: [] for name in steps}
    clocked = {name: _clocked(step, spent[name]) for name, step in steps.items()}
    wall = interleaved(clocked, repeats, device, uncounted, ready)
    return {
        "wall": wall,
        "processor": {name: statistics.median(values[uncounted:]) for name, values in spent.items()},
    }


def _clocked(step: Callable[[int], None], spent: list[float]) -> Callable[[int], None]:
    """The step, which notes the processor time that it took."""

    def run(number: int) -> None:
        began = time.process_time()
        step(number)
        spent.append(time.process_time() - began)

    return run


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of a module returns in a fresh Python process, whose memory nothing else has used."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise RunError(
                "benchmark: the process that measures memory was killed, most likely for want of memory; "
                "choose smaller sizes"
            ) from None


class PeakMemory:
    """Bytes at most in use since it was made, beyond those in use then.

    CUDA: what torch has allocated. Elsewhere: resident memory of the process, from /proc/self/status where there is
    one; getrusage, which hands a parent's peak on to its children, where there is none.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.before = torch.cuda.memory_allocated() if device == "cuda" else _resident("VmRSS")

    def bytes(self) -> int:
        """The peak so far."""
        peak = torch.cuda.max_memory_allocated() if self.device == "cuda" else _resident("VmHWM")
        return peak - self.before

    @staticmethod
    def source(device: str) -> str:
        """Where the numbers come from."""
        if device == "cuda":
            return "torch.cuda.max_memory_allocated"
        return "VmHWM of a process of its own" if _STATUS.exists() else "ru_maxrss of a process of its own"


def surroundings(device: str) -> dict[str, Any]:
    """What times depend on: machine, torch, threads."""
    gpu = f", {torch.cuda.get_device_name()}" if device == "cuda" else ""
    return {
        "machine": f"{os.cpu_count()} x {_processor()}{gpu}, {platform.system()}",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def write_measured(found: dict[str, Any], folder: Path, text: str, columns: Sequence[str], figure: Any) -> None:
    """table.md, times.csv with the rows in `found["times"]`, times.png and everything as JSON in found.json."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "table.md", text + "\n")
    write_json(folder / "found.json", found)
    out = io.StringIO()
    rows = csv.DictWriter(out, columns, lineterminator="\n")
    rows.writeheader()
    rows.writerows(found["times"])
    write_text(folder / "times.csv", out.getvalue())
    with atomic_path(folder / "times.png") as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _resident(field: str) -> int:
    if _STATUS.exists():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _processor() -> str:
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
