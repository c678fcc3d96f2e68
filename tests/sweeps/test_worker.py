"""Workers as real processes on a stand-in for training: what comes of each trial, and who takes over whom."""

import json
import signal
from collections import Counter

import pytest

from sweeps.__main__ import main
from sweeps.records.owner import _started

ARMS = {"transformer": {"denoiser": "transformer"}, "mamba": {"denoiser": "mamba"}, "hybrid": {"denoiser": "hybrid"}}


def lives(record):
    """The step at which each life of the trial's training began."""
    return [int(line.split()[-1]) for line in (record.folder / "lives.txt").read_text().splitlines()]


def states(records):
    return Counter(record.state for record in records)


def test_four_workers_on_twelve_cells_train_each_once(write_study, work, records_of, each_storage):
    path = write_study(arms=ARMS, space={"width": [32, 64]}, seeds=[0, 1], overrides={"steps": 3})
    codes, said = work(path, 4, "report")
    records = records_of(path)
    assert codes == [0] * 4, said
    assert states(records) == {"complete": 12}
    assert len({(record.cell, record.seed) for record in records}) == 12
    assert all(lives(record) == [0] for record in records)
    assert {record.note("worker") for record in records} and records[0].note("restarts") == 0
    assert [record.trial.intermediate_values for record in records if 3 not in record.trial.intermediate_values] == []
    assert "minus" not in said and "± s.e. seeds" in said, "the worker that ends the study prints the table"


@pytest.mark.slow
def test_sampled_study_has_exactly_its_trials(write_study, work, records_of):
    path = write_study(arms=ARMS, space={"lr": {"low": 1e-4, "high": 1e-2, "log": True}, "width": {"low": 8, "high": 64,
                                         "step": 8}}, trials=7, overrides={"steps": 2})
    codes, _ = work(path, 3)
    records = records_of(path)
    assert codes == [0] * 3 and len(records) == 7 and states(records) == {"complete": 7}
    assert Counter(record.cell for record in records) == {"transformer": 3, "mamba": 2, "hybrid": 2}
    assert len({record.trial.params["lr"] for record in records}) == 7, "no two workers draw the same value"
    assert all(record.trial.params["width"] % 8 == 0 for record in records)


def test_killed_worker_is_succeeded_from_the_checkpoint(write_study, start, work, records_of, folder_of, eventually,
                                                        each_storage):
    path = write_study(arms={"mamba": ARMS["mamba"]}, overrides={"steps": 12, "pause": 0.1})
    folder = folder_of(path)
    (victim,) = start(path)
    checkpoint = folder.path / "0000-mamba" / "checkpoint"
    eventually(lambda: checkpoint.exists() and int(checkpoint.read_text() or 0) >= 3)
    child = int((checkpoint.parent / "lives.txt").read_text().split()[0])
    victim.kill()
    victim.wait()
    eventually(lambda: _started(child) is None)
    codes, said = work(path, 3)
    assert codes == [0, 0, 0]
    (record,) = records_of(path)
    assert record.state == "complete" and record.note("restarts") == 1
    begun = lives(record)
    assert len(begun) == 2 and begun[1] >= 3, "one successor, from the checkpoint"
    assert sorted(record.trial.intermediate_values)[-1] == 12
    assert "trial 0 starts, continued in its life 2" in said


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_stopped_worker_leaves_the_trial_to_be_continued(write_study, start, work, records_of, folder_of, eventually,
                                                         tmp_path, capsys, number, code):
    path = write_study(overrides={"steps": 30, "pause": 0.05})
    checkpoint = folder_of(path).path / "0000-fake" / "checkpoint"
    (worker,) = start(path)
    eventually(lambda: checkpoint.exists() and checkpoint.read_text())
    worker.send_signal(number)
    said, _ = worker.communicate(timeout=20)
    assert worker.returncode == code and "stopped; the same command continues it" in said
    step = int(checkpoint.read_text())
    assert 0 < step < 30 and states(records_of(path)) == {"running": 1}
    assert main(["status", str(path), "--root", str(tmp_path / "runs")]) == 0
    assert "its worker is gone: the next worker continues it" in capsys.readouterr().out
    codes, _ = work(path)
    (record,) = records_of(path)
    assert codes == [0] and record.state == "complete" and lives(record) == [0, step]


