"""Keys that nothing reads, and schedules that leave most noise levels out, are refused in one line when a file is read.

Every part that declares a key unused is shown to do without it: the loss does not change with the key.
"""

import pytest
import torch
import yaml

from diffusion_lm.config import build
from diffusion_lm.errors import UserError
from diffusion_lm.experiment import load, save
from diffusion_lm.lightning_module import build_model
from diffusion_lm.noisy import Batch
from diffusion_lm.objectives.base import TrainingNoise
from diffusion_lm.training.run import Run

CAUSAL = ["objective=autoregressive", "sampler=left_to_right", "denoiser.mixer.causal=true"]
LITERAL = ["objective=dimba_literal"]
CASES = [
    (CAUSAL, "schedule", "cosine", "process 'left_to_right' counts tokens and asks no schedule"),
    (CAUSAL, "schedule={name: log_linear, eps: 0.5}", "", "process 'left_to_right' counts tokens"),
    (CAUSAL, "times", "antithetic", "objective 'autoregressive' draws no times"),
    (CAUSAL, "times.low", "0.2", "objective 'autoregressive' draws no times"),
    (CAUSAL, "prompt.fraction", "0.5", "to objective 'autoregressive' every prefix is a prompt"),
    (CAUSAL, "prompt.kind", "spans", "to objective 'autoregressive' every prefix is a prompt"),
    (["objective.estimator=fixed_count"], "objective.t_min", "0.1", "estimator=fixed_count draws a number of masks"),
    (["objective=gidd"], "objective.max_weight", "0.5", "objective.weighting=elbo limits no weight, only clamp does"),
    (["objective=gidd", "objective.weighting=dynamic"], "objective.max_weight", "0.5", "weighting=dynamic limits no"),
    (["objective={name: gaussian, bound: 0, cross_entropy: 1}"], "objective.reconstruction_share", "0.3",
     "with objective.bound 0 there are no such rows"),
    ([], "model.embedding_dim", "8", "the states of process 'masked' are ids"),
    (["objective=uniform"], "model.output_prior", "false", "the states of process 'uniform' are ids"),
    ([], "model.local_estimate", "false", "the states of process 'masked' are ids"),
    ([], "model.normalise_embeddings", "false", "the states of process 'masked' are ids"),
    (["objective=gaussian"], "model.token_std", "1.0", "process 'gaussian' starts with token vectors of norm sqrt"),
    (LITERAL, "model.output_prior", "false", "the last layer of objective 'dimba_literal' has no logits"),
    (["prompt.fraction=0"], "prompt.kind", "spans", "with prompt.fraction 0 no prompt is drawn"),
    (["prompt.fraction=0"], "prompt.dropout", "0.5", "with prompt.fraction 0 no prompt is drawn"),
    (["prompt.dropout=1"], "prompt.kind", "spans", "with prompt.dropout 1 every prompt is hidden"),
    (["training.lr_schedule=constant"], "training.min_lr", "0.9", "of lr_schedule 'constant' does not fall"),
    (["training.lr_schedule={name: wsd, decay_share: 0}"], "training.min_lr", "0.9",
     "of lr_schedule 'wsd' does not fall with these keys"),
    ([], "training.compile_backend", "eager", "with training.compile=false nothing is compiled"),
    (["training.weight_decay=0"], "training.decay_embeddings", "True", "with training.weight_decay 0 nothing decays"),
    (["denoiser.mlp_width=24"], "denoiser.mlp_expansion", "3.0", "as wide as denoiser.mlp_width=24 says"),
    (["denoiser.mlp_width=24"], "denoiser.mlp_expansion", "0.0", "as wide as denoiser.mlp_width=24 says"),
    (["denoiser.mlp_expansion=0"], "denoiser.mlp", "swiglu", "there are no MLPs"),
    (["denoiser.mlp_expansion=0"], "denoiser.mlp_bias", "True", "there are no MLPs"),
]  # fmt: skip


@pytest.fixture
def tiny(tmp_path):
    """A file of a small experiment."""
    path = tmp_path / "tiny.yaml"
    denoiser = {"name": "transformer", "n_layers": 1, "mixer": {"head_dim": 16}}
    path.write_text(yaml.safe_dump({"model": {"d_model": 16}, "denoiser": denoiser, "training": {"batch_size": 4}}))
    return path


@pytest.mark.parametrize(("before", "key", "value", "why"), CASES)
def test_a_key_without_effect_is_refused(tiny, before, key, value, why):
    load(tiny, before)
    with pytest.raises(UserError) as refused:
        load(tiny, [*before, f"{key}={value}" if value else key])
    line = str(refused.value)
    assert line.startswith(f"{key}: got {value}" if value not in ("", "false") else key.partition("=")[0]), line
    assert why in line and "which has no effect here: " in line and "; leave it out, or set it to " in line
    assert "\n" not in line


