"""What a study visits: fractional designs, replicates, known points, budgets and constraints."""

import hashlib
from collections import Counter
from types import SimpleNamespace

import pytest

from diffusion_lm.errors import UserError
from sweeps.definition import design, limits, study
from sweeps.definition.limits import Budget

ARMS = {"plain": {}, "deep": {"layers": 4}}
TWO = {"a": [1, 2], "b": ["x", "y"], "c": [0.1, 0.2]}


def read(**keys):
    return study.from_dict({"experiment": "tiny", **keys})


def test_a_fraction_of_arms_and_choices_with_every_seed():
    config = read(arms=ARMS, space=TWO, seeds=[3, 4], design={"name": "fractional", "runs": 8})
    rows = design.rows(config)
    assert config.factorial and config.cells == 8 and config.size == 16 == len(rows)
    # The half of 16 cells in which the product of the four signs is +.
    signs = {"plain": -1, "deep": 1, 1: -1, 2: 1, "x": -1, "y": 1, 0.1: -1, 0.2: 1}
    for row in rows[:8]:
        assert list(row.params) == ["arm", "a", "b", "c"]
        product = 1
        for value in row.params.values():
            product *= signs[value]
        assert product == 1
    assert len({row.cell for row in rows}) == 8 and Counter(row.seed for row in rows) == {3: 8, 4: 8}
    assert rows[0].params == {"arm": "plain", "a": 1, "b": "x", "c": 0.1}, "in the order of a complete design"
    assert config.design.words(config.axes) == ["fractional design: 8 of 16 cells, orthogonal, resolution IV",
                                                "no main effect is mixed with an interaction of two factors"]
    assert study.from_dict(config.to_dict()) == config


def test_generators_and_what_they_mix():
    config = read(space={**TWO, "one": ["only"]},
                  design={"name": "fractional", "runs": 4, "generators": {"c": ["a", "b"]}})
    cells = [tuple(row.params[key] for key in ("a", "b", "c", "one")) for row in design.rows(config)]
    # c = a x b: high where a and b are both low or both high.
    assert cells == [(1, "x", 0.2, "only"), (1, "y", 0.1, "only"), (2, "x", 0.1, "only"), (2, "y", 0.2, "only")]
    assert config.design.words(config.axes) == [
        "fractional design: 4 of 8 cells, orthogonal, resolution III", "the main effect of a is mixed with b x c",
        "the main effect of b is mixed with a x c", "the main effect of c is mixed with a x b"]


def test_levels_that_no_array_balances_are_said_to_be_not_orthogonal():
    config = read(arms={name: {} for name in "pqrst"}, space={"a": [1, 2], "b": [1, 2]},
                  design={"name": "fractional", "runs": 10})
    assert config.design.words(config.axes)[0] == (
        "fractional design: 10 of 20 cells, balanced, not orthogonal: main effects can be told apart, with wider "
        "intervals than those of a complete design with as many runs")
    assert Counter(row.params["arm"] for row in design.rows(config)) == dict.fromkeys("pqrst", 2)


