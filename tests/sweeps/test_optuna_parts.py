"""Samplers and pruners as Optuna gets them."""

import pytest
from optuna.pruners import HyperbandPruner, SuccessiveHalvingPruner, ThresholdPruner

from diffusion_lm.errors import UserError
from sweeps.definition import optuna_parts, planner, study
from sweeps.records import storage

LR = {"lr": {"low": 1e-4, "high": 1e-1}}
PAIR = {"val/nll": "minimize", "throughput/tokens_per_second": "maximize"}


def read(**keys):
    return study.from_dict({"experiment": "tiny", "space": LR, "trials": 9, **keys})


@pytest.fixture
def train_long(experiments, monkeypatch):
    """Experiments that say how long training is and how often it validates."""

    def say(steps, val_every):
        plain = experiments.to_dict
        monkeypatch.setattr(experiments, "to_dict", lambda config: {
            **plain(config), "training": {"steps": steps, "val_every": val_every}})

    return say


def test_hyperband_gets_its_resources_from_training(write_study, folder_of, experiments, train_long):
    train_long(2700, 100)
    folder = folder_of(write_study(space=LR, trials=9, pruner="HyperbandPruner"))
    planner.plan(folder, experiments)
    pruner = storage.load(folder).pruner
    assert isinstance(pruner, HyperbandPruner)
    assert (pruner._min_resource, pruner._max_resource) == (100, 2700)
    trial = storage.load(folder).ask()
    pruner.prune(storage.load(folder), trial._cached_frozen_trial)
    assert len(pruner._pruners) == 4, "brackets from 100, 300, 900 and 2,700 steps on"


def test_what_the_study_says_of_a_pruner_stands():
    training = {"steps": 2700, "val_every": 100}
    hyperband = optuna_parts.pruner(read(pruner={"name": "HyperbandPruner", "max_resource": 300}), training)
    assert (hyperband._min_resource, hyperband._max_resource) == (100, 300)
    halving = optuna_parts.pruner(read(pruner="SuccessiveHalvingPruner"), training)
    assert isinstance(halving, SuccessiveHalvingPruner) and halving._min_resource == 100
    threshold = optuna_parts.pruner(read(pruner={"name": "ThresholdPruner", "upper": 6.0}), training)
    assert isinstance(threshold, ThresholdPruner) and threshold._upper == 6.0


def test_a_pruner_without_a_report_to_prune_at_is_refused(write_study, folder_of, experiments, train_long):
    train_long(500, 500)
    folder = folder_of(write_study(arms={"a": {}}, pruner={"name": "ThresholdPruner", "upper": 6.0}))
    with pytest.raises(UserError) as refused:
        planner.plan(folder, experiments)
    assert str(refused.value) == ("pruner: ThresholdPruner, but a reports at its end alone (training.steps 500, "
                                  "training.val_every 500); expected a smaller training.val_every, or no pruner")
    assert not folder.path.exists()


def test_samplers_that_take_several_metrics_are_built():
    for name in ("TPESampler", "GPSampler", "RandomSampler", {"name": "NSGAIISampler", "population_size": 4}):
        assert optuna_parts.sampler(read(sampler=name, metrics=PAIR), 3)


def test_remarks_on_what_is_weak_and_not_wrong():
    when = {**LR, "kind": ["a", "b"], "x": {"low": 0, "high": 1, "when": {"kind": "a"}}}
    assert optuna_parts.remarks(read(space=when)) == []
    assert optuna_parts.remarks(read(space=when, sampler="GPSampler")) == [
        "sampler: GPSampler models only what all trials have, and draws parameters with `when` at random; TPESampler "
        "models these too"]
    complete = {"space": {"x": [1, 2]}, "trials": None}
    assert optuna_parts.remarks(read(**complete, pruner={"name": "ThresholdPruner", "upper": 6.0})) == []
    assert optuna_parts.remarks(read(**complete, pruner="MedianPruner")) == [
        "pruner: MedianPruner ends runs of a design early, so that means over seeds are of those that were left; "
        "ThresholdPruner ends only what diverged"]


