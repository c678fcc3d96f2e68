"""Mamba-2, both directions of it and Hydra against loops over positions that were written for this test: outputs and
gradients, with every option, with documents and padding."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from diffusion_lm.layers.norm import GatedRMSNorm
from diffusion_lm.mixers.base import ONE_DOCUMENT, Context
from diffusion_lm.mixers.bidirectional import Bidirectional, BidirectionalConfig
from diffusion_lm.mixers.hydra import Hydra, HydraConfig
from diffusion_lm.mixers.mamba2 import Mamba2, Mamba2Config

CONFIGS = {
    "plain": Mamba2Config(d_state=4, head_dim=8, chunk_size=4),
    "groups": Mamba2Config(d_state=4, head_dim=4, n_groups=2, chunk_size=3),
    "wide": Mamba2Config(d_state=3, head_dim=8, expand=4, n_groups=2, d_conv=2, chunk_size=64),
    "no window": Mamba2Config(d_state=5, head_dim=16, d_conv=1, chunk_size=2),
    "no norm": Mamba2Config(d_state=4, head_dim=8, chunk_size=4, rmsnorm=False, conv_bias=False),
    "norm first": Mamba2Config(d_state=4, head_dim=4, n_groups=2, chunk_size=4, norm_before_gate=True, bias=True),
    "limits": Mamba2Config(d_state=4, head_dim=8, chunk_size=4, D_has_hdim=True, dt_limit=(0.01, 0.3)),
}
D_MODEL = 16
DOCUMENTS = (3, 3, 3, 1, 7, 7, 7, 7, 7, 3, 0)
"""Ids that come back, a document of one position, and padding at the end."""


def silu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x)


def gate_and_norm(y: torch.Tensor, z: torch.Tensor, norm: GatedRMSNorm | None, groups: int) -> torch.Tensor:
    if norm is None:
        return y * silu(z)
    value = y if norm.before_gate else y * silu(z)
    value = torch.cat([part / torch.sqrt((part**2).mean() + 1e-5) for part in value.chunk(groups)]) * norm.weight
    return value * silu(z) if norm.before_gate else value


def naive_mix(mixer: Mamba2, projected: torch.Tensor, segment) -> torch.Tensor:
    """in_proj's output to out_proj's input, position by position, as at generation: window, state, gate, norm."""
    config = mixer.config
    heads, groups, size, width = mixer.heads, config.n_groups, config.d_state, config.head_dim
    inner, channels = mixer.inner, mixer.inner + 2 * groups * size
    bias = 0 if mixer.conv1d.bias is None else mixer.conv1d.bias
    rows = []
    for i, position in enumerate(projected):
        if i == 0 or segment[i] != segment[i - 1]:
            window = [projected.new_zeros(channels)] * config.d_conv
            state = projected.new_zeros(heads, width, size)
        z, new, dt = position[:inner], position[inner : inner + channels], position[inner + channels :]
        window = [*window[1:], new]
        mixed = silu(bias + sum(mixer.conv1d.weight[:, 0, k] * window[k] for k in range(config.d_conv)))
        values, keys, queries = mixed.split((inner, groups * size, groups * size))
        skip = mixer.D if config.D_has_hdim else mixer.D.repeat_interleave(width)
        keys, queries = (v.view(groups, size).repeat_interleave(heads // groups, 0) for v in (keys, queries))
        step = torch.log(1 + torch.exp(dt + mixer.dt_bias)).clamp(*config.dt_limit)
        decay = torch.exp(-step * torch.exp(mixer.A_log))
        new = torch.einsum("h,hp,hn->hpn", step, values.view(heads, width), keys)
        state = decay[:, None, None] * state + new
        y = torch.einsum("hpn,hn->hp", state, queries).flatten() + skip * values
        rows.append(gate_and_norm(y, z, mixer.norm if config.rmsnorm else None, groups))
    return torch.stack(rows)


def naive_mamba2(mixer: Mamba2, x: torch.Tensor, segment) -> torch.Tensor:
    return mixer.out_proj(naive_mix(mixer, mixer.in_proj(x), segment))


def naive_both_ways(mixer: Bidirectional, x: torch.Tensor, segment) -> torch.Tensor:
    """Each direction on its own, the second on the turned row, then the merge by its formula."""
    config, there = mixer.config, mixer.forward_mixer
    back = there if config.sharing == "everything" else mixer.reverse_mixer
    outer = there if config.sharing != "independent" else back
    a = there.out_proj(naive_mix(there, there.in_proj(x), segment))
    b = outer.out_proj(naive_mix(back, outer.in_proj(x).flip(0), segment[::-1]).flip(0))
    if config.merge == "concatenate":
        return torch.cat((a, b), -1) @ mixer.merge.projection.weight.T
    if config.merge == "gated":
        gate = torch.sigmoid(x @ mixer.merge.gate.weight.T)
        return 2 * (gate * a + (1 - gate) * b)
    return a + b


def naive_hydra(mixer: Hydra, x: torch.Tensor, segment) -> torch.Tensor:
    """The matrix of the quasi-separable mixer entry by entry: below and above the diagonal, and on it."""
    config, heads, size, width = mixer.config, mixer.heads, mixer.config.d_state, mixer.config.head_dim
    inner, groups, half = mixer.widths[0], config.n_groups, config.d_conv // 2
    z, raw, dt = mixer.in_proj(x).split(mixer.widths, -1)
    length = len(x)
    run = [sum(segment[k] != segment[k - 1] for k in range(1, i + 1)) for i in range(length)]
    mixed = []
    for i in range(length):
        seen = [j for j in range(max(0, i - half), min(length, i + half + 1)) if run[j] == run[i]]
        mixed.append(silu(mixer.conv1d.bias + sum(mixer.conv1d.weight[:, 0, j - i + half] * raw[j] for j in seen)))
    own, *keys = torch.stack(mixed).split((inner, *[groups * size] * 4), -1)
    diagonal = own @ mixer.fc_D.weight.T + mixer.D
    step = torch.log(1 + torch.exp(dt + torch.cat((mixer.dt_bias, mixer.dt_bias)))).clamp(*config.dt_limit)
    own = own.view(length, heads, width)
    keys = [v.view(length, groups, size).repeat_interleave(heads // groups, 1) for v in keys]
    rows, rate = [], torch.exp(mixer.A_log)
    for i in range(length):
        y = diagonal[i, :, None] * own[i]
        for j in range(length):
            if run[j] != run[i] or i == j:
                continue
            key, query, steps, last = (
                (keys[0], keys[1], step[:, :heads], i - 1) if j < i else (keys[2], keys[3], step[:, heads:], i + 1)
            )
            passed = (steps[j + 1 : last + 1] if j < i else steps[last:j]).sum(0)
            weight = torch.exp(-rate * passed) * (query[last] * key[j]).sum(-1) * steps[j]
            y = y + weight[:, None] * own[j]
        rows.append(mixer.out_proj(gate_and_norm(y.flatten(), z[i], mixer.norm, 1)))
    return torch.stack(rows)


def compare(mixer: nn.Module, naive, length: int, segment=None, error: float = 2e-5) -> None:
    """Outputs and gradients of a float32 mixer and of a loop on a float64 copy of it."""
    generator = torch.Generator().manual_seed(length)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    x = torch.randn(2, length, D_MODEL, generator=generator, requires_grad=True)
    weight = torch.randn(2, length, D_MODEL, generator=generator)
    slow, x_slow = copy.deepcopy(mixer).double(), x.detach().double().requires_grad_()
    y = mixer(x, ONE_DOCUMENT if segment is None else Context(torch.tensor([segment] * 2)))
    expected = torch.stack([naive(slow, row, segment or (1,) * length) for row in x_slow])
    torch.testing.assert_close(y.double(), expected, rtol=error, atol=error)
    (y * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(x.grad.double(), x_slow.grad, rtol=10 * error, atol=10 * error)
    for (name, own), right in zip(mixer.named_parameters(), slow.parameters(), strict=True):
        scale = max(0.1, float(right.grad.abs().max()))
        torch.testing.assert_close(own.grad.double() / scale, right.grad / scale, rtol=0, atol=10 * error, msg=name)


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("length", [1, 3, 9])
def test_mamba2_is_its_recurrence(name, length):
    torch.manual_seed(1)
    compare(Mamba2(CONFIGS[name], D_MODEL), naive_mamba2, length)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_mamba2_starts_every_document_afresh(name):
    torch.manual_seed(1)
    compare(Mamba2(CONFIGS[name], D_MODEL), naive_mamba2, len(DOCUMENTS), DOCUMENTS)


@pytest.mark.parametrize("segment", [None, DOCUMENTS], ids=["one document", "documents"])
@pytest.mark.parametrize("merge", ["add", "gated", "concatenate"])
@pytest.mark.parametrize("sharing", ["independent", "projections", "everything"])
def test_bidirectional_is_two_recurrences_one_of_them_backwards(sharing, merge, segment):
    torch.manual_seed(2)
    config = BidirectionalConfig(inner=CONFIGS["plain"], sharing=sharing, merge=merge)
    compare(Bidirectional(config, D_MODEL), naive_both_ways, 11, segment)


@pytest.mark.parametrize("name", ["groups", "wide", "limits"])
def test_both_directions_take_the_options_of_the_inner_mixer(name):
    torch.manual_seed(2)
    mixer = Bidirectional(BidirectionalConfig(inner=CONFIGS[name], sharing="projections"), D_MODEL)
    compare(mixer, naive_both_ways, 11, DOCUMENTS)


HYDRAS = {
    "plain": HydraConfig(d_state=4, head_dim=8, chunk_size=4),
    "narrow": HydraConfig(d_state=4, head_dim=4, n_groups=2, d_conv=3, chunk_size=3, norm_before_gate=False),
    "limits": HydraConfig(d_state=3, head_dim=8, d_conv=1, chunk_size=64, dt_limit=(0.01, 0.3), bias=True),
}


@pytest.mark.parametrize("segment", [None, DOCUMENTS], ids=["one document", "documents"])
@pytest.mark.parametrize("name", list(HYDRAS))
def test_hydra_is_its_matrix(name, segment):
    torch.manual_seed(3)
    compare(Hydra(HYDRAS[name], D_MODEL), naive_hydra, 11, segment)


@torch.no_grad()
@pytest.mark.parametrize("config", [CONFIGS["plain"], CONFIGS["limits"], CONFIGS["no window"]])
@pytest.mark.parametrize("cuts", [(4,), (1, 2), (1, 2, 3, 10)])
def test_mamba2_goes_on_where_it_stopped(config, cuts):
    torch.manual_seed(4)
    mixer, x = Mamba2(config, D_MODEL), torch.randn(2, 12, D_MODEL)
    state, found = None, []
    for start, stop in itertools.pairwise((0, *cuts, 12)):
        y, state = mixer.go_on(x[:, start:stop], state)
        found.append(y)
    torch.testing.assert_close(torch.cat(found, 1), mixer(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_text_goes_on_as_the_document_of_its_first_position():
    """What comes after a boundary knows nothing of the state that was handed in."""
    torch.manual_seed(5)
    mixer, x = Mamba2(CONFIGS["plain"], D_MODEL), torch.randn(2, 12, D_MODEL)
    state = mixer.go_on(x[:, :5])[1]
    y, _ = mixer.go_on(x[:, 5:], state, Context(torch.tensor([[4] * 3 + [2] * 4] * 2)))
    torch.testing.assert_close(y[:, :3], mixer(x)[:, 5:8], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(y[:, 3:], mixer(x[:, 8:]), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["plain", "wide", "no window"])
@pytest.mark.parametrize("cuts", [*itertools.combinations(range(1, 11), 1), (3, 4, 5), tuple(range(1, 11))])
def test_documents_may_be_cut_anywhere(name, cuts):
    """Two rows with boundaries at different places; ids come back, and a cut may fall on a boundary or beside it."""
    torch.manual_seed(6)
    mixer, x = Mamba2(CONFIGS[name], D_MODEL).double(), torch.randn(2, 11, D_MODEL, dtype=torch.float64)
    segment, state, found = torch.tensor([DOCUMENTS, (1, 1, 1, 1, 2, 2, 1, 1, 1, 1, 1)]), None, []
    for start, stop in itertools.pairwise((0, *cuts, 11)):
        y, state = mixer.go_on(x[:, start:stop], state, Context(segment[:, start:stop]))
        found.append(y)
    expected = [naive_mamba2(mixer, row, ids) for row, ids in zip(x, segment.tolist(), strict=True)]
    torch.testing.assert_close(torch.cat(found, 1), torch.stack(expected))


@torch.no_grad()
def test_a_text_without_documents_goes_on_with_the_last_one():
    torch.manual_seed(7)
    mixer, x = Mamba2(CONFIGS["plain"], D_MODEL).double(), torch.randn(1, 9, D_MODEL, dtype=torch.float64)
    state = mixer.go_on(x[:, :4], None, Context(torch.tensor([[1, 1, 1, 2]])))[1]
    y, state = mixer.go_on(x[:, 4:6], state)
    more, _ = mixer.go_on(x[:, 6:], state, Context(torch.tensor([[2, 3, 3]])))
    expected = naive_mamba2(mixer, x[0], (1, 1, 1, 2, 2, 2, 2, 3, 3))[4:]
    torch.testing.assert_close(torch.cat((y, more), 1)[0], expected)


def test_mamba2_starts_with_mamba_ssms_steps_and_decays():
    torch.manual_seed(0)
    mixer = Mamba2(Mamba2Config(head_dim=1), 2000)
    step, A = nn.functional.softplus(mixer.dt_bias.detach()), mixer.A_log.detach().exp()
    assert step.min() >= 1e-3 * 0.999
    assert step.max() <= 1e-1 * 1.001
    assert abs(float(step.log().mean()) - math.log(1e-2)) < 4 * (math.log(100) / 12**0.5) / 4000**0.5
    assert A.min() >= 1
    assert A.max() <= 16
    assert abs(float(A.mean()) - 8.5) < 4 * (15 / 12**0.5) / 4000**0.5


def test_starting_values_are_within_the_ranges_that_are_asked_for():
    torch.manual_seed(0)
    config = Mamba2Config(head_dim=1, dt_min=0.01, dt_max=0.5, dt_init_floor=0.05, A_init_range=(2.0, 3.0))
    mixer = Mamba2(config, 500)
    step, A = nn.functional.softplus(mixer.dt_bias.detach()), mixer.A_log.detach().exp()
    assert 0.0499 < step.min() < 0.0501 and 0.4 < step.max() < 0.501
    assert 2 <= A.min() < 2.1 and 2.9 < A.max() <= 3


@pytest.mark.parametrize(("conv_init", "bound"), [(0.0, 0.5), (0.02, 0.02), (2.0, 2.0)])
def test_the_convolution_starts_uniformly_within_its_bound(conv_init, bound):
    """Conv1d's own bound is 1 / sqrt(inputs of an output) = 1 / sqrt(4)."""
    torch.manual_seed(0)
    weight = Mamba2(Mamba2Config(head_dim=1, conv_init=conv_init), 500).conv1d.weight.detach()
    assert 0.99 * bound < weight.max() <= bound and -bound <= weight.min() < -0.99 * bound
    assert float(weight.var()) == pytest.approx(bound**2 / 3, rel=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dt_min": 0.2}, "dt_min, dt_max: got 0.2, 0.1, expected two numbers above 0, the second no less"),
        ({"dt_init_floor": 0.0}, "dt_init_floor: got 0.0, expected a number above 0"),
        ({"dt_limit": (0.5, 0.1)}, "dt_limit: got 0.5, 0.1, expected two numbers of at least 0, the second larger"),
    ],
)
@pytest.mark.parametrize("cls", [Mamba2Config, HydraConfig])
def test_steps_without_a_meaning_are_refused(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(**options)


def test_options_without_a_meaning_are_refused():
    with pytest.raises(ValueError, match=r"A_init_range: got 0.0, 16.0, expected two numbers above 0"):
        Mamba2Config(A_init_range=(0.0, 16.0))
    for wrong in (-0.1, math.inf):
        with pytest.raises(ValueError, match=rf"conv_init: got {wrong}, expected a number above 0, or 0 for torch's"):
            Mamba2Config(conv_init=wrong)
    with pytest.raises(ValueError, match="norm_before_gate: got true without a norm, expected rmsnorm: true beside it"):
        Mamba2Config(rmsnorm=False, norm_before_gate=True)
    with pytest.raises(ValueError, match="d_conv: got 4, expected an odd number, since the convolution is centred"):
        HydraConfig(d_conv=4)
