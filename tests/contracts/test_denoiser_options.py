"""What the denoisers' options do: MLPs, norms, widths, residual precision, a hybrid's groups, a frozen encoder."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from diffusion_lm.config import build, config_class, from_tree, variants
from diffusion_lm.errors import UserError
from diffusion_lm.experiment import ExperimentConfig
from diffusion_lm.layers.stack import Residual
from diffusion_lm.noisy import Noisy

D_MODEL, ROWS, LENGTH = 64, 2, 16
SMALLEST = {"hybrid": {"n_layers": 2, "attention_every": 1}}


def config_of(name: str, **changes):
    return config_class("denoisers", name)(**({"n_layers": 1} | SMALLEST.get(name, {}) | changes))


def trunk_of(name: str, **changes):
    torch.manual_seed(0)
    return build(config_of(name, **changes), D_MODEL)


def hidden() -> torch.Tensor:
    return torch.randn(ROWS, LENGTH, D_MODEL, generator=torch.Generator().manual_seed(1))


def noisy() -> Noisy:
    x = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    return Noisy(x, torch.full((ROWS, 1), 0.5, dtype=torch.float64))


@pytest.mark.parametrize("name", variants("denoisers"))
@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("bias", [False, True])
def test_parameters_and_operations_are_predicted(name, mlp, norm, bias):
    """Against the same trunk without MLPs, in which the mixers and the conditioning of their branches are counted."""
    matrices, width = {"gelu": 2, "swiglu": 3}[mlp], 40
    options = {"mlp": mlp, "norm": norm, "mlp_bias": bias, "conditioning": config_class("conditioning", "film")()}
    if name == "dit":  # takes no other than its own
        options.pop("conditioning")
    sizes = []
    for changes in ({"mlp_expansion": 0.0}, {"mlp_width": width}):
        config = config_of(name, **options, **changes)
        trunk = trunk_of(name, **options, **changes)
        parameters = sum(p.numel() for p in trunk.parameters())
        assert config.parameters(D_MODEL) == parameters
        with FlopCounterMode(display=False) as counter:
            for block in trunk.stack.blocks:
                if block.mlp is not None:
                    block.mlp.inner(hidden())
        sizes.append((parameters, config.flops_per_token(D_MODEL, LENGTH), counter.get_total_flops()))
    modulation = trunk.conditioning.config.parts * D_MODEL * (trunk.conditioning.config.channels + 1)
    biases = ((matrices - 1) * width + D_MODEL) * bias
    each = matrices * D_MODEL * width + biases + D_MODEL + modulation
    layers = len(trunk.stack.blocks)
    assert sizes[1][0] - sizes[0][0] == layers * each
    assert sizes[1][1] - sizes[0][1] == layers * 2 * matrices * D_MODEL * width
    assert sizes[1][2] == ROWS * LENGTH * layers * 2 * matrices * D_MODEL * width


@torch.no_grad()
def test_swiglu_and_gelu_are_their_formulas():
    x = hidden()[0, 0]
    swiglu = trunk_of("transformer", mlp="swiglu", mlp_width=8).stack.blocks[0].mlp.inner
    gate, value = swiglu.up.weight[:8] @ x, swiglu.up.weight[8:] @ x
    expected = swiglu.down.weight @ (gate / (1 + torch.exp(-gate)) * value)
    torch.testing.assert_close(swiglu(hidden())[0, 0], expected)
    gelu = trunk_of("transformer", mlp_width=8).stack.blocks[0].mlp.inner
    up = gelu.up.weight @ x
    rational = torch.tanh((2 / torch.pi) ** 0.5 * (up + 0.044715 * up**3))
    torch.testing.assert_close(gelu(hidden())[0, 0], gelu.down.weight @ (0.5 * up * (1 + rational)))


@torch.no_grad()
@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_norms_are_their_formulas(tools, norm):
    block = tools.shaken(trunk_of("transformer", norm=norm)).stack.blocks[0]
    x = hidden() + 0.5
    centred = x - (x.mean(-1, keepdim=True) if norm == "layer" else 0)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * block.mlp.norm.weight
    torch.testing.assert_close(block.mlp.norm(x), expected)
    assert [name for name, _ in block.mixer.norm.named_parameters()] == ["weight"]


def test_a_width_in_channels_goes_before_the_expansion():
    cls = config_class("denoisers", "transformer")
    assert cls(mlp_width=24).width(D_MODEL) == 24
    assert cls(mlp_width=24, mlp_expansion=0.0).width(D_MODEL) == 24
    assert cls(mlp_expansion=0.0).width(D_MODEL) == 0
    assert cls(mlp_expansion=1.2).width(D_MODEL) == 72  # 76.8 down to a multiple of 8
    with pytest.raises(ValueError, match="mlp_width: got -8, expected channels, or 0 to go by mlp_expansion"):
        cls(mlp_width=-8)


@pytest.mark.parametrize("name", variants("denoisers"))
def test_the_residual_stream_is_float32_whatever_the_precision(tools, name):
    """Under autocast branches start and work in bfloat16, and are added in float32; so are the gradients."""
    trunk = tools.shaken(trunk_of(name))
    streams, starts = [], []
    for module in trunk.modules():
        if isinstance(module, Residual):
            module.register_forward_hook(lambda _, given, out: streams.extend((given[0].dtype, out.dtype)))
            module.inner.register_forward_pre_hook(lambda _, given: starts.append(given[0].dtype))
    x = hidden().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = trunk(x, noisy())
        trunk(hidden().bfloat16(), noisy())
    y.square().mean().backward()
    branches = 2 * len(trunk.stack.blocks)
    assert streams == [torch.float32] * 4 * branches
    assert starts == [torch.bfloat16] * 2 * branches
    assert y.dtype == x.grad.dtype == torch.float32
    exact = trunk(hidden(), noisy())
    assert 0 < (y - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        ({}, "MMMMMA"),
        ({"attention_position": "first"}, "AMMMMM"),
        ({"n_layers": 8, "attention_every": 3}, "MMMAMMMA"),
        ({"n_layers": 5, "attention_every": 1, "attention_position": "first"}, "AMAMA"),
        ({"n_layers": 3, "pattern": "MMA"}, "MMA"),
        ({"n_layers": 5, "pattern": "AM"}, "AMAMA"),
    ],
)
def test_a_hybrids_groups(changes, layers):
    config = config_class("denoisers", "hybrid")(**changes)
    assert config.layers() == layers
    families = {"M": "mamba", "A": "attention"}
    assert [mixer.family() for mixer in config.mixers()] == [families[letter] for letter in layers]


def test_a_pattern_and_a_group_that_contradict_one_another_are_refused():
    cls = config_class("denoisers", "hybrid")
    cls(n_layers=3, pattern="MMA", attention_every=2)  # they say the same
    line = "pattern: got 'MMA' beside attention_every=3 and attention_position=last, which make 'MMMA'; set "
    with pytest.raises(ValueError, match=line):
        cls(n_layers=3, pattern="MMA", attention_every=3)
    with pytest.raises(ValueError, match="attention_every: got 0, expected at least 1 Mamba block"):
        cls(attention_every=0)
    with pytest.raises(UserError, match=r"denoiser\.attention_position: no choice 'middle'"):
        from_tree(ExperimentConfig, {"denoiser": {"name": "hybrid", "attention_position": "middle"}})
    with pytest.raises(UserError, match=r"denoiser\.mlp: no choice 'relu'"):
        from_tree(ExperimentConfig, {"denoiser": {"name": "hybrid", "mlp": "relu"}})


def test_configs_from_before_the_options_mean_what_they_meant():
    """The keys that a run's config.yaml had then; the new ones' defaults change neither layers nor counts nor names."""
    old = {"name": "hybrid", "n_layers": 6, "mlp_expansion": 2.0, "pattern": "MMMMMA"}
    config = from_tree(ExperimentConfig, {"denoiser": old}).denoiser
    assert config == config_class("denoisers", "hybrid")()
    names = {name for name, _ in trunk_of("transformer").named_parameters() if ".mlp." in name}
    parts = ("norm.weight", "inner.up.weight", "inner.down.weight")
    modulation = ("branch.modulation.linear.weight", "branch.modulation.linear.bias")
    assert names == {f"stack.blocks.0.mlp.{part}" for part in (*parts, *modulation)}
    encoder = {name for name, _ in trunk_of("dimba").prompt_encoder.named_parameters()}
    assert encoder == {"nothing", "hidden.weight", "hidden.bias", "out.weight", "out.bias"}


def test_a_frozen_prompt_encoder_is_never_trained_and_still_tells_prompts_apart(tools):
    trunk = trunk_of("dimba", prompt_encoder="frozen")
    encoder = trunk.prompt_encoder
    assert [name for name, _ in encoder.named_parameters()] == ["nothing"]
    assert {"prompt_encoder.weight", "prompt_encoder.bias"} <= set(trunk.state_dict())
    assert trunk.config.parameters(D_MODEL) == sum(p.numel() for p in trunk.parameters())
    given = torch.tensor([[True, True] + [False] * (LENGTH - 2), [False] * LENGTH])
    x = hidden()
    vector = encoder(x, given)
    normed = x[0, :2] / x[0, :2].square().mean(-1, keepdim=True).sqrt()
    each = normed @ encoder.weight.T + encoder.bias
    torch.testing.assert_close(vector[0], (each * torch.sigmoid(each)).mean(0))
    torch.testing.assert_close(vector[1], encoder.nothing)
    torch.testing.assert_close(encoder(100 * x, given), vector)  # the embeddings' scale, which training changes
    torch.testing.assert_close(encoder.each(x)[0, :2].mean(0), vector[0])
    assert not torch.allclose(encoder(x.flip(1), given)[0], vector[0], atol=1e-2)


def test_the_encoders_operations_are_equal():
    mlp, frozen = (config_of("dimba", prompt_encoder=kind) for kind in ("mlp", "frozen"))
    assert mlp.flops_per_token(D_MODEL, LENGTH) == frozen.flops_per_token(D_MODEL, LENGTH)
    channels = mlp.conditioning.channels
    assert mlp.parameters(D_MODEL) - frozen.parameters(D_MODEL) == (D_MODEL + 1 + channels + 1) * channels


class Casts(TorchDispatchMode):
    """Changes of precision of activations, and how often each is made."""

    def __init__(self, smallest: int) -> None:
        super().__init__()
        self.smallest, self.found = smallest, Counter()

    def __torch_dispatch__(self, operation, types, arguments=(), named=None):
        result = operation(*arguments, **(named or {}))
        if "_to_copy" in str(operation) and result.dim() > 2 and result.numel() >= self.smallest:
            self.found[arguments[0].dtype, result.dtype] += 1
        return result


@torch.no_grad()
@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
@pytest.mark.parametrize("conditioning", ["adaln", "film", "additive", "none"])
def test_under_autocast_a_branch_changes_precision_once(mlp, norm, conditioning):
    """Where it leaves the residual stream; MLP and modulation then stay in bfloat16."""
    conditioning = config_class("conditioning", conditioning)()
    trunk = trunk_of("transformer", mlp=mlp, norm=norm, conditioning=conditioning)
    with Casts(ROWS * LENGTH * D_MODEL) as casts, torch.autocast("cpu", torch.bfloat16):
        trunk(hidden(), noisy())
    assert casts.found == {(torch.float32, torch.bfloat16): 2}
