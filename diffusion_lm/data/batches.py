"""Sequences per optimiser step of a run that went on with another batch size: ``batches.json`` in its folder.

Its entries ``[step, position, size]``: after `step` optimiser steps, at `position` of the training order, batches of
`size` sequences begin. A run without the file has one size from its beginning on.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_lm.files import write_json

FILE = "batches.json"
Changes = list[list[int]]


def read(run: Path, size: int) -> Changes:
    """The changes of `run`, the first at step 0; `size` is what a run without the file has."""
    try:
        return json.loads((run / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return [[0, 0, size]]


def positions(changes: Changes, step: int) -> range:
    """Places of the training order that the `step`-th optimiser step, counted from 1, takes."""
    before, first, size = next(change for change in reversed(changes) if change[0] < step)
    start = first + (step - 1 - before) * size
    return range(start, start + size)


def note(run: Path, state: Mapping[str, Any], size: int) -> None:
    """Write down that `run` goes on from a data module's `state` with batches of `size` sequences."""
    old = read(run, state["global_batch"])
    step = state.get("step", state["consumed"] // state["global_batch"])
    new = [change for change in old if change[0] < step] or [[0, 0, size]]  # one that was never trained with is dropped
    if new[-1][2] != size:
        new.append([step, state["consumed"], size])
    if new != old:
        write_json(run / FILE, new)
