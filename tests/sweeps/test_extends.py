"""`extends`: a study says only what differs from another one."""

import pytest

from diffusion_lm.errors import UserError
from sweeps.definition import study, study_file


@pytest.fixture
def write(tmp_path):
    """Writes YAML files beside one another; returns the path of one."""

    def files(**texts):
        for name, text in texts.items():
            path = tmp_path / f"{name.replace('__', '/')}.yaml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return path

    return files


BASE = """
experiment: tiny
overrides: {training: {steps: 10, lr: 1e-3}, data.length: 64}
arms:
  a: {denoiser: {name: mamba, n_layers: 2}}
  b: {denoiser: {name: hybrid, n_layers: 3}, training.warmup_steps: 5}
  c:
space: {model.d_model: [32, 64], training.clip: {low: 0.1, high: 1.0}}
trials: 4
seeds: [0, 1]
baseline: c
"""


def test_a_study_says_only_what_differs(write):
    config = study.load(write(base=BASE, large="""
extends: base
experiment: large
overrides: {training.steps: 99, data: {length: null}}
arms:
  a: {denoiser.n_layers: 24}
  b: {denoiser: transformer}
  c: null
  d: {denoiser: dimba}
space: {training.clip: null, model.d_model: [512]}
trials: null
baseline: a
"""))
    assert config.name == "large" and config.experiment == "large"
    assert config.overrides == {"training.steps": 99, "training.lr": 1e-3}
    assert config.arms == {"a": {"denoiser.name": "mamba", "denoiser.n_layers": 24},
                           "b": {"denoiser": "transformer", "training.warmup_steps": 5}, "d": {"denoiser": "dimba"}}
    assert {key: dimension.values for key, dimension in config.space.items()} == {"model.d_model": (512,)}
    assert config.seeds == (0, 1) and config.size == 3 * 2 and config.baseline == "a"


def test_chains_and_folders(write):
    last = write(base=BASE, large__middle="extends: ../base\nseeds: [7]\n", large__last="extends: middle\narms: null\n"
                                                                          "baseline: null\n")
    config = study.load(last)
    assert (config.seeds, config.arms, config.trials) == ((7,), {}, 4)


def test_a_null_that_removes_nothing_is_a_value(write):
    config = study.load(write(base="experiment: x\n", above="extends: base\noverrides: {a.b: null}\n"))
    assert config.overrides == {"a.b": None}


@pytest.mark.parametrize(("text", "message"), [
    ("arms: {bb: null}", "arms: bb: null removes it, but the other file has none of that name; expected one of a, b, "
     "c, or {} for an arm that changes nothing"),
    ("arms: {a: null, trans: null}", "arms: trans: null removes it, but "),
    ("space: {model.d_modl: null}", "space: model.d_modl: null removes it, but the other file has none of that name; "
     "expected one of model.d_model, training.clip; did you mean 'model.d_model'?"),
    ("metrics: {val/bpb: null}", "metrics: val/bpb: null removes it, but the other file has none of that name; it has "
     "no such names at all"),
    ("trails: null", "trails: null removes it, but the other file has none of that name; expected one of experiment, "
     "overrides, arms, space, trials, seeds, baseline; did you mean 'trials'?"),
])
def test_a_removal_of_what_is_not_there_is_refused(write, tmp_path, text, message):
    path = write(base=BASE, above=f"extends: base\n{text}\n")
    with pytest.raises(UserError) as refused:
        study.load(path)
    assert str(refused.value).startswith(f"{tmp_path}/above.yaml: {message}")


def test_an_arm_that_changes_nothing_is_written_with_braces(write):
    config = study.load(write(base=BASE, above="extends: base\narms: {d: {}, c: {x: null}}\n"))
    assert config.arms["d"] == {} and config.arms["c"] == {"x": None}


def test_names_of_studies_in_folders_differ_from_those_above(tmp_path):
    (tmp_path / "sweeps/large").mkdir(parents=True)
    assert study_file.default_name(tmp_path / "sweeps/large/lr.yaml") == "large-lr"
    assert study_file.default_name(tmp_path / "sweeps/lr.yaml") == "lr"
    assert study_file.default_name(tmp_path / "elsewhere/lr.yaml") == "lr"


def test_a_circle_is_refused(write, tmp_path):
    path = write(a="extends: b\n", b="extends: a\nexperiment: x\n")
    with pytest.raises(UserError) as refused:
        study.load(path)
    assert str(refused.value) == (f"{tmp_path}/b.yaml: extends: leads back to itself (b.yaml -> a.yaml -> b.yaml); "
                                  "expected files that end in one without `extends`")


@pytest.mark.parametrize(("text", "message"), [
    ("extends: 3\n", "extends: got 3, expected another study's file or its name"),
    ("extends: quickstat\n", "extends: study 'quickstat' does not exist; expected a YAML file, for example "),
])
def test_what_is_not_there_is_refused(write, text, message):
    path = write(a=text)
    with pytest.raises(UserError) as refused:
        study.load(path)
    assert str(refused.value).startswith(f"{path}: {message}")
