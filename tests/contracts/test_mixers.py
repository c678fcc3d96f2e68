"""Every mixer: which positions reach which, odd lengths, and the counts that its config predicts."""

import itertools
from dataclasses import fields

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffusion_lm.config import build, config_class, variants
from diffusion_lm.mixers.base import Context

D_MODEL = 64


def cases() -> list:
    """Every variant by default, and with each switch of its config turned on."""
    found = []
    for name in variants("mixers"):
        cls = config_class("mixers", name)
        switches = {f.name: not f.default for f in fields(cls) if isinstance(f.default, bool)}
        found.append(pytest.param(cls(), id=name))
        found += [pytest.param(cls(**{s: value}), id=f"{name}-{s}") for s, value in switches.items()]
        named = [f for f in fields(cls) if "choices" in f.metadata and f.name not in cls().of_blocks()]
        words = {f.name: f.metadata["choices"] for f in named}
        for chosen in list(itertools.product(*words.values()))[1:]:  # the first is the default
            found.append(pytest.param(cls(**dict(zip(words, chosen, strict=True))), id="-".join((name, *chosen))))
        if "n_kv_heads" in cls.__dataclass_fields__:
            found.append(pytest.param(cls(n_kv_heads=2, head_dim=16), id=f"{name}-grouped"))
        if "inner" in cls.__dataclass_fields__:
            attention = config_class("mixers", "attention")(causal=True)
            for sharing in ("independent", "everything"):
                found.append(pytest.param(cls(inner=attention, sharing=sharing), id=f"{name}-attention-{sharing}"))
        if "n_groups" in cls.__dataclass_fields__:
            found.append(pytest.param(cls(n_groups=2, head_dim=32), id=f"{name}-groups"))
    return found


@pytest.fixture(params=cases())
def config(request):
    return request.param


def mixer_of(config, seed: int = 0, d_model: int = D_MODEL):
    torch.manual_seed(seed)
    return build(config, d_model)


