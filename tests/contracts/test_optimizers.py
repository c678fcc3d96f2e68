"""Every optimiser over every denoiser: each parameter in one group, decay where it belongs, multipliers where named."""

import re
from dataclasses import fields, replace

import pytest
import torch
from torch import nn

from diffusion_lm.config import build, config_class, from_tree, name_of, variants
from diffusion_lm.errors import UserError
from diffusion_lm.experiment import ExperimentConfig
from diffusion_lm.lightning_module import build_model
from diffusion_lm.training.config import TrainingConfig
from diffusion_lm.training.optimizer import clip_gradients, learning_rates, make_optimizer

NEVER = re.compile(r"(^|\.)(A_log|D|dt_bias|nothing|given)$|bias$|(^|\.)[a-z_]*norm\.")
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)


def trunks() -> list[dict]:
    """Denoisers with every conditioning and every mixer that they take, with as few layers as they take."""
    found = []
    for denoiser in variants("denoisers"):
        has_mixer = "mixer" in {f.name for f in fields(config_class("denoisers", denoiser))}
        for conditioning in variants("conditioning"):
            for mixer in variants("mixers") if has_mixer else [None]:
                tree = {"name": denoiser, "conditioning": conditioning, **({"mixer": mixer} if mixer else {})}
                found += next(([t] for n in range(1, 7) if accepted(t := {**tree, "n_layers": n})), [])
    return found


def accepted(denoiser: dict) -> bool:
    try:
        from_tree(ExperimentConfig, {"denoiser": denoiser})
    except UserError:
        return False
    return True


TRUNKS = trunks()
OPTIMIZERS = [
    *(config_class("optimizers", name)() for name in variants("optimizers")),
    config_class("optimizers", "muon")(modulations=True),
]


def model_of(denoiser: dict | str = "transformer", objective: str = "masked", **training):
    config = from_tree(
        ExperimentConfig,
        {"denoiser": denoiser, "objective": objective, "training": training, "model": {"d_model": 128}},
    )
    with torch.device("meta"):
        return build_model(config, 19), config.training


