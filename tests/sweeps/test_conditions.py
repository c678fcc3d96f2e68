"""`when:`: a parameter only where it has a meaning; no cell twice, nothing suggested that no trial has."""

import optuna
import pytest

from diffusion_lm.errors import UserError
from sweeps.definition import design, study

ARMS = {"mamba": {"denoiser": "mamba"}, "hybrid": {"denoiser": "hybrid"}, "attention": {}}


def read(**keys):
    return study.from_dict({"experiment": "tiny", **keys})


def test_a_condition_leaves_the_parameter_out_and_makes_no_cell_twice():
    config = read(arms=ARMS, space={"d_state": {"choices": [16, 64], "when": {"arm": ["mamba", "hybrid"]}},
                                    "every": {"choices": [2, 4], "when": {"arm": "hybrid"}}, "width": [1, 2]})
    rows = [dict(row.params) for row in design.rows(config)]
    # By hand: mamba 2 d_state, hybrid 2 x 2, attention 1; each with 2 widths.
    expected = [{"arm": "mamba", "d_state": state} for state in (16, 64)]
    expected += [{"arm": "hybrid", "d_state": state, "every": every} for state in (16, 64) for every in (2, 4)]
    expected += [{"arm": "attention"}]
    assert rows == [{**cell, "width": width} for cell in expected for width in (1, 2)]
    assert config.cells == config.size == 14 and config.factorial
    assert len({row.cell for row in design.rows(config)}) == 14


def test_what_depends_on_a_parameter_that_is_left_out_is_left_out_too():
    config = read(space={"leaf": {"choices": [1, 2], "when": {"branch": "b"}}, "root": ["x", "y", "z"],
                         "branch": {"choices": ["a", "b"], "when": {"root": ["x", "y"]}}})
    cells = [dict(row.params) for row in design.rows(config)]
    # Root x or y: branch a, or b with two leaves; root z: alone.
    assert config.cells == 2 * 3 + 1 == len(cells) == len({str(cell) for cell in cells})
    assert {"root": "z"} in cells and {"leaf": 2, "root": "y", "branch": "b"} in cells
    assert all(("leaf" in cell) == (cell.get("branch") == "b") for cell in cells)


def test_true_and_one_are_different_conditions():
    config = read(space={"flag": [True, False], "more": {"choices": [5, 6], "when": {"flag": True}}})
    assert config.cells == 3
    with pytest.raises(UserError, match=r"^space: more: when: flag: got 1, expected one of True, False$"):
        read(space={"flag": [True, False], "more": {"choices": [5, 6], "when": {"flag": 1}}})


ONE, TWO = {"val/nll": "minimize"}, {"val/nll": "minimize", "throughput/tokens_per_second": "maximize"}


@pytest.mark.parametrize(("sampler", "metrics"), [
    ({"name": "TPESampler", "warn_independent_sampling": True}, ONE), ("TPESampler", TWO),
    ({"name": "TPESampler", "warn_independent_sampling": True, "multivariate": True}, TWO),
    ("RandomSampler", ONE), ({"name": "NSGAIISampler", "population_size": 5}, TWO),
    pytest.param({"name": "GPSampler", "warn_independent_sampling": False}, ONE, marks=pytest.mark.slow)])
def test_samplers_draw_a_parameter_only_where_its_condition_holds(sampler, metrics, caplog):
    """Through Optuna itself, past the samplers' start; it warns of parameters that its model leaves out."""
    from sweeps.definition import optuna_parts

    config = read(arms=ARMS, trials=16, sampler=sampler, metrics=metrics, space={
        "lr": {"low": 1e-4, "high": 1e-2, "log": True}, "d_state": {"low": 1, "high": 9, "when": {"arm": "mamba"}}})
    optuna.logging.enable_propagation()
    caplog.set_level("WARNING")
    asked = optuna.create_study(directions=list(metrics.values()))
    for row in design.rows(config):
        asked.enqueue_trial(dict(row.params))
        asked.sampler = optuna_parts.sampler(config, row.index)
        trial = asked.ask()
        params = design.suggest(config, trial)
        assert ("d_state" in params) == (params["arm"] == "mamba") == ("d_state" in trial.params)
        asked.tell(trial, [params["lr"] + index for index in range(len(metrics))])
    drawn = [trial.params["d_state"] for trial in asked.trials if "d_state" in trial.params]
    optuna.logging.disable_propagation()
    assert len(drawn) == 6 and len(set(drawn)) > 1
    assert not [record for record in caplog.records if record.name.startswith("optuna.samplers")]


def test_planning_tries_the_corners_of_what_holds_somewhere():
    config = read(arms=ARMS, trials=2, space={
        "kind": ["a", "b"], "x": {"low": 0.5, "high": 0.75, "when": {"kind": "b", "arm": "hybrid"}}})
    probes = design.probes(config)
    assert {"arm": "hybrid", "kind": "b", "x": 0.75} in probes and {"arm": "hybrid", "kind": "b", "x": 0.5} in probes
    assert not any("x" in params for params in probes if params["arm"] != "hybrid" or params["kind"] != "b")


def test_definition_with_conditions_survives_its_file():
    config = read(arms=ARMS, space={"d_state": {"low": 1, "high": 9, "when": {"arm": ["mamba", "hybrid"]}}}, trials=4)
    assert study.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(("space", "message"), [
    ({"x": {"choices": [1], "when": {"arms": "mamba"}}},
     "space: x: when: no key 'arms'; expected one of arm; did you mean 'arm'?"),
    ({"x": {"choices": [1], "when": {"arm": "mambo"}}},
     "space: x: when: arm: got 'mambo', expected one of mamba, hybrid, attention"),
    ({"x": {"choices": [1], "when": {"y": 1}}, "y": {"low": 0, "high": 1}},
     "space: x: when: y is a range; expected an arm or a key with choices"),
    ({"x": {"choices": [1], "when": {"y": 1}}, "y": {"choices": [1], "when": {"x": 1}}},
     "space: x: when: leads back to itself (x -> y -> x); expected conditions that end in an arm or in a key without "
     "`when`"),
    ({"x": {"choices": [1], "when": {"x": 1}}}, "space: x: when: no key 'x'; expected one of arm"),
    ({"x": {"choices": [1], "when": "mamba"}},
     "space: x: when: got 'mamba', expected a mapping, for example {arm: mamba}"),
    ({"x": {"choices": [1], "when": {"arm": []}}},
     "space: x: when: arm: got [], expected a value or a list of values"),
])
def test_conditions_on_what_is_not_there_are_refused(space, message):
    with pytest.raises(UserError) as refused:
        read(arms=ARMS, space=space)
    assert str(refused.value) == message
