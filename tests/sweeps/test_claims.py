"""Who gets which trial, in a journal and in PostgreSQL: each once, dead workers succeeded, unknown ones left alone."""

import dataclasses
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from optuna.trial import TrialState

from diffusion_lm.errors import DiskError
from sweeps.definition import planner
from sweeps.records import storage
from sweeps.records.claim import Claims
from sweeps.records.owner import Owner

CLAIMERS = Path(__file__).parent / "fake_claimers.py"


@pytest.fixture
def plan(write_study, folder_of, experiments):
    """Plans a study; returns its folder and a function that makes a worker's claims."""

    def make(**keys):
        path = write_study(**keys)
        folder = folder_of(path)
        planner.plan(folder, experiments)
        return folder, lambda me=None: Claims(folder, storage.load(folder), me or Owner.current())

    return make


@pytest.fixture
def gone():
    """A worker on this machine that is known to have ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return dataclasses.replace(Owner.current(), pid=process.pid)


def elsewhere():
    return dataclasses.replace(Owner.current(), host="elsewhere", machine="m", boot=None)


def states(folder):
    return [trial.state for trial in storage.load(folder).trials]


def at_once(folder, path, count, how):
    done = subprocess.run([sys.executable, str(CLAIMERS), str(path), str(folder.path.parent), str(count), how],
                          capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return [int(number) for number in done.stdout.split()]


@pytest.mark.slow
def test_sixteen_workers_at_once_lose_no_trial_and_repeat_none(plan, each_storage):
    folder, _ = plan(arms={f"arm{number}": {} for number in range(16)}, seeds=[0, 1])
    claimed = at_once(folder, folder.definition, 16, "with_claims")
    trials = storage.load(folder).trials
    assert sorted(claimed) == list(range(32)) and len(trials) == 32
    assert Counter(trial.state for trial in trials) == {TrialState.COMPLETE: 32}
    assert [trial.value for trial in trials] == list(range(32)), "each value came to its own trial"
    assert [trial.intermediate_values for trial in trials] == [{1: 0.5}] * 32
    assert len({trial.user_attrs["pid"] for trial in trials}) > 1, "not one after the other"
    assert sorted(path.name for path in folder.claims.iterdir()) == [f"{number:04d}.0" for number in range(32)]


@pytest.mark.slow
def test_sampled_trials_are_made_once_by_many(plan, each_storage):
    folder, _ = plan(space={"lr": {"low": 1e-4, "high": 1e-2}}, trials=12, sampler="RandomSampler")
    assert sorted(at_once(folder, folder.definition, 8, "with_claims")) == list(range(12))
    trials = storage.load(folder).trials
    assert [trial.user_attrs["row"] for trial in trials] == list(range(12))
    assert len({trial.params["lr"] for trial in trials}) == 12, "nobody draws what another drew"


@pytest.mark.slow
def test_no_waiting_trial_is_handed_out_twice(plan, each_storage):
    """What the storages promise by themselves, should the study's lock not hold."""
    folder, _ = plan(arms={f"arm{number}": {} for number in range(24)})
    assert sorted(at_once(folder, folder.definition, 16, "with_ask")) == list(range(24))


def test_orphan_is_continued_once_and_says_whom_it_succeeds(plan, gone, each_storage):
    folder, claims = plan(arms={"a": {}, "b": {}})
    lost = claims(gone).fresh()
    lost.trial.report(1.0, 3)
    first, second = claims(), claims()
    claim = first.resume()
    assert (claim.number, claim.life, claim.before) == (lost.number, 1, gone) and second.resume() is None
    assert claim.trial.user_attrs["restarts"] == 1 and claim.folder == lost.folder
    claim.trial.report(0.5, 4)
    first.study.tell(claim.trial, 0.5)
    trials = storage.load(folder).trials
    assert trials[lost.number].intermediate_values == {3: 1.0, 4: 0.5} and trials[lost.number].value == 0.5
    assert states(folder) == [TrialState.COMPLETE, TrialState.WAITING]


def test_two_that_see_the_same_orphan(plan, gone, monkeypatch, each_storage):
    _, claims = plan()
    claims(gone).fresh()
    one, other = claims(), claims()
    seen = other._trials(TrialState.RUNNING)
    assert one.resume().life == 1
    monkeypatch.setattr(other, "_trials", lambda state: seen)  # it looked before the other one took the trial
    monkeypatch.setattr(other, "owner", lambda number: (gone, 0))
    assert other.resume() is None


def test_unknown_is_not_dead(plan, each_storage):
    _, claims = plan()
    claims(elsewhere()).fresh()
    assert claims().resume() is None and not claims().has_work() and claims().fresh() is None


def test_trial_that_ended_between_two_looks_is_left_alone(plan, gone, monkeypatch, each_storage):
    folder, claims = plan()
    owner = claims(gone)
    lost = owner.fresh()
    late = claims()
    seen = late._trials(TrialState.RUNNING)
    owner.study.tell(lost.trial, 2.0)
    monkeypatch.setattr(late, "_trials", lambda state: seen)
    assert late.resume() is None
    assert storage.load(folder).trials[0].value == 2.0


def test_running_trial_without_a_claim_lost_its_worker_before_it(plan, each_storage):
    _, claims = plan()
    worker = claims()
    number = worker.study.ask().number  # killed here, before its claim is written
    assert worker.resume() is None and worker.has_work()
    claim = claims().fresh()
    assert (claim.number, claim.life, claim.before) == (number, 0, None)
    assert claims().fresh() is None


def test_own_trial_comes_before_another_orphan(plan, gone):
    _, claims = plan(arms={"a": {}, "b": {}})
    claims(gone).fresh()
    before = dataclasses.replace(elsewhere(), cluster="c", task="7_1")
    mine = claims(before).fresh()
    now = dataclasses.replace(Owner.current(), cluster="c", task="7_1", life=1)
    assert claims(now).resume().number == mine.number == 1
    assert claims(now).resume().number == 0


def test_storage_that_was_set_back_repeats_a_life_not_a_live_trial(plan, gone):
    folder, claims = plan(arms={"a": {}, "b": {}, "c": {}})
    copy = folder.journal.read_bytes()
    claims(gone).fresh()
    claims(elsewhere()).fresh()
    folder.journal.write_bytes(copy)  # all three wait again
    claim = claims().fresh()
    assert (claim.number, claim.life, claim.before) == (0, 1, gone)
    assert claims().fresh().number == 2, "trial 1 may still be trained elsewhere"
    assert states(folder) == [TrialState.RUNNING] * 3


def test_lives_are_counted_without_gaps(plan, gone):
    folder, claims = plan()
    lost = claims(gone).fresh()
    for life in range(1, 13):
        claim = claims(gone).resume()
        assert (claim.number, claim.life) == (lost.number, life)
    owner, life = claims().owner(lost.number)
    assert (owner, life) == (gone, 12) and json.loads((folder.claims / "0000.12").read_text())["pid"] == gone.pid
    assert claims().owner(5) == (None, -1)


def test_claims_that_cannot_be_written_are_one_line_and_cost_no_trial(plan, monkeypatch):
    folder, claims = plan()
    worker = claims()

    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkstemp", full)
    with pytest.raises(DiskError, match=r"claims: cannot be written \(No space left on device\); make room there"):
        worker.fresh()
    monkeypatch.undo()
    assert claims().fresh().number == 0 and states(folder) == [TrialState.RUNNING]
