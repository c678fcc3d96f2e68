"""experiments/diffumamba and experiments/matched: sizes, counts and operations by hand, budgets, the papers' recipe."""

import math

import pytest
import torch
import yaml
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffusion_lm.commands.describe import describe, match
from diffusion_lm.data.info import data_facts
from diffusion_lm.errors import UserError
from diffusion_lm.experiment import ROOT, ExperimentConfig, load
from diffusion_lm.lightning_module import build_model
from diffusion_lm.noisy import Noisy

SIZES = {"240m": 240 * 10**6, "0.5b": 500 * 10**6, "1.3b": 1300 * 10**6}
ARMS, MATCHED = ("transformer", "mamba", "hybrid"), ("transformer", "mamba", "hybrid", "dimba", "dimba_adaln")
LENGTH, VOCABULARY = 1024, 50257
CHANNELS, SINUSOIDS, STATE, HEAD = 128, 64, 128, 64
PRESETS = [(size, arm) for size in SIZES for arm in ARMS]


def preset(size: str, arm: str) -> ExperimentConfig:
    return load(f"diffumamba/{size}/{arm}")


def mixers_by_hand(d: int) -> dict[str, tuple[int, int]]:
    """Parameters of an attention layer and of two Mamba-2 layers (inner width 2 d), and their operations per token."""
    inner, heads, convolved = 2 * d, 2 * d // HEAD, 2 * d + 2 * STATE
    projections = d * (inner + convolved + heads) + inner * d
    scan = projections + 5 * convolved + 3 * heads + inner  # taps and bias; A_log, D, dt_bias; the norm
    chunk = 64
    products = 2 * projections + 2 * chunk * (STATE + inner) + 4 * STATE * inner
    return {"A": (4 * d * d, 8 * d * d + 4 * LENGTH * d), "M": (2 * scan, 2 * products)}