def test_the_leaf_is_named_with_its_default(tiny):
    with pytest.raises(UserError, match=r"^schedule\.eps: got 0\.5, .*; leave it out, or set it to 0\.001$"):
        load(tiny, [*CAUSAL, "schedule={name: log_linear, eps: 0.5}"])


def test_defaults_and_keys_that_are_read_are_accepted(tiny):
    """A file shared between arms may name a default; fraction 0 is what an autoregressive arm does anyway."""
    load(tiny, [*CAUSAL, "schedule=log_linear", "times=stratified", "times.low=0", "prompt.fraction=0"])
    load(tiny, ["model.embedding_dim=16", "model.output_prior=true", "objective.t_min=0.1"])
    load(tiny, ["objective=gidd", "objective.weighting=clamp", "objective.max_weight=0.5"])
    load(tiny, ["objective=gaussian", "model.output_prior=false", "model.embedding_dim=8"])
    load(tiny, ["training.min_lr=0.9", "training.compile=true", "training.compile_backend=eager"])
    load(tiny, ["training.lr_schedule=wsd", "training.min_lr=0.9", "training.decay_embeddings=true"])
    load(tiny, ["denoiser.mlp_width=24", "denoiser.mlp=swiglu", "denoiser.mlp_bias=true"])
    load(tiny, ["denoiser.mlp_expansion=0", "denoiser.mlp=gelu"])


@pytest.mark.parametrize("d_model", [16, 80, 96, 112, 752])
def test_an_expansion_too_small_for_an_mlp_is_refused_and_the_least_is_named(tiny, d_model):
    sized = ["denoiser.mixer.head_dim=2", f"model.d_model={d_model}"]
    with pytest.raises(UserError, match=rf"^denoiser: mlp_expansion: got 0\.01, .* d_model {d_model} ") as refused:
        load(tiny, [*sized, "denoiser.mlp_expansion=0.01"])
    least = str(refused.value).partition("expected at least ")[2].partition(",")[0]
    config = load(tiny, [*sized, f"denoiser.mlp_expansion={least}"])
    assert config.denoiser.width(d_model) == 8
    assert load(tiny, [*sized, "denoiser.mlp_expansion=0.01"], trained=True).denoiser.width(d_model) == 0


def loss_of(config):
    """The training loss of a fixed batch with the model of a fixed seed."""
    torch.manual_seed(0)
    model = build_model(config, 11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    noise = TrainingNoise(3, 4, build(config.times))
    objective = build(config.objective, model.process, config.prompt, noise)
    tokens = torch.randint(0, 11, (4, 12), generator=torch.Generator().manual_seed(1))
    return objective(model, objective.draw(Batch(tokens=tokens, position=torch.arange(4)))).loss


@pytest.mark.parametrize(("before", "key", "value", "why"), CASES)
def test_what_is_called_unused_changes_no_loss(tiny, before, key, value, why):
    plain, set_ = load(tiny, before), load(tiny, [*before, f"{key}={value}" if value else key], trained=True)
    assert torch.equal(loss_of(plain), loss_of(set_))


def test_a_run_that_was_trained_with_such_a_key_is_still_read(tiny, tmp_path):
    """Earlier versions accepted it."""
    run = tmp_path / "run"
    run.mkdir()
    save(load(tiny, ["model.embedding_dim=8", "schedule=gumbel"], trained=True), run / "config.yaml")
    assert Run(run).saved_config().model.embedding_dim == 8
    with pytest.raises(UserError, match=r"model\.embedding_dim: got 8"):
        load(run / "config.yaml")


@pytest.mark.parametrize(("overrides", "ends"), [
    (["schedule=gumbel"], "0.0665 to 4.88e-07"),
    (["objective=uniform", "schedule={name: sigma_linear, sigma_min: 1}"], "0.368 to 4.54e-05"),
    (["objective=gidd", "schedule={name: sqrt, s: 0.04}"], "0.8 to 0"),
    (["objective={name: discrete_time}", "schedule={name: geometric, sigma_max: 1}"], "1 to 0.368"),
    (["schedule={name: log_linear, eps: 0.999}"], "1 to 0.999"),
])  # fmt: skip
def test_a_schedule_that_leaves_noise_levels_out_is_refused_for_ids(tiny, overrides, ends):
    with pytest.raises(UserError) as refused:
        load(tiny, overrides)
    line = str(refused.value)
    assert f"got an alpha from {ends}, but process '" in line and "\n" not in line
    assert "expected it to begin at 0.9 or above and to end at 0.1 or below; change schedule." in line
    assert line.endswith("or take another schedule (schedule=log_linear)")


@pytest.mark.parametrize("schedule", ["sqrt", "geometric", "logistic", "cosine", "half_cosine", "polynomial"])
def test_schedules_of_the_whole_range_are_accepted_for_ids(tiny, schedule):
    assert load(tiny, [f"schedule={schedule}"])


def test_a_gaussian_process_takes_its_own_part_of_any_schedule(tiny):
    assert load(tiny, ["objective=gaussian", "schedule=gumbel"])