@pytest.mark.parametrize(("build", "keys", "message"), [
    (optuna_parts.pruner, {"pruner": "ThresholdPruner"},
     "pruner: ThresholdPruner: Either lower or upper must be specified."),
    (optuna_parts.pruner, {"pruner": {"name": "HyperbandPruner", "max_resources": 3}},
     "pruner: HyperbandPruner has no argument 'max_resources'; expected one of bootstrap_count, max_resource, "
     "min_resource, reduction_factor; did you mean 'max_resource'?"),
    (lambda config: optuna_parts.sampler(config, 0), {"sampler": "GridSampler"},
     "sampler: GridSampler repeats cells when several workers ask; list `choices` and leave out `trials`: the whole "
     "design is then visited exactly once"),
    (lambda config: optuna_parts.sampler(config, 0), {"sampler": {"name": "TPESampler", "n_startup_trials": "x"}},
     "sampler: TPESampler: n_startup_trials: got 'x', expected a whole number"),
    (lambda config: optuna_parts.sampler(config, 0), {"sampler": {"name": "TPESampler", "n_startup_trials": True}},
     "sampler: TPESampler: n_startup_trials: got True, expected a whole number"),
    (lambda config: optuna_parts.sampler(config, 0), {"sampler": {"name": "TPESampler", "consider_endpoints": "no"}},
     "sampler: TPESampler: consider_endpoints: got 'no', expected true or false or null"),
    (lambda config: optuna_parts.sampler(config, 0), {"sampler": {"name": "TPESampler", "prior_weight": "x"}},
     "sampler: TPESampler: prior_weight: got 'x', expected a number or null"),
])
def test_what_optuna_cannot_do_is_refused(build, keys, message):
    with pytest.raises(UserError) as refused:
        build(read(**keys))
    assert str(refused.value) == message


@pytest.mark.parametrize(("keys", "message"), [
    ({"sampler": {"name": "TPESampler", "n_ei_candidates": 0}},
     "sampler: TPESampler: does not work as given (ValueError: "),
    ({"sampler": {"name": "TPESampler", "gamma": 3}}, "sampler: TPESampler: does not work as given (TypeError: "),
    ({"sampler": {"name": "NSGAIISampler", "population_size": 4, "crossover": "x"}},
     "sampler: NSGAIISampler: "),
    ({"pruner": {"name": "PatientPruner", "patience": 4, "wrapped_pruner": "MedianPruner"}},
     "pruner: PatientPruner: does not work as given (AttributeError: "),
])
def test_arguments_that_fail_when_they_are_used_are_refused_and_leave_nothing(write_study, folder_of, experiments, keys,
                                                                             message):
    """After the sampler's start-up, which in these studies is trial 11 of 30."""
    folder = folder_of(write_study(space=LR, trials=30, **keys))
    with pytest.raises(UserError) as refused:
        planner.plan(folder, experiments)
    assert str(refused.value).startswith(message) and "\n" not in str(refused.value)
    assert not folder.path.exists()


def test_what_works_is_rehearsed_and_planned(write_study, folder_of, experiments, train_long, capfd):
    train_long(2700, 100)
    conditional = {**LR, "width": [8, 16], "pause": {"low": 0, "high": 0.1, "when": {"width": 8}}}
    for number, keys in enumerate([
        {"space": conditional, "arms": {"a": {}, "b": {}}, "pruner": "MedianPruner"},
        {"pruner": "HyperbandPruner"}, {"pruner": "SuccessiveHalvingPruner", "sampler": "QMCSampler"},
        {"pruner": {"name": "ThresholdPruner", "upper": 1.5}, "sampler": "RandomSampler"},
        {"metrics": PAIR, "sampler": {"name": "NSGAIISampler", "population_size": 4}},
        {"space": {"lr": [0.1, 0.2]}, "trials": None},
    ]):
        study = planner.plan(folder_of(write_study(f"s{number}", **{"space": LR, "trials": 60, **keys})), experiments)
        assert all(trial.state.name == "WAITING" for trial in study.trials), "what was rehearsed is no trial"
    assert capfd.readouterr().err == ""