def layers_of(arm: str, n_layers: int) -> str:
    return {"transformer": "A" * n_layers, "mamba": "M" * n_layers, "hybrid": "MMMMMA" * (n_layers // 6)}[arm]


@pytest.mark.parametrize(("size", "arm"), PRESETS)
def test_counts_by_hand_and_on_the_meta_device(size, arm):
    config = preset(size, arm)
    d, n_layers, width = config.model.d_model, config.denoiser.n_layers, config.denoiser.mlp_width
    mixers = sum(mixers_by_hand(d)[letter][0] for letter in layers_of(arm, n_layers))
    embedding = (SINUSOIDS + 1) * CHANNELS + (CHANNELS + 1) * CHANNELS
    branches = 2 * n_layers
    trunk = mixers + n_layers * 2 * d * width + branches * (d + 3 * d * (CHANNELS + 1)) + embedding
    expected = trunk + 2 * d  # the marker of given positions and the last norm
    with torch.device("meta"):
        count = build_model(config, VOCABULARY).count()
    assert count["non_embedding"] == expected == describe(config)["parameters, non-embedding"]
    rows = 50304  # 50,257 ids and the mask's, padded to a multiple of 64
    assert count["embedding"] == (VOCABULARY + 1) * d + rows * d + rows
    assert abs(expected / SIZES[size] - 1) <= 0.0025


@pytest.mark.parametrize("size", SIZES)
def test_the_arms_of_a_size_agree_within_half_a_percent(size):
    arms = {arm: preset(size, arm) for arm in ARMS}
    counts = [describe(config)["parameters, non-embedding"] for config in arms.values()]
    assert max(counts) / min(counts) < 1.005
    assert len({config.model.d_model for config in arms.values()}) == 1


@pytest.mark.parametrize(("size", "arm"), PRESETS)
def test_a_preset_has_the_sizes_that_describe_finds(size, arm):
    config = preset(size, arm)
    (found,) = match(config, SIZES[size])
    sizes = (config.model.d_model, config.denoiser.n_layers, config.denoiser.mlp_width)
    assert (found["d_model"], found["n_layers"], found["mlp_width"]) == sizes


def operations_by_hand(config: ExperimentConfig, layers: str) -> int:
    """Per position, head included."""
    d, width = config.model.d_model, config.denoiser.mlp_width
    return sum(mixers_by_hand(d)[letter][1] + 4 * d * width for letter in layers) + 2 * d * 50304


def operations_are_counted(config: ExperimentConfig, layers: str) -> None:
    """In a forward pass of one row of tensors without storage."""
    each, d, n_layers = operations_by_hand(config, layers), config.model.d_model, len(layers)
    with FakeTensorMode(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        level = torch.full((1, 1), 0.5, dtype=torch.float64)
        build_model(config, VOCABULARY)(Noisy(torch.zeros(1, LENGTH, dtype=torch.long), level))
    levels = 2 * 2 * (SINUSOIDS * CHANNELS + CHANNELS * CHANNELS)  # the row's own, and that of given positions
    modulations = 2 * n_layers * 2 * CHANNELS * 3 * d
    assert counter.get_total_flops() == LENGTH * each + levels + modulations


@pytest.mark.parametrize(("size", "arm"), PRESETS)
def test_operations_by_hand(size, arm):
    config = preset(size, arm)
    expected = operations_by_hand(config, layers_of(arm, config.denoiser.n_layers))
    assert describe(config)["FLOPs per token, forward"] == expected


@pytest.mark.parametrize(("size", "arm", "layers"), [(s, a, x) for s in SIZES for a, x in zip(ARMS, "AM")])
def test_operations_of_one_block_are_counted(size, arm, layers):
    operations_are_counted(load(f"diffumamba/{size}/{arm}", ["denoiser.n_layers=1"]), layers)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "arm"), [pytest.param(*p, marks=() if p[0] == "240m" else pytest.mark.long) for p in PRESETS]
)
def test_operations_are_counted(size, arm):
    config = preset(size, arm)
    operations_are_counted(config, layers_of(arm, config.denoiser.n_layers))


@pytest.mark.parametrize(("size", "arm"), PRESETS)
def test_the_budget_is_20_tokens_per_parameter(size, arm):
    config = preset(size, arm)
    per_step = config.training.batch_size * config.data.length
    assert per_step == 512 * 1024
    assert config.training.steps == math.ceil(20 * SIZES[size] / per_step)
    facts = describe(config)
    assert facts["tokens planned"] == config.training.steps * per_step
    assert abs(facts["tokens planned"] / (20 * facts["parameters, non-embedding"]) - 1) < 0.005


@pytest.mark.parametrize(("size", "arm"), PRESETS)
def test_the_papers_recipe(size, arm):
    facts, config = describe(preset(size, arm)), preset(size, arm)
    wanted = {"objective": "masked", "process": "masked", "schedule": "log_linear", "vocabulary": VOCABULARY}
    assert {key: facts[key] for key in wanted} == wanted
    training = config.training
    assert (training.betas, training.weight_decay) == ((0.9, 0.95), 0.1)
    assert (training.lr, training.lr * training.min_lr) == pytest.approx((1e-4, 1e-6))
    assert config.data.length == LENGTH
    kinds = {"A": "attention", "M": "bidirectional"}
    assert facts["mixers"].split() == [kinds[letter] for letter in layers_of(arm, config.denoiser.n_layers)]


def test_data_that_is_not_there_is_refused_with_the_command_that_makes_it():
    with pytest.raises(UserError, match=r"no such folder of shards; make it: .* --tokenizer gpt2 --length 1024"):
        data_facts(preset("240m", "mamba").data)


def test_the_arms_of_the_learning_rate_study():
    configs = {arm: load(f"matched/{arm}") for arm in MATCHED}
    counts = [describe(config)["parameters, non-embedding"] for config in configs.values()]
    assert max(counts) / min(counts) < 1.005
    assert all(abs(count / 10**6 - 1) <= 0.0025 for count in counts)
    for arm, config in configs.items():
        (found,) = match(config, 10**6, d_model=128)
        assert (found["n_layers"], found["mlp_width"]) == (config.denoiser.n_layers, config.denoiser.mlp_width)
        for study in ("learning_rate", "learning_rate_seeds"):
            written = yaml.safe_load((ROOT / "sweeps" / f"{study}.yaml").read_text())
            assert written["experiment"] == "matched/common"
            over = yaml.safe_dump(written["arms"][arm]["denoiser"], default_flow_style=True).splitlines()[0]
            assert load("matched/common", [f"denoiser={over}"]).denoiser == config.denoiser
