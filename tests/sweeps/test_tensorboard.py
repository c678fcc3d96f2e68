"""Runs that TensorBoard shows beside the trials: the mean over the seeds of a cell, and its band."""

import math
import shutil
import statistics

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from sweeps.records import history, storage
from sweeps.watch import tensorboard

# Student's t at 97.5 % by degrees of freedom, from a printed table.
STUDENT = {1: 12.706, 2: 4.303}


@pytest.fixture
def seeds(write_study, work, folder_of):
    """A study of two arms with three seeds each, all finished, as it was before its workers wrote means."""
    path = write_study(arms={"transformer": {}, "mamba": {"denoiser": "mamba"}}, seeds=[0, 1, 2],
                       overrides={"steps": 3})
    assert work(path)[0] == [0]
    means = folder_of(path).path / "mean"
    assert len(scalars(means / "mamba", "interval/val/nll/low")) == 3, "a worker writes them when a trial ends"
    shutil.rmtree(means)
    return path


def scalars(place, tag):
    events = EventAccumulator(str(place), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_the_mean_over_seeds_is_a_run_with_its_interval(seeds, folder_of, records_of):
    folder, records = folder_of(seeds), records_of(seeds)
    places = tensorboard.write_means(folder, records)
    assert sorted(places) == [folder.path / "mean" / name for name in ("mamba", "transformer")]
    for place, offset in zip(sorted(places), (-0.1, 0.0)):
        for index, step in enumerate((1, 2, 3)):
            values = [2.0 + offset + 0.05 * seed + 3 * math.exp(-step) for seed in range(3)]
            half = STUDENT[2] * statistics.stdev(values) / math.sqrt(3)
            mean = statistics.fmean(values)
            assert scalars(place, "val/nll")[index] == (step, pytest.approx(mean, rel=1e-6))
            assert scalars(place, "interval/val/nll/low")[index] == (step, pytest.approx(mean - half, rel=1e-5))
            assert scalars(place, "interval/val/nll/high")[index] == (step, pytest.approx(mean + half, rel=1e-5))
        assert scalars(place, "throughput/tokens_per_second")[0] == (1, 1500.0)
        assert not [tag for tag in EventAccumulator(str(place)).Reload().Tags()["scalars"] if "val/nll_se/" in tag]


def test_the_page_of_charts_has_the_band(seeds, folder_of, records_of):
    place = tensorboard.write_means(folder_of(seeds), records_of(seeds))[0]
    events = EventAccumulator(str(place), size_guidance={"tensors": 0}).Reload()
    (config,) = events.Tensors("custom_scalars__config__")
    (category,) = layout_pb2.Layout.FromString(config.tensor_proto.string_val[0]).category
    (chart,) = category.chart
    (series,) = chart.margin.series
    assert (series.value, series.lower, series.upper) == ("val/nll", "interval/val/nll/low", "interval/val/nll/high")
    assert set(events.Tags()["scalars"]) >= {series.value, series.lower, series.upper}


def test_written_again_it_is_the_same_file_and_with_more_seeds_another(seeds, folder_of, records_of):
    """And a TensorBoard that is looking follows."""
    folder, records = folder_of(seeds), records_of(seeds)
    first = [record for record in records if record.seed < 2]
    place = tensorboard.write_means(folder, first)[0]
    (old,) = place.iterdir()
    watching = EventAccumulator(str(place), size_guidance={"scalars": 0}).Reload()
    inode = old.stat().st_ino
    tensorboard.write_means(folder, first)
    assert [path.stat().st_ino for path in place.iterdir()] == [inode], "nothing new: not written"
    tensorboard.write_means(folder, records)
    assert sorted(place.iterdir())[0] == old and len(list(place.iterdir())) == 2
    mean = statistics.fmean(2.0 + 0.05 * seed for seed in range(3)) + (-0.1 if "mamba" in place.name else 0)
    expected = [(step, pytest.approx(mean + 3 * math.exp(-step))) for step in (1, 2, 3)]
    assert [(event.step, event.value) for event in watching.Reload().Scalars("val/nll")] == expected, "who was watching"
    assert scalars(place, "val/nll") == expected, "who looks now"


def test_no_more_than_the_last_two_files_are_kept(seeds, folder_of, records_of):
    folder, records = folder_of(seeds), records_of(seeds)
    for count in (1, 2, 3):
        place = tensorboard.write_means(folder, [record for record in records if record.seed < count])[0]
        assert len(list(place.iterdir())) == min(count, 2)


def test_steps_that_one_seed_does_not_report_have_no_mean():
    line = {"tokens": 1}
    runs = [[{"step": 1, "val/nll": 3.0, **line}, {"step": 2, "val/nll": 2.0, **line}],
            [{"step": 2, "val/nll": 4.0, **line}, {"step": 3, "val/nll": 1.0, **line}]]
    half = STUDENT[1] * 1.0  # the standard error of 2 and 4 is 1
    assert tensorboard.points(runs) == {"val/nll": {2: 3.0}, "interval/val/nll/low": {2: pytest.approx(3 - half, 1e-4)},
                                        "interval/val/nll/high": {2: pytest.approx(3 + half, 1e-4)}}
    assert tensorboard.points(runs[:1]) == {"val/nll": {1: 3.0, 2: 2.0}}, "one seed has no interval"


def test_no_mean_without_replicates(write_study, work, folder_of):
    """One seed each, or trials that a sampler made different."""
    sampled = {"space": {"lr": {"low": 0.001, "high": 0.01}}, "trials": 4, "seeds": [0, 1]}
    for name, keys in {"single": {"arms": {"a": {}}, "seeds": [0]}, "sampled": sampled}.items():
        path = write_study(name, overrides={"steps": 1}, **keys)
        work(path)
        folder = folder_of(path)
        assert tensorboard.write_means(folder, history.records(folder, storage.load(folder))) == []
        assert not (folder.path / "mean").exists()