def test_replicates_have_seeds_of_study_and_number_that_all_arms_share():
    config = read(name="lr", arms=ARMS, replicates=3)
    expected = tuple(int(hashlib.sha256(f"lr {number}".encode()).hexdigest()[:8], 16) // 2 for number in range(3))
    assert config.seeds == expected and max(expected) < 2**31
    assert [(row.cell, row.seed) for row in design.rows(config)] == [(arm, seed) for seed in expected for arm in ARMS]
    assert read(name="lr", replicates=2).seeds == expected[:2]
    assert read(name="other", replicates=1).seeds != expected[:1]
    assert study.from_dict(config.to_dict()) == config


def test_known_points_come_first_with_every_arm_and_seed():
    config = read(arms=ARMS, seeds=[0, 1], trials=9,
                  space={"lr": {"low": 0.1, "high": 0.9}, "w": {"low": 1, "high": 8}},
                  points=[{"lr": 0.5}, {"arm": "deep", "w": 3}])
    rows = design.rows(config)
    assert [(dict(row.params), row.seed) for row in rows] == [
        ({"arm": "plain", "lr": 0.5}, 0), ({"arm": "deep", "lr": 0.5}, 0),
        ({"arm": "plain", "lr": 0.5}, 1), ({"arm": "deep", "lr": 0.5}, 1),
        ({"arm": "deep", "w": 3}, 0), ({"arm": "deep", "w": 3}, 1),
        ({"arm": "plain"}, 0), ({"arm": "deep"}, 0), ({"arm": "plain"}, 1)]
    assert {row.cell for row in rows} == set(ARMS), "what a sampler draws is no cell of its own"


def record(begun=True, hours=0.0, tokens=0, result=None):
    start = object() if begun else None
    return SimpleNamespace(trial=SimpleNamespace(datetime_start=start), device_hours=hours or None,
                           last={"tokens": tokens}, result=result)


def test_spending_is_added_up_and_ends_the_study():
    used = limits.spent([record(hours=1.5, tokens=100), record(hours=0.25, tokens=50, result={"tokens": 70}),
                         record(begun=False), record()])
    assert used == {"trials": 3, "tokens": 170, "gpu_hours": 1.75}
    assert Budget(trials=5, gpu_hours=2.0).left(used) == {"trials": 2, "gpu_hours": 0.25}
    assert Budget(trials=5).reached(used) is None and Budget().reached(used) is None
    assert Budget(trials=5, tokens=170).reached(used) == "170 of 170 tokens"
    assert Budget(gpu_hours=1).left(used) == {"gpu_hours": 0}


def test_a_budget_of_trials_is_how_many_are_sampled():
    config = read(space={"lr": {"low": 0.1, "high": 0.9}}, budget={"trials": 7})
    assert config.size == len(design.rows(config)) == 7


def test_constraints_say_by_what_share_of_the_bound_they_are_broken():
    config = read(arms=ARMS, constraints={"parameters": {"max": 1.1e6}, "peak_memory": {"max": 8e9},
                                          "throughput/tokens_per_second": {"min": 1000, "max": 5000},
                                          "val/bpb": {"max": 2}})
    result = {"parameters": {"total": 5e6, "non_embedding": 1.2e6}, "peak_memory": 6e9,
              "metrics": {"throughput/tokens_per_second": 900.0}}
    assert design.constraint_values(config, result) == pytest.approx([1 / 11, -0.25, 0.1, 1.0])
    assert design.constraint_values(config, {**result, "metrics": {
        "throughput/tokens_per_second": 4000.0, "val/bpb": float("nan")}})[2:] == pytest.approx([-0.2, 1.0])


def test_restarts_change_the_defaults_class_by_class():
    assert read(restarts={"node": 2}).restarts == {
        "node": 2, "time": 100, "code": 1, "out_of_memory": 0, "not_finite": 0, "disk": 3, "input": 0}


RANGE = {"lr": {"low": 0.1, "high": 0.9}, "n": {"low": 2, "high": 8, "step": 2},
         "d": {"choices": [1, 2], "when": {"arm": "deep"}}}


@pytest.mark.parametrize(("keys", "message"), [
    ({"space": TWO, "design": "taguchi"},
     "design: got 'taguchi', expected factorial, or {name: fractional, runs: 8}, perhaps with generators"),
    ({"space": TWO, "design": {"name": "fractional"}},
     "design: runs: got None, expected a whole number of cells, from 2 on"),
    ({"space": TWO, "design": {"name": "fractional", "runs": 4, "generator": {}}},
     "design: unknown key 'generator'; expected one of generators, name, runs; did you mean 'generators'?"),
    ({"space": TWO, "arms": ARMS, "design": {"name": "fractional", "runs": 4}},
     "design: 4 runs of 2 arm x 2 a x 2 b x 2 c leave fewer runs than there are main effects to estimate and their "
     "mean, 5; take another number of runs"),
    ({"space": TWO, "design": {"name": "fractional", "runs": 4, "generators": {"c": ["a", "z"]}}},
     "design: generators: no factor 'z'; expected one of a, b, c"),
    ({"space": {**TWO, "d": [1, 2, 3]}, "design": {"name": "fractional", "runs": 8, "generators": {"d": ["a", "b"]}}},
     "design: generators: d has 3 levels, expected 2; leave `generators` out, and a nearly orthogonal array is found"),
    ({"space": TWO, "design": {"name": "fractional", "runs": 8, "generators": {"c": ["a", "b"]}}},
     "design: runs: got 8 with 1 generators of 3 factors, expected 4, all combinations of the others"),
    ({"space": RANGE, "arms": ARMS, "trials": 4, "design": {"name": "fractional", "runs": 4}},
     "trials: got it with a fractional design, which has its own `runs`; leave out `trials`"),
    ({"space": {**TWO, "d": {"choices": [1, 2], "when": {"a": 1}}}, "design": {"name": "fractional", "runs": 8}},
     "design: fractional needs every factor in every cell, and d has a condition; leave out `when`, or visit all "
     "cells"),
    ({"space": TWO, "points": [{"a": 1}]}, "points: steers a sampler, and this study visits every cell of its design; "
                                           "leave it out, or say `trials`, fewer than the cells"),
    ({"space": TWO, "warm_start": "other"}, "warm_start: steers a sampler, and this study visits every cell of its "
                                            "design; leave it out, or say `trials`, fewer than the cells"),
    ({"space": RANGE, "arms": ARMS, "trials": 4, "points": [{}, {"lr": 2}]},
     "points: 1: lr: got 2, expected a number from 0.1 to 0.9"),
    ({"space": RANGE, "arms": ARMS, "trials": 4, "points": [{"lr": 0.5}, {"n": 2}, {"lr": 0.5}]},
     "points: 2: {arm: plain, lr: 0.5} is there before; remove one of them (replicates are asked for by `seeds`)"),
    ({"space": RANGE, "arms": ARMS, "trials": 4, "points": [{"lr": 0.5}, {"arm": "deep", "lr": 0.5}]},
     "points: 1: {arm: deep, lr: 0.5} is there before; remove one of them (replicates are asked for by `seeds`)"),
    ({"space": RANGE, "arms": ARMS, "trials": 9, "seeds": [0, 1, 2],
      "points": [{"lr": 0.5}, {"arm": "deep"}, {"n": 2}]},
     "points: the 3 of them take 15 trials (each with every arm that it does not name, and every seed), and the study "
     "has 9; expected at least 15 trials, or fewer points"),
    ({"space": RANGE, "arms": ARMS, "trials": 4, "points": [{"n": 3}]},
     "points: 0: n: got 3, expected 2 plus a multiple of 2"),
    ({"space": RANGE, "arms": ARMS, "trials": 4, "points": [{"n": 2.0}]},
     "points: 0: n: got 2.0, expected a whole number from 2 to 8"),
    ({"space": RANGE, "arms": ARMS, "trials": 4, "points": [{"d": 1}]},
     "points: 0: d: a trial has it only with arm: deep; say so beside it, or leave it out"),
    ({"space": RANGE, "arms": ARMS, "trials": 4, "points": [{"arm": "depe"}]},
     "points: 0: arm: no arm 'depe'; expected one of deep, plain; did you mean 'deep'?"),
    ({"space": RANGE, "arms": ARMS, "trials": 4, "points": [{"rl": 0.2}]},
     "points: 0: no key of `space` 'rl'; expected one of arm, d, lr, n"),
    ({"replicates": 2, "seeds": [0, 1]},
     "replicates: got seeds as well; expected how many (`replicates`) or which (`seeds`)"),
    ({"replicates": 0}, "replicates: got 0, expected at least 1"),
    ({"budget": {"hours": 3}}, "budget: unknown key 'hours'; expected one of gpu_hours, tokens, trials; did you mean "
                               "'gpu_hours'?"),
    ({"budget": {"gpu_hours": 0}}, "budget: gpu_hours: got 0, expected a number above 0"),
    ({"budget": {"trials": 1.5}}, "budget: trials: got 1.5, expected a whole number above 0"),
    ({"restarts": {"nod": 3}}, "restarts: no failure class 'nod'; expected one of code, disk, input, node, not_finite, "
                               "out_of_memory, time; did you mean 'node'?"),
    ({"restarts": {"node": -1}}, "restarts: node: got -1, expected a whole number from 0 on"),
    ({"constraints": {"parameters": 3}},
     "constraints: parameters: got 3, expected min or max, for example {max: 8.0e9}"),
    ({"constraints": {"parameters": {"max": 1, "min": 2}}},
     "constraints: parameters: got min 2 and max 1, expected min <= max"),
    ({"warm_start": {"storage": "x"}},
     "warm_start: study: is missing; expected the name or the folder of the study to start from"),
    ({"space": RANGE, "arms": ARMS, "trials": 50, "sampler": "NSGAIISampler"},
     "sampler: NSGAIISampler: got 50 trials and a population of 50, so that all would be drawn at random; expected "
     "more trials, a smaller population_size, or TPESampler"),
    ({"space": {"arm": [1, 2]}}, "space: arm: is the name of the factor that `arms` makes; list the arms there"),
])
def test_mistakes_are_told_in_one_line(keys, message):
    with pytest.raises(UserError) as error:
        read(**keys)
    assert str(error.value) == message
