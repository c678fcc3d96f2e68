"""A study that starts from another's trials, and where it may not."""

import json

import pytest

from diffusion_lm.errors import UserError
from sweeps.definition import design, facts, optuna_parts, planner
from sweeps.records import history, storage

ARMS = {"a": {}, "b": {"denoiser": "mamba"}}
SPACE = {"lr": {"low": 1e-4, "high": 1e-1, "log": True}, "width": [32, 64]}
LATER = {"trials": 20, "warm_start": "first", "space": SPACE}


@pytest.fixture
def first(write_study, folder_of, experiments):
    """A finished study of 6 trials without training; its values are known."""
    folder = folder_of(write_study("first", arms=ARMS, trials=6, seeds=[0],
                                   space={"lr": {"low": 1e-3, "high": 1.0, "log": True}, "width": [32, 64]}))
    study = planner.plan(folder, experiments)
    for number, rate in enumerate([0.002, 0.02, 0.05, 0.5, 0.09, 0.08]):
        params = {"arm": "ab"[number % 2], "lr": rate, "width": 32 if number < 5 else 64}
        study.enqueue_trial(params)
        trial = study.ask()
        design.suggest(folder.config, trial)
        study.tell(trial, 3.0 + number)
    return folder


def test_trials_that_fit_are_there_first_and_are_none_of_the_study(first, write_study, folder_of, experiments):
    folder = folder_of(write_study("second", **LATER, arms=ARMS))
    for _ in range(2):
        study = planner.plan(folder, experiments)
    # All but the one at 0.5, which is outside of this space.
    assert [(trial.params["lr"], trial.value, trial.user_attrs["from"]) for trial in study.trials] == [
        (0.002, 3.0, "first 0"), (0.02, 4.0, "first 1"), (0.05, 5.0, "first 2"), (0.09, 7.0, "first 4"),
        (0.08, 8.0, "first 5")]
    assert history.records(folder, study) == [] and folder.config.size == 20
    study.sampler = optuna_parts.sampler(folder.config, 0)
    trial = study.ask()
    assert trial.number == 5 and set(design.suggest(folder.config, trial)) == {"arm", "lr", "width"}
    assert trial.distributions["lr"] == study.trials[0].distributions["lr"], "one space, so that the sampler learns"
    assert "warm start: 5 finished trials of 'first'" in facts.lines(folder, experiments)


def refusal(folder, experiments):
    with pytest.raises(UserError) as refused:
        planner.plan(folder, experiments)
    assert not folder.path.exists(), "nothing is written"
    return str(refused.value)


def test_a_study_that_has_nothing_to_give_is_refused(first, write_study, folder_of, experiments):
    narrow = folder_of(write_study("narrow", trials=9, warm_start="first", space={"width": {"low": 8, "high": 72}}))
    assert refusal(narrow, experiments) == (
        "warm_start: of study 'first' no finished trial fits the space (trial 0: no key of `space` 'arm'; expected one "
        "of width); widen the space, or leave out warm_start")
    other = folder_of(write_study("other", **LATER, metrics={"val/bpb": "minimize"}))
    assert refusal(other, experiments) == ("warm_start: study 'first' does not minimize val/bpb; expected one with the "
                                           "metrics of this study")
    nobody = folder_of(write_study("nobody", **{**LATER, "warm_start": "frist"}))
    assert refusal(nobody, experiments) == (
        f"warm_start: study 'frist' is neither in {nobody.path.parent} nor a study's folder; expected the name of a "
        "study that was started, or its folder")


def test_other_data_is_refused_and_another_experiment_is_said(first, write_study, folder_of, experiments, monkeypatch):
    folder = folder_of(write_study("second", **LATER, arms={**ARMS, "a": {"objective": "gaussian"}}))
    assert refusal(folder, experiments) == (
        "warm_start: study 'first' measured something else (objective: masked -> gaussian); expected one of the same "
        "data, objective and process; leave out warm_start")
    longer = folder_of(write_study("longer", **LATER, arms=ARMS, overrides={"steps": 9}))
    planner.plan(longer, experiments)
    assert ("warm_start: the experiment of 'first' differs (steps: 5 -> 9): its trials guide the sampler and stand in "
            "no table") in facts.lines(longer, experiments)
    assert json.loads(longer.references.read_text())["a"]["steps"] == 9


def test_a_folder_that_was_moved_is_found_by_its_path(first, write_study, folder_of, experiments, tmp_path):
    first.path.rename(tmp_path / "kept")
    keys = {**LATER, "warm_start": str(tmp_path / "kept")}
    folder = folder_of(write_study("second", **keys, arms=ARMS))
    assert len(planner.plan(folder, experiments).trials) == 5
    assert storage.load(folder).trials[0].user_attrs["from"] == f"{tmp_path}/kept 0"


def test_a_study_in_a_database_is_found_by_its_url(postgresql, write_study, folder_of, experiments, monkeypatch):
    url = postgresql.url()
    monkeypatch.setenv("SWEEPS_STORAGE", url)
    source = planner.plan(folder_of(write_study("elsewhere", trials=4, space=SPACE)), experiments)
    source.enqueue_trial({"lr": 0.004, "width": 64})
    trial = source.ask()
    source.tell(trial, design.suggest(folder_of(write_study("elsewhere", trials=4, space=SPACE)).config, trial)["lr"])
    monkeypatch.delenv("SWEEPS_STORAGE")
    keys = {**LATER, "warm_start": {"study": "elsewhere", "storage": url}}
    folder = folder_of(write_study("second", **keys))
    assert [(trial.value, trial.params) for trial in planner.plan(folder, experiments).trials] == [
        (0.004, {"lr": 0.004, "width": 64})]
    assert ("warm_start: 'elsewhere' is known by its database alone: that it was trained on the same corpus and "
            "experiment was not checked") in facts.lines(folder, experiments)
    wrong = folder_of(write_study("third", **{**keys, "warm_start": {"study": "nowhere", "storage": url}}))
    assert refusal(wrong, experiments).startswith("warm_start: there is no study 'nowhere' in postgresql")
