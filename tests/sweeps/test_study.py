"""Reading studies: what is accepted, how the design follows from it, and each mistake in one line."""

import pytest

from diffusion_lm.errors import UserError
from sweeps.definition import design, study
from sweeps.definition.space import Choices, Range
from sweeps.definition.study_keys import METRICS as KNOWN

ARMS = {"a": {"denoiser": "mamba"}, "b": {"denoiser": {"name": "hybrid", "n_layers": 6}}}
METRICS = ", ".join(sorted(KNOWN))


def read(**keys):
    return study.from_dict({"experiment": "quickstart", **keys})


def test_nested_and_dotted_keys_are_one():
    config = read(arms=ARMS, overrides={"data": {"path": "x"}, "training.steps": 10})
    assert config.arms["b"] == {"denoiser.name": "hybrid", "denoiser.n_layers": 6}
    assert config.overrides == {"data.path": "x", "training.steps": 10}


def test_space_accepts_lists_choices_and_ranges():
    config = read(space={"a": [1, 2], "b": {"choices": ["x", None]}, "c": {"low": 1e-4, "high": 1e-2, "log": True},
                         "d": {"low": 1, "high": 9, "step": 2}}, trials=3)
    assert config.space["a"] == Choices((1, 2)) and config.space["b"] == Choices(("x", None))
    assert config.space["c"] == Range(1e-4, 1e-2, True) and config.space["d"] == Range(1, 9, False, 2)


def test_numbers_in_a_file_are_read_as_in_experiments(tmp_path):
    path = tmp_path / "lr.yaml"
    path.write_text("experiment: quickstart\ntrials: 2\nspace: {lr: {low: 1e-4, high: 1e-2}}\n")
    config = study.load(path)
    assert config.name == "lr" and config.space["lr"].low == 1e-4


@pytest.mark.parametrize(("text", "complaint"), [
    ("experiment: [\n", "did not find expected node content"),
    ("experiment: a\nexperiment: b\n", "found duplicate key experiment")])
def test_what_the_reader_of_yaml_says_is_one_line(tmp_path, text, complaint):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        study.load(path)
    assert complaint in str(error.value) and "\n" not in str(error.value)


def test_definition_survives_its_file():
    config = read(name="n", arms=ARMS, space={"x": [1, 2], "y": {"low": 1, "high": 2}}, trials=4, seeds=[0, 1],
                  sampler={"name": "TPESampler", "n_startup_trials": 3}, baseline="a")
    assert study.from_dict(config.to_dict()) == config


def test_factorial_design_visits_each_cell_once_per_seed():
    config = read(arms=ARMS, space={"x": [1, 2]}, seeds=[3, 4])
    rows = design.rows(config)
    assert config.factorial and config.size == len(rows) == 8
    assert len({(row.cell, row.seed) for row in rows}) == 8
    assert [row.seed for row in rows] == [3] * 4 + [4] * 4, "all arms are compared before the next replicate starts"
    assert rows[0].cell == "a,x=1"


def test_sampled_design_gives_arms_and_seeds_turns():
    config = read(arms=ARMS, space={"lr": {"low": 0.1, "high": 0.2}}, trials=6, seeds=[0, 1])
    rows = design.rows(config)
    assert not config.factorial
    assert [(row.cell, row.seed) for row in rows] == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 0), ("b", 0)]
    assert all(set(row.params) == {"arm"} for row in rows)


def test_fewer_trials_than_cells_are_sampled():
    config = read(space={"x": [1, 2, 3]}, trials=2)
    assert not config.factorial and design.rows(config)[0].params == {}


def test_overrides_of_a_trial_keep_types_and_order():
    config = read(overrides={"a": "1", "b": None}, arms={"m": {"denoiser": "mamba", "c": [1, 2]}}, space={"lr": [1e-5]})
    assert design.overrides(config, {"arm": "m", "lr": 1e-5}, 7) == [
        "a='1'", "b=null", "denoiser=mamba", "c=[1, 2]", "lr=1.0e-05", "seed=7"]


def test_folder_names_are_safe_and_show_the_seed_only_if_there_are_several():
    assert design.folder_name(read(seeds=[5]), 3, "x=a/b c", 5) == "0003-x=a_b_c"
    assert design.folder_name(read(seeds=[5, 6]), 3, "mamba", 5) == "0003-mamba-seed5"


