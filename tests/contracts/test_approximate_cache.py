"""Models whose cache is an approximation: it is said of their numbers, and what they cost is what they compute."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffusion_lm.blocks import Blocks, fold
from diffusion_lm.blockwise import objective_of
from diffusion_lm.config import build, config_class, from_tree, name_of
from diffusion_lm.errors import UserError
from diffusion_lm.evaluation.record import caution
from diffusion_lm.experiment import ExperimentConfig, load
from diffusion_lm.kind import Kind
from diffusion_lm.mixers.base import MixerConfig
from diffusion_lm.model import DenoisingModel, ModelConfig, model_flops_per_token
from diffusion_lm.noisy import Noisy
from diffusion_lm.objectives.base import TrainingNoise
from diffusion_lm.prompts import PromptConfig

VOCABULARY, LENGTH, SIZE = 300, 256, 64
FULL = {"mixer": {"reverse_scan": "full"}}
APPROXIMATE = "approximate (reverse_scan: full)"
SAID = f"the cache is {APPROXIMATE}: the likelihood is of the model without it, text is written with it"
TRUNKS = {
    "mamba": {"name": "mamba", "n_layers": 2, **FULL},
    "hydra": {"name": "mamba", "n_layers": 2, "mixer": {"name": "hydra", "reverse_scan": "full"}},
    "hybrid": {"name": "hybrid", "n_layers": 2, "pattern": "MA", "mamba": {"reverse_scan": "full"}},
}


def denoiser(tree):
    """The config, of blocks of 64 in 256 tokens."""
    tree = {**tree, "conditioning": "none"}
    return from_tree(ExperimentConfig, {"denoiser": tree, "block_size": SIZE, "data": {"length": LENGTH}}).denoiser


@pytest.mark.parametrize("name", TRUNKS)
def test_the_config_says_what_the_cache_is(name):
    assert denoiser(TRUNKS[name]).cache() == APPROXIMATE
    exact = {"name": TRUNKS[name]["name"]}
    assert denoiser(exact).cache() == "exact"


def test_a_mixer_that_says_no_more_is_named():
    class Other(config_class("mixers", "attention")):
        exact_cache = False

    mixed = config_class("denoisers", "transformer")(n_layers=2, mixer=Other())
    assert mixed.cache() == f"approximate (mixer {name_of(Other())})"
    assert MixerConfig().exact_cache


def objective(cache: str, size: int = SIZE):
    process = build(config_class("processes", "masked")(), build(config_class("schedules", "log_linear")()), VOCABULARY)
    noise = TrainingNoise(0, 4, build(config_class("times", "stratified")()))
    parts = (config_class("objectives", "masked")(), process, PromptConfig(fraction=0.0), noise)
    return objective_of(*parts, size, LENGTH, cache)


def test_the_number_depends_on_it_where_it_is_not_exact():
    plain, full = (objective(cache).kind() for cache in ("exact", APPROXIMATE))
    assert full == plain and dict(plain.depends_on) == {"block_size": SIZE}
    assert dict(full.depends_on) == {"block_size": SIZE, "cache": APPROXIMATE}
    assert plain.caution is None and full.caution == SAID
    assert Kind.of_result({"kind": full.to_dict()}).caution == SAID
    assert "cache" not in objective(APPROXIMATE, 0).kind().depends_on


def test_a_difference_between_models_with_and_without_carries_a_caution():
    plain, full, other = objective("exact").kind(), objective(APPROXIMATE).kind(), objective(APPROXIMATE, 32).kind()
    assert caution(plain, full) == caution(full, plain) == SAID
    slack = "the bounds depend on block_size, which differs: slack is part of the difference"
    assert caution(plain, other) == f"{SAID}; {slack}"
    assert caution(full, full) is None and caution(full, other) == slack


@pytest.mark.parametrize("name", TRUNKS)
def test_its_operations_are_those_of_whole_texts_that_end_in_every_block(name):
    """As counted in a pass, the trunk alone; of scans the prediction is the most."""
    config = denoiser(TRUNKS[name])
    process = build(config_class("processes", "masked")(), build(config_class("schedules", "log_linear")()), VOCABULARY)
    model = DenoisingModel(ModelConfig(d_model=128), config, process)
    tokens = fold(torch.zeros(2, LENGTH, dtype=torch.long), SIZE)
    noisy = Noisy(tokens, torch.full((len(tokens), 1), 0.5, dtype=torch.float64), blocks=Blocks(tokens, LENGTH // SIZE))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(noisy)
    predicted = model_flops_per_token(ModelConfig(d_model=128), config, process, LENGTH, block_size=SIZE)
    assert 0.85 <= counter.get_total_flops() / (2 * LENGTH * predicted) <= 1


def test_four_blocks_are_two_and_a_half_texts():
    """1, 2, 3 and 4 quarters, where a position costs the same in each: a scan in chunks shorter than a block."""
    mixer = {"inner": {"chunk_size": 32}}
    full = denoiser({"name": "mamba", "n_layers": 2, "mixer": {**mixer, "reverse_scan": "full"}})
    whole = full.flops_per_token(128, LENGTH)
    assert full.flops_per_token(128, LENGTH, SIZE) == pytest.approx(2.5 * whole)
    assert denoiser({"name": "mamba", "n_layers": 2, "mixer": mixer}).flops_per_token(128, LENGTH, SIZE) <= 2 * whole


def test_one_block_is_refused_for_training_and_read_where_it_was_trained(tmp_path):
    """Earlier versions trained it."""
    path = tmp_path / "one.yaml"
    path.write_text("data: {length: 64}\nblock_size: 64\n")
    with pytest.raises(UserError, match=r"block_size: got 64, which is data\.length: one block is the whole text"):
        load(path)
    assert load(path, trained=True).block_size == 64
    assert load(path, ["block_size=32"]).block_size == 32