def names_of(optimizer, model) -> list[list[str]]:
    """The parameters' names in each group."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


def weights_of(model, kinds) -> set[str]:
    return {f"{path}.weight" for path, part in model.named_modules() if isinstance(part, kinds)}


@pytest.mark.parametrize("trunk", TRUNKS, ids=lambda trunk: "-".join(str(value) for value in trunk.values()))
def test_every_parameter_is_in_one_group_and_decays_where_it_should(trunk):
    for objective in ("masked", "gaussian") if trunk["conditioning"] == "film" else ("masked",):
        model, training = model_of(trunk, objective, weight_decay=0.3)
        shapes = dict(model.named_parameters())
        linear = weights_of(model, nn.Linear)
        inside = {name for name in linear | weights_of(model, CONVOLUTIONS) if not name.startswith("embed.")}
        for optimizer in OPTIMIZERS:
            made = make_optimizer(model, replace(training, optimizer=optimizer))["optimizer"]
            groups = names_of(made, model)
            assert sorted(name for group in groups for name in group) == sorted(shapes)
            assert {group["weight_decay"] for group in made.param_groups} == {0.3, 0.0}
            decayed = {n for names, group in zip(groups, made.param_groups) if group["weight_decay"] for n in names}
            assert inside <= decayed
            assert not any(NEVER.search(name) or name.startswith("embed.") for name in decayed)
            assert all(shapes[name].dim() >= 2 for name in decayed)
            if name_of(optimizer) == "muon":
                muon = {n for names, group in zip(groups, made.param_groups) if "ns_steps" in group for n in names}
                check_matrices(muon, linear, optimizer.modulations)
                assert all(shapes[name].dim() == 2 for name in muon)


def check_matrices(muon: set[str], linear: set[str], modulations: bool) -> None:
    """Those of mixers, MLPs and prompt encoder, and of what the noise level drives if that is asked for."""
    driven = {name for name in linear if "conditioning" in name or "modulation" in name}
    wanted = {name for name in linear if ".inner." in name or name.startswith("denoiser.prompt_encoder.")}
    assert wanted and wanted <= muon
    assert driven & muon == (driven if modulations else set())
    assert all(name.startswith("denoiser.") for name in muon)


@pytest.mark.parametrize("optimizer", variants("optimizers"))
def test_embeddings_decay_by_choice(optimizer):
    for choice in (False, True):
        model, training = model_of(optimizer=optimizer, decay_embeddings=choice)
        made = make_optimizer(model, training)["optimizer"]
        (group,) = (g for g, names in zip(made.param_groups, names_of(made, model)) if "embed.weight" in names)
        assert bool(group["weight_decay"]) == choice
        assert "ns_steps" not in group


@pytest.mark.parametrize("optimizer", variants("optimizers"))
def test_multipliers_change_exactly_the_named(optimizer):
    multipliers = {"embed": 3.0, "denoiser.stack": 0.5, "denoiser.stack.blocks.0.mlp": 0.0, "head.bias": 2.0}
    model, training = model_of("mamba", optimizer=optimizer, lr=0.01, warmup_steps=0, lr_multipliers=multipliers)
    made = make_optimizer(model, training)["optimizer"]
    groups = names_of(made, model)
    assert sorted(n for names in groups for n in names) == sorted(n for n, _ in model.named_parameters())
    for names, group in zip(groups, made.param_groups):
        for name in names:
            wanted = 0.01
            if name.startswith("embed."):
                wanted = 0.03
            if name.startswith("denoiser.stack."):
                wanted = 0.0 if name.startswith("denoiser.stack.blocks.0.mlp.") else 0.005
            if name == "head.bias":
                wanted = 0.02
            assert group["lr"] == pytest.approx(wanted), name
    logged = learning_rates(made)
    assert logged["train/lr"] == 0.01
    assert logged["train/lr_embed"] == pytest.approx(0.03)
    assert logged["train/lr_head.bias"] == pytest.approx(0.02)
    if optimizer == "muon":
        assert logged["train/lr_muon.denoiser.stack"] == pytest.approx(0.005)
    own, training = model_of("mamba", optimizer=optimizer, lr=0.01, lr_multipliers={"denoiser": 1.0})
    assert learning_rates(make_optimizer(own, training)["optimizer"])["train/lr_denoiser"] == pytest.approx(1e-4)


def test_without_multipliers_there_are_the_two_groups_that_older_checkpoints_have():
    model, training = model_of()
    optimizer = make_optimizer(model, training)["optimizer"]
    assert type(optimizer) is torch.optim.AdamW
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    expected = [[], []]
    for name, parameter in model.named_parameters():
        expected[parameter.dim() < 2 or name == "embed.weight"].append(name)
    assert names_of(optimizer, model) == expected


@pytest.mark.parametrize("prefix", ["embedd", "denoiser.stac", "stack", "", "denoiser."])
def test_a_prefix_that_nothing_has_is_refused_when_the_model_is_built(prefix):
    with pytest.raises(UserError) as refused:
        model_of(lr_multipliers={"head": 1.0, prefix: 2.0})
    line = str(refused.value)
    assert line.startswith(f"experiment: lr_multipliers: got '{prefix}', with which no parameter's name begins")
    assert "; expected denoiser, embed, given, head, norm or a part of these, like denoiser." in line
    assert "\n" not in line
    assert line.endswith("; did you mean 'embed'?") == (prefix == "embedd")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"optimizer": "mouon"}, "optimizers: no variant 'mouon'; expected one of adamw, muon; did you mean 'muon'?"),
        ({"optimizer": {"name": "adamw", "eps": 0}}, "optimizer: eps: got 0.0, expected more than 0 and less than 1"),
        ({"optimizer": {"name": "muon", "lr": -1}}, "lr: got -1.0, expected a positive number, or 0 for training.lr"),
        ({"optimizer": {"name": "muon", "momentum": 1}}, "momentum: got 1.0, expected 0 <= momentum < 1"),
        ({"optimizer": {"name": "muon", "ns_steps": 0}}, "ns_steps: got 0, expected 1 to 99"),
        ({"optimizer": {"name": "muon", "scale": "none"}}, "scale: no choice 'none'; expected one of match_rms_adamw,"),
        ({"lr_multipliers": {"embed": -1.0}}, "lr_multipliers: got -1.0 for 'embed', expected 0 or a positive number"),
        ({"lr_multipliers": {"embed": "inf"}}, "lr_multipliers: got inf for 'embed', expected 0 or a positive number"),
        ({"lr_multipliers": {"embed": "fast"}}, "lr_multipliers: got {'embed': 'fast'}, expected a mapping of names"),
        ({"ema_decays": [1.0]}, "ema_decays: got [1.0], expected numbers with 0 < decay < 1"),
        ({"ema_decays": [0.9, 0.9]}, "ema_decays: got [0.9, 0.9] beside ema_decay 0.999, expected every decay once"),
        ({"ema_decays": [0.999]}, "ema_decays: got [0.999] beside ema_decay 0.999, expected every decay once"),
        ({"ema_decays": [0.9], "ema_decay": 0}, "ema_decays: got [0.9] with ema_decay 0; expected one of them as ema_"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(wrong, said):
    with pytest.raises(UserError) as refused:
        from_tree(ExperimentConfig, {"training": wrong})
    assert said.split(": ", 1)[1] in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("optimizer", variants("optimizers"))
def test_gradients_of_all_groups_are_clipped_together_and_every_parameter_moves(optimizer):
    config = TrainingConfig(optimizer=config_class("optimizers", optimizer)(), lr=0.1, warmup_steps=0)
    assert name_of(config.optimizer) == optimizer
    torch.manual_seed(0)
    net = nn.Module()
    net.denoiser, net.head = nn.Linear(3, 4), nn.Linear(4, 2)
    made = make_optimizer(net, config)["optimizer"]
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    net.head(net.denoiser(torch.ones(5, 3))).square().sum().mul(100).backward()
    clip_gradients(net, 1.0)
    assert sum(float(p.grad.square().sum()) for p in net.parameters()) == pytest.approx(1.0, rel=1e-4)
    made.step()
    assert not any(torch.equal(before[name], parameter) for name, parameter in net.named_parameters())
    made.zero_grad()
    assert all(parameter.grad is None for parameter in net.parameters())
    assert build(config.optimizer).config is config.optimizer
