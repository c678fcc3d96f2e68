"""What a training leaves behind that must not depend on how often it was interrupted."""

import json
from collections import Counter
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

TIMING = "throughput/"  # how fast it went is no property of what was computed


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Each TensorBoard scalar as it is shown: (step, value), steps that were done again once."""
    shown = EventAccumulator(str(run), size_guidance={"scalars": 0, "tensors": 0})
    shown.Reload()
    found = {tag: [(event.step, event.value) for event in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}
    for tag in shown.Tags()["tensors"]:
        values = [(event.step, event.tensor_proto) for event in shown.Tensors(tag)]
        found[tag] = [(step, proto.float_val[0]) for step, proto in values if proto.float_val]
    return {tag: points for tag, points in found.items() if points and not tag.startswith((TIMING, "hp/"))}


def times_done(run: Path, tag: str = "train/loss") -> Counter[int]:
    """How often each step was logged, counting what a later life did again."""
    return Counter(event.step for path in run.glob("events*") for event in EventFileLoader(str(path)).Load()
                   for value in event.summary.value if value.tag == tag)


def reports(run: Path) -> list[dict[str, float]]:
    """The lines of report.jsonl, without the speed."""
    lines = map(json.loads, (run / "report.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if not key.startswith(TIMING)} for line in lines]


def weights(run: Path) -> dict[str, bytes]:
    """The final weights, bit for bit."""
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]
    return {name: tensor.contiguous().numpy().tobytes() for name, tensor in state.items()}


def lives(run: Path) -> list[int]:
    """The step at which each process began that trained."""
    begun = [line for line in (run / "train.log").read_text().splitlines() if " tokens planned" in line]
    return [int(line.partition("resuming at step ")[2] or 0) for line in begun]