def hidden(length: int, rows: int = 2, seed: int = 0, d_model: int = D_MODEL) -> torch.Tensor:
    return torch.randn(rows, length, d_model, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize("length", [*range(1, 18), 65, 127, 130])
def test_any_length_keeps_its_shape(config, length):
    y = mixer_of(config)(hidden(length))
    assert y.shape == (2, length, D_MODEL)
    assert y.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("length", [5, 70])
def test_the_last_token_moves_the_first_output_unless_causal(config, length):
    mixer, x = mixer_of(config), hidden(length)
    moved = x.clone()
    moved[:, -1] += torch.randn(D_MODEL, generator=torch.Generator().manual_seed(1))
    change = (mixer(moved) - mixer(x)).abs().amax(-1)
    assert (change[:, -1] > 1e-4).all()
    if config.is_causal():
        assert (change[:, :-1] == 0).all()
    else:
        assert (change[:, 0] > 1e-7).all()


@torch.no_grad()
@pytest.mark.parametrize("length", [5, 70])
def test_the_first_token_moves_the_last_output(config, length):
    """In float64, whose error is far below what two heads that forget leave of it."""
    mixer, x = mixer_of(config).double(), hidden(length).double()
    moved = x.clone()
    moved[:, 0] += 10 * torch.randn(D_MODEL, generator=torch.Generator().manual_seed(1))
    assert ((mixer(moved) - mixer(x)).abs().amax(-1)[:, -1] > 1e-11).all()


@torch.no_grad()
def test_rows_do_not_see_each_other(config):
    mixer, x = mixer_of(config), hidden(9, rows=3)
    torch.testing.assert_close(mixer(x)[1:2], mixer(x[1:2]), rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_causal_outputs_do_not_depend_on_how_long_the_text_goes_on(config):
    if not config.is_causal():
        config = config_class("mixers", "mamba2")()
    mixer, x = mixer_of(config), hidden(75)
    torch.testing.assert_close(mixer(x)[:, :66], mixer(x[:, :66]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("d_model", [64, 128])
def test_parameters_are_predicted(config, d_model):
    built = sum(p.numel() for p in mixer_of(config, d_model=d_model).parameters())
    assert config.parameters(d_model) == built


@torch.no_grad()
@pytest.mark.parametrize("length", [32, 64, 128, 192])
def test_operations_are_predicted(config, length):
    """Matrix products, exactly. Lengths are whole chunks or less than one: a rest is padded, which costs more, and rows
    of up to 16 positions share a chunk, which costs more products and less time."""
    mixer = mixer_of(config)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        mixer(hidden(length))
    assert counter.get_total_flops() == config.flops_per_token(D_MODEL, length) * 2 * length


@torch.no_grad()
def test_operations_of_a_length_that_chunks_do_not_divide_are_bounded(config):
    """A rest of a chunk costs at most what the padded length costs."""
    mixer, length = mixer_of(config), 100
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        mixer(hidden(length))
    predicted = config.flops_per_token(D_MODEL, length) * 2 * length
    assert predicted <= counter.get_total_flops() <= predicted * 128 / 100


def test_every_parameter_gets_a_gradient(config):
    mixer = mixer_of(config)
    (mixer(hidden(70)) ** 2).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in mixer.parameters())


@torch.no_grad()
def test_bfloat16_stays_close(config):
    mixer, x = mixer_of(config), hidden(70)
    with torch.autocast("cpu", torch.bfloat16):
        rough = mixer(x).float()
    exact = mixer(x)
    assert (rough - exact).norm() < 0.03 * exact.norm()


@torch.no_grad()
def test_bidirectional_runs_its_inner_mixer_both_ways(tools):
    mixer = mixer_of(config_class("mixers", "bidirectional")())
    x = hidden(11)
    there, back = mixer.forward_mixer(x), mixer.reverse_mixer(x.flip(1)).flip(1)
    torch.testing.assert_close(mixer(x), there + back)
    assert not torch.equal(mixer.forward_mixer.in_proj.weight, mixer.reverse_mixer.in_proj.weight)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="head_dim: got 48, expected a divisor of d_model 64"):
        build(config_class("mixers", "attention")(head_dim=48), 64)
    with pytest.raises(ValueError, match="head_dim: got 5, expected an even number"):
        build(config_class("mixers", "attention")(head_dim=5), 10)
    with pytest.raises(ValueError, match="head_dim 48 and n_groups 1: expected expand"):
        build(config_class("mixers", "mamba2")(head_dim=48), 64)
    with pytest.raises(ValueError, match="n_groups 3: expected expand"):
        build(config_class("mixers", "mamba2")(n_groups=3), 64)
    with pytest.raises(ValueError, match="inner: got attention, which sees both directions already"):
        config_class("mixers", "bidirectional")(inner=config_class("mixers", "attention")())
    with pytest.raises(ValueError, match="sharing: got projections, but attention cannot be run between its proj"):
        causal = config_class("mixers", "attention")(causal=True)
        config_class("mixers", "bidirectional")(inner=causal, sharing="projections")
    with pytest.raises(ValueError, match="head_dim 48 and n_groups 1: expected expand"):
        build(config_class("mixers", "hydra")(head_dim=48), 64)


@torch.no_grad()
def test_documents_do_not_see_each_other(config):
    """Each of them alone gives what it gives in a row with others and padding."""
    mixer, x = mixer_of(config), hidden(90)
    segment = torch.tensor([4] * 31 + [9] + [4] * 40 + [0] * 18).expand(2, -1)
    apart = torch.cat([mixer(part) for part in x.split((31, 1, 40, 18), 1)], 1)
    for context in (Context(segment), mixer.prepare(x, Context(segment))):
        torch.testing.assert_close(mixer(x, context)[:, :72], apart[:, :72], rtol=1e-4, atol=1e-5)