@pytest.mark.parametrize(("keys", "message"), [
    ({"arm": {}}, "unknown key 'arm'; expected one of arms, baseline, budget, constraints, design, experiment, "
                  "extends, metrics, name, overrides, points, pruner, replicates, restarts, sampler, seeds, space, "
                  "trials, warm_start; did you mean 'arms'?"),
    ({"experiment": None}, "experiment: is missing; expected an experiment's name or its YAML file"),
    ({"experiment": 3}, "experiment: got 3, expected text"),
    ({"arms": ["a"]}, "arms: got ['a'], expected a mapping"),
    ({"arms": {"a": 3}}, "arms.a: got 3, expected a mapping"),
    ({"arms": {"a/b": {}}}, "name 'a/b': it names a folder; expected letters, digits and . _ + -"),
    ({"name": "n" * 300}, f"name '{'n' * 20}...': it names a folder; got 300 characters, expected at most 100"),
    ({"arms": {"a" * 101: {}}}, f"name '{'a' * 20}...': it names a folder; got 101 characters, expected at most 100"),
    ({"trials": "12"}, "trials: got '12', expected a whole number"),
    ({"trials": 0}, "trials: got 0, expected at least 1"),
    ({"arms": ARMS, "trials": 3}, "trials: got 3, but the design has 2 cells x 1 seeds; leave out `trials` to visit "
                                  "each once, or add seeds"),
    ({"seeds": [1, 1]}, "seeds: got [1, 1], expected different whole numbers from 0 on"),
    ({"seeds": 3}, "seeds: got 3, expected a list"),
    ({"seeds": [1], "overrides": {"seed": 2}}, "seed: is set by 'overrides' and by `seeds`; remove one of them"),
    ({"metrics": {"val/nl": "minimize"}}, f"metrics: no metric 'val/nl'; expected one of {METRICS}; did you mean "
                                          "'val/nll'?"),
    ({"metrics": {"val/nll": "min"}}, "metrics: val/nll: no direction 'min'; expected one of maximize, minimize"),
    ({"metrics": {"val/nll": "minimize", "val/bpb": "minimize"}, "pruner": "MedianPruner"},
     "pruner: got MedianPruner with 2 metrics, expected one metric: Optuna prunes on a single objective only"),
    ({"baseline": "a"}, "baseline: got 'a', but the study has no arms; expected one of `arms`, or no baseline"),
    ({"metrics": {}}, "metrics: got {}, expected at least one, for example val/nll: minimize"),
    ({"arms": ARMS, "baseline": "c"}, "baseline: no arm 'c'; expected one of a, b"),
    ({"space": {"x": 3}}, "space: x: got 3, expected a list of choices or low and high"),
    ({"space": {"x": []}}, "space: x: choices: got [], expected a list with at least one value"),
    ({"space": {"x": [[1]]}}, "space: x: choice [1] is not a plain value; make it an arm instead"),
    ({"space": {"x": {"low": 1}}}, "space: x: high: got None, expected a number"),
    ({"space": {"x": {"low": 1, "hi": 2}}}, "space: x: unknown key 'hi'; expected one of choices, high, log, low, "
                                            "step, when; did you mean 'high'?"),
    ({"space": {"x": {"low": 2, "high": 1}}}, "space: x: got low 2 and high 1, expected low < high"),
    ({"space": {"x": {"low": 0, "high": 1, "log": True}}}, "space: x: got low 0 with log: true, expected low > 0"),
    ({"space": {"x": {"low": 0.1, "high": 1}}}, "trials: is missing; the space holds a range, so say how many trials "
                                                "to sample"),
    ({"space": {"denoiser": ["a"]}, "arms": ARMS}, "space: denoiser: is fixed by 'a' as well; remove one of them"),
    ({"space": {"seed": [1, 2]}}, "space: seed: a sampler must not choose the seed; list replicates under `seeds`"),
    ({"sampler": {"n_startup_trials": 3}}, "sampler.name: got None, expected text"),
])
def test_mistakes_are_told_in_one_line(keys, message):
    with pytest.raises(UserError) as error:
        read(**keys)
    assert str(error.value) == message