def test_crash_is_tried_once_more(write_study, work, records_of):
    path = write_study(arms={"once": {"fault": "crash once"}, "always": {"fault": "crash"}})
    codes, said = work(path)
    once, always = records_of(path)
    assert codes == [1] and once.state == "complete" and lives(once) == [0, 1]
    assert always.state == "fail" and len(lives(always)) == 2
    assert always.note("reason").startswith("exit status 1: CUDA error: out of memory (code, 2 times on ")
    assert always.note("reason") in said


def test_bad_input_is_not_tried_again(write_study, work, records_of):
    path = write_study(arms={"bad": {"fault": "bad"}, "good": {}})
    codes, _ = work(path, 1, "report")
    bad, good = records_of(path)
    assert codes == [1] and bad.state == "fail" and good.state == "complete" and lives(bad) == [0]
    assert bad.note("reason").startswith("exit status 2: error: shards: no such folder (input, once on ")
    assert "shards: no such folder" in (bad.folder.parent / "report.md").read_text(), "the report says why"


def test_value_that_is_no_number_fails_the_trial(write_study, work, records_of):
    path = write_study(overrides={"fault": "nan", "steps": 2})
    codes, _ = work(path)
    (record,) = records_of(path)
    assert codes == [1] and record.state == "fail" and record.note("reason") == "val/nll is nan"


def test_bound_that_is_absurd_is_no_result(write_study, work, records_of):
    """A run that diverged, and whose numbers are finite still."""
    path = write_study(arms={"good": {}, "bad": {"fault": "absurd"}}, overrides={"steps": 2})
    codes, _ = work(path)
    good, bad = records_of(path)
    assert codes == [1] and good.state == "complete" and (bad.state, bad.note("failure")) == ("fail", "not_finite")
    assert bad.note("reason") == ("val/nll is 8.8e+31, more than 10 times log V = 5.55 (a uniform guess): it diverged")


def test_trial_without_a_bound_fails_a_study_of_bounds_in_one_line(write_study, work, records_of):
    path = write_study(overrides={"fault": "no bound", "steps": 2})
    codes, said = work(path, 1, "report")
    (record,) = records_of(path)
    assert codes == [1] and record.state == "fail"
    assert record.note("reason") == "val/nll: the trial reports none (no bound?); compare by another metric"
    assert "Traceback" not in said


def test_child_that_stops_unasked_is_continued(write_study, work, records_of):
    path = write_study(overrides={"fault": "interrupted once"})
    codes, _ = work(path)
    (record,) = records_of(path)
    assert codes == [0] and record.state == "complete" and lives(record) == [0, 1]


@pytest.mark.slow
def test_pruned_trial_stops_early_and_says_why(write_study, work, records_of):
    path = write_study(pruner={"name": "ThresholdPruner", "upper": 5.0}, overrides={"steps": 200, "pause": 0.05},
                       arms={"diverges": {"lr": 0.5}, "learns": {"steps": 3}})
    codes, _ = work(path, 1, "report")
    diverges, learns = records_of(path)
    assert codes == [0] and learns.state == "complete" and diverges.state == "pruned"
    assert diverges.result["step"] < 200 and diverges.note("reason").endswith("by ThresholdPruner")
    assert "pruned at step" in (diverges.folder.parent / "report.md").read_text()


def test_two_metrics_are_told_and_compared(write_study, work, records_of):
    path = write_study(metrics={"throughput/tokens_per_second": "maximize", "val/nll": "minimize"},
                       sampler="NSGAIISampler", space={"width": [64, 128]}, overrides={"steps": 2})
    codes, said = work(path)
    assert codes == [0], said
    assert [record.trial.values[0] for record in records_of(path)] == [1500, 2000]


def test_worker_that_died_before_telling_costs_nothing(write_study, start, work, records_of, folder_of, eventually):
    path = write_study(overrides={"steps": 2})
    assert work(path)[0] == [0]
    folder = folder_of(path)
    journal = folder.journal.read_text().splitlines(keepends=True)
    # Forget what the worker said after training ended.
    told = next(index for index, line in enumerate(journal) if json.loads(line)["op_code"] == 6
                and json.loads(line)["state"] == 1)
    folder.journal.write_text("".join(journal[:told]))
    assert states(records_of(path)) == {"running": 1}
    assert work(path)[0] == [0]
    (record,) = records_of(path)
    assert record.state == "complete" and lives(record) == [0], "the result is taken, nothing is trained again"
