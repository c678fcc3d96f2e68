"""Planning: once, whatever happens, and never for a study that changed."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
from omegaconf import OmegaConf

from diffusion_lm.config import differences
from diffusion_lm.errors import UserError
from sweeps.definition import experiments as experiment_files
from sweeps.definition import facts, planner
from sweeps.records import storage

DESIGN = {"arms": {"a": {"denoiser": "mamba"}, "b": {}}, "space": {"width": [32, 64]}, "seeds": [0, 1]}


def test_planning_again_adds_nothing(write_study, folder_of, experiments):
    folder = folder_of(write_study(**DESIGN))
    for _ in range(3):
        study = planner.plan(folder, experiments)
    assert len(study.trials) == 8
    assert study.metric_names == ["val/nll"]
    assert study.trials[0].system_attrs["fixed_params"] == {"arm": "a", "width": 32}
    assert study.trials[0].user_attrs == {"row": 0, "cell": "a,width=32", "arm": "a", "seed": 0}


def test_many_planners_at_once_enqueue_each_row_once(write_study, folder_of, experiments):
    folder = folder_of(write_study(**DESIGN))
    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(planner.plan, folder, experiments) for _ in range(8)]:
            future.result()
    rows = [trial.user_attrs["row"] for trial in storage.load(folder).trials]
    assert sorted(rows) == list(range(8))


def test_planner_that_died_half_way_is_completed(write_study, folder_of, experiments, monkeypatch):
    folder = folder_of(write_study(**DESIGN))
    with monkeypatch.context() as patch:
        patch.setattr(planner.design, "rows", lambda config, rows=planner.design.rows: rows(config)[:3])
        planner.plan(folder, experiments)
    assert len(storage.load(folder).trials) == 3
    assert [trial.user_attrs["row"] for trial in planner.plan(folder, experiments).trials] == list(range(8))


def test_sampled_trials_are_not_enqueued_ahead(write_study, folder_of, experiments):
    folder = folder_of(write_study(space={"lr": {"low": 0.001, "high": 0.002}}, trials=5))
    assert planner.plan(folder, experiments).trials == []


def test_changed_definition_is_refused_with_the_difference(write_study, folder_of, experiments):
    planner.plan(folder_of(write_study(arms={"a": {"lr": 0.01}})), experiments)
    changed = folder_of(write_study(arms={"a": {"lr": 0.02}}, seeds=[1]))
    with pytest.raises(UserError, match=r"study 's': its definition changed since it started \(arms.a.lr: 0.01 -> "
                                        r"0.02; seeds: \[\] -> \[1\]\); restore it, or give the study another name"):
        planner.plan(changed, experiments)


def test_changed_experiment_is_refused_with_the_difference(write_study, folder_of, experiments, monkeypatch):
    folder = folder_of(write_study(arms={"a": {"denoiser": "mamba"}}))
    planner.plan(folder, experiments)
    experiment_files.refuse_changes(folder, experiments)
    monkeypatch.setitem(experiments.DEFAULTS, "width", 65)
    with pytest.raises(UserError, match=r"the experiment 'fake' changed since the study started \(a.width: 64 -> 65\)"):
        experiment_files.refuse_changes(folder, experiments)


def test_a_key_that_is_new_and_at_its_default_is_no_change(write_study, folder_of, experiments, monkeypatch):
    folder = folder_of(write_study(arms={"a": {"denoiser": "mamba"}}))
    with monkeypatch.context() as before:
        before.delitem(experiments.DEFAULTS, "pause")
        planner.plan(folder, experiments)
    experiment_files.refuse_changes(folder, experiments)
    monkeypatch.setattr(experiments, "default_values", lambda tree: {**experiments.DEFAULTS, "pause": 1.0})
    with pytest.raises(UserError, match=r"changed since the study started \(a.pause: None -> 0.0\)"):
        experiment_files.refuse_changes(folder, experiments)


def test_defaults_are_those_of_the_variants_that_an_experiment_names():
    """Of a real experiment; a part that is chosen has no other default than what was chosen."""
    from diffusion_lm.experiment import default_values, load, to_dict

    tree = to_dict(load("quickstart", ["denoiser=mamba", "denoiser.mixer.inner.d_state=7", "training.steps=3"]))
    usual = default_values(tree)
    assert usual["denoiser"]["mixer"]["inner"]["d_state"] != 7 and usual["training"]["steps"] != 3
    assert usual["denoiser"]["name"] == "transformer" and usual["process"] == tree["process"]
    assert (usual["training"]["from_pretrained"], usual["block_size"]) == ("", 0)
    older = copy.deepcopy(tree)
    del older["training"]["from_pretrained"], older["block_size"], older["denoiser"]["mixer"]["inner"]["d_state"]
    left = experiment_files._without_new(tree, older, usual)
    assert differences(older, left) == ["denoiser.mixer.inner.d_state: None -> 7"]


def test_refused_pairing_names_its_cell_and_leaves_nothing(write_study, folder_of, experiments):
    folder = folder_of(write_study(space={"denoiser": ["mamba", "dimba"], "objective": ["gaussian", "masked"]}))
    with pytest.raises(UserError, match="denoiser=dimba, objective=masked: denoiser 'dimba' has no meaning"):
        planner.plan(folder, experiments)
    assert not folder.path.exists()


@pytest.mark.parametrize(("keys", "message"), [
    ({"space": {"lr": [1, 1.0]}}, "space: lr=1 and lr=1.0 are one experiment; remove one of them (`seeds` asks for "
                                  "replicates)"),
    ({"arms": {"a": {}}, "space": {"width": [64, 128], "lr": {"choices": [0.5, 2, 2.0]}}, "trials": 5},
     "space: lr=2 and lr=2.0 are one experiment of arm a; remove one of them (`seeds` asks for replicates)")])
def test_choices_that_are_one_experiment_are_refused(write_study, folder_of, experiments, keys, message):
    folder = folder_of(write_study(**keys))
    with pytest.raises(UserError) as error:
        planner.plan(folder, experiments)
    assert str(error.value) == message and not folder.path.exists()


def test_a_point_that_is_written_otherwise_is_no_second_experiment(write_study, folder_of, experiments):
    folder = folder_of(write_study(space={"lr": {"low": 1.0, "high": 2.0}}, trials=3, points=[{"lr": 1}]))
    planner.plan(folder, experiments)


def test_arms_that_are_one_experiment_are_told(write_study, folder_of, experiments):
    folder = folder_of(write_study(arms={"a": {}, "b": {"width": 64}, "c": {"width": 128}}, seeds=[0, 1]))
    planner.plan(folder, experiments)
    assert "arms: a and b are one experiment under different names" in facts.lines(folder, experiments)


def test_arms_that_meet_in_one_corner_are_not_one_experiment(write_study, folder_of, experiments):
    folder = folder_of(write_study(arms={"a": {}, "b": {}},
                                   space={"width": {"choices": [64, 128], "when": {"arm": "b"}}}))
    planner.plan(folder, experiments)
    assert not any("one experiment" in line for line in facts.lines(folder, experiments))


def test_arm_that_does_not_report_the_metric_is_refused_before_it_is_trained(write_study, folder_of, experiments):
    arms = {"good": {}, "literal": {"objective": "literal"}}
    folder = folder_of(write_study(arms=arms))
    with pytest.raises(UserError) as refused:
        planner.plan(folder, experiments)
    assert str(refused.value) == (
        "arm literal: val/nll: is not reported (no bound?); expected metrics of val/mse; leave the arm out, or compare "
        "by another metric")
    assert not folder.path.exists()
    with pytest.raises(UserError, match=r"^arm good: val/mse: is not reported"):
        planner.plan(folder_of(write_study("t", arms=arms, metrics={"val/mse": "minimize"})), experiments)
    assert planner.plan(folder_of(write_study("u", arms=arms, metrics={"throughput/tokens_per_second": "maximize"})),
                        experiments)


def test_a_pruner_does_not_compare_numbers_of_different_kinds(write_study, folder_of, experiments):
    arms = {"a": {"objective": "masked"}, "b": {"objective": "gaussian"}}
    folder = folder_of(write_study(arms=arms, pruner="MedianPruner"))
    kinds = r"different kinds \(gaussian, continuous time; masked, continuous time\); expected arms of one kind, or "
    with pytest.raises(UserError, match=f"^pruner: MedianPruner stops trials by the numbers of others, and .* {kinds}"):
        planner.plan(folder, experiments)
    assert planner.plan(folder_of(write_study("t", arms=arms)), experiments)
    assert planner.plan(folder_of(write_study("u", arms={"a": {}}, pruner="MedianPruner")), experiments)


def test_study_file_in_the_folder_is_the_study(write_study, folder_of, experiments):
    folder = folder_of(write_study(**DESIGN))
    planner.plan(folder, experiments)
    again = folder_of(folder.definition)
    assert again.config == folder.config and len(planner.plan(again, experiments).trials) == 8


def test_what_decides_when_to_stop_may_change_and_is_kept(write_study, folder_of, experiments):
    planner.plan(folder_of(write_study(**DESIGN, budget={"trials": 2})), experiments)
    changed = folder_of(write_study(**DESIGN, budget={"trials": 5}, restarts={"node": 3}))
    assert len(planner.plan(changed, experiments).trials) == 8
    kept = folder_of(changed.definition).config
    assert (kept.budget.trials, kept.restarts["node"], kept.restarts["time"]) == (5, 3, 100)


def test_study_that_started_before_a_key_existed_goes_on(write_study, folder_of, experiments):
    folder = folder_of(write_study(**DESIGN))
    planner.plan(folder, experiments)
    older = OmegaConf.load(folder.definition)
    for key in ("budget", "restarts", "points", "design", "constraints", "warm_start", "replicates"):
        del older[key]
    folder.definition.write_text(OmegaConf.to_yaml(older))
    assert len(planner.plan(folder, experiments).trials) == 8
    with pytest.raises(UserError, match=r"its definition changed since it started \(constraints.parameters: None -> "):
        planner.plan(folder_of(write_study(**DESIGN, constraints={"parameters": {"max": 5}})), experiments)


def test_sizes_that_do_not_fit_together_are_refused_before_anything_is_written(write_study, folder_of, experiments):
    folder = folder_of(write_study(arms={"a": {}, "b": {"width": 33}}))
    with pytest.raises(UserError, match=r"^arm b: width: got 33, expected a multiple of 8$"):
        planner.plan(folder, experiments)
    assert not folder.path.exists()


def test_a_real_model_is_built_without_memory_when_its_arm_is_planned(write_study, folder_of):
    """Of a width whose parameters would fill 17 TB; and one whose heads do not divide it is refused."""
    real = experiment_files.Core()
    wide = {"model.d_model": 2**20, "denoiser": {"name": "transformer", "n_layers": 1, "mlp_width": 64}}
    config = folder_of(write_study(experiment="quickstart", arms={"wide": wide})).config
    assert experiment_files.try_all(config, real, build=True)["wide"]["model"]["d_model"] == 2**20
    config = folder_of(write_study("t", experiment="quickstart", arms={"odd": {"model.d_model": 72}})).config
    assert experiment_files.try_all(config, real), "reading alone does not see it"
    with pytest.raises(UserError, match=r"^arm odd: quickstart: head_dim: got 64, expected a divisor of d_model 72$"):
        experiment_files.try_all(config, real, build=True)
