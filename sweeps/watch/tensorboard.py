"""Runs for TensorBoard that no trial trains: the mean over each cell's seeds, with its band.

``mean/CELL`` has the scalars of the trials under their own names, so that it is one more line in their charts, and
for what is validated ``interval/NAME/low`` and ``interval/NAME/high``, the ends of the 95 % interval of that mean.
"""

import io
import re
import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lm.files import atomic_path
from sweeps.analysis import statistics
from sweeps.definition.design import LONGEST_NAME
from sweeps.records import history

if TYPE_CHECKING:
    from optuna import Study
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    from sweeps.definition.study import StudyConfig
    from sweeps.records.folder import StudyFolder
    from sweeps.records.history import TrialRecord

MEANS = "mean"
ENDS = ("interval/{}/low", "interval/{}/high")
BANDS = (("bound (nats per token): mean and 95 % interval over seeds", "val/nll"),
         ("mean squared error: mean and 95 % interval over seeds", "val/mse"))
NO_SCALARS = ("step", "tokens")
Points = dict[str, dict[int, float]]


def write_means(folder: "StudyFolder", records: Iterable["TrialRecord"]) -> list[Path]:
    """Write the run of every cell of `records` that has several seeds and a finished trial; returns their folders.

    Give all trials of a cell or none. What is there already is left alone; else a new file hides the old one, and a
    TensorBoard that is looking follows.
    """
    if not has_means(folder.config):
        return []
    cells: dict[str, list[TrialRecord]] = defaultdict(list)
    for record in records:
        if record.state == "complete":
            cells[record.cell].append(record)
    written = []
    for cell, runs in cells.items():
        place = folder.path / MEANS / run_name(cell)
        ended = max(run.trial.datetime_complete or datetime.now() for run in runs).astimezone(UTC)
        _replace(place, ended, _events(points([run.reports for run in runs]), ended.timestamp()))
        written.append(place)
    return written


def write_mean(folder: "StudyFolder", study: "Study", cell: str) -> None:
    """Write the run of one cell, of which a trial has just ended."""
    if has_means(folder.config):
        write_means(folder, history.records(folder, study, cell))


def has_means(config: "StudyConfig") -> bool:
    """Whether the trials of a cell are replicates: several seeds, and no sampler that makes them different."""
    return len(config.seeds) > 1 and config.factorial


def run_name(cell: str) -> str:
    """A cell's name as a folder: that of its trials, without number and seed."""
    return re.sub(r"[^A-Za-z0-9._+,=-]+", "_", cell)[:LONGEST_NAME]


def points(runs: Sequence[Sequence[dict[str, Any]]]) -> Points:
    """{scalar: {step: value}} of the mean over `runs`, each the lines of one run's report.

    Only steps that every run reports: a mean over fewer of them would jump. With two runs and more the ends of the
    interval stand beside the mean.
    """
    found: Points = defaultdict(dict)
    by_step = [{line["step"]: line for line in run} for run in runs]
    for step in sorted(set.intersection(*(set(lines) for lines in by_step))):
        for name in by_step[0][step]:
            values = [lines[step].get(name) for lines in by_step]
            if name in NO_SCALARS or not all(isinstance(value, int | float) for value in values):
                continue
            over_seeds = statistics.estimate(values)
            found[name][step] = over_seeds.mean
            if over_seeds.interval and name.startswith("val/") and not name.endswith("_se"):
                for end, value in zip(ENDS, over_seeds.interval):
                    found[end.format(name)][step] = value
    return dict(found)


def _events(scalars: Points, wall_time: float) -> bytes:
    """An event file. Its first event hides what an earlier file of the same run held."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    events = [Event(wall_time=wall_time, file_version="brain.Event:2"),
              Event(wall_time=wall_time, step=0, session_log=SessionLog(status=SessionLog.START))]
    if layout := _layout(scalars):
        events.append(Event(wall_time=wall_time, summary=layout))
    for name, values in scalars.items():
        events += [_scalar(name, step, value, wall_time, Event, Summary) for step, value in values.items()]
    # By step: TensorBoard takes an earlier step in a later event for a run that went back to it.
    events.sort(key=lambda event: event.step)
    file = io.BytesIO()
    writer = RecordWriter(file)
    for event in events:
        writer.write(event.SerializeToString())
    return file.getvalue()


def _scalar(name: str, step: int, value: float, wall_time: float, event: type, summary: type) -> "Event":
    return event(wall_time=wall_time, step=step, summary=summary(value=[summary.Value(tag=name, simple_value=value)]))


def _layout(scalars: Points) -> "Summary | None":
    """The page "Custom Scalars": the means with their bands; None without any."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata

    charts = []
    for title, name in BANDS:
        low, high = (end.format(name) for end in ENDS)
        if low in scalars:
            series = layout_pb2.MarginChartContent.Series(value=name, lower=low, upper=high)
            charts.append(layout_pb2.Chart(title=title, margin=layout_pb2.MarginChartContent(series=[series])))
    if not charts:
        return None
    layout = layout_pb2.Layout(category=[layout_pb2.Category(title="mean over seeds", chart=charts)])
    # TensorBoard's own function for this needs TensorFlow.
    plugin = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME))
    tensor = TensorProto(dtype="DT_STRING", string_val=[layout.SerializeToString()])
    return Summary(value=[Summary.Value(tag=metadata.CONFIG_SUMMARY_TAG, tensor=tensor, metadata=plugin)])


def _replace(place: Path, ended: datetime, content: bytes) -> None:
    """A file with `content` in `place` that hides the one before it; nothing if the last one holds just that.

    The one before stays: a TensorBoard that is reading it finds its successor only while it is there.
    """
    old = sorted(place.glob("events.out.tfevents.*"))
    if old and old[-1].read_bytes() == content:
        return
    name = f"events.out.tfevents.{ended.timestamp():017.6f}.mean"
    # TensorBoard reads whatever has "tfevents" in its name, so the unfinished file must not have it.
    unfinished = place / f"unfinished-{uuid.uuid4().hex}"
    with atomic_path(unfinished) as temporary:
        temporary.write_bytes(content)
    unfinished.replace(place / name)
    for path in old[:-1]:
        path.unlink(missing_ok=True)
