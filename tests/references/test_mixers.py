"""Attention and Mamba-2 against loops over positions that were written for this test, outputs and gradients."""

import copy
import math

import pytest
import torch
from torch import nn

from diffusion_lm.layers.rotary import rotary_table, rotate
from diffusion_lm.mixers.attention import Attention, AttentionConfig
from diffusion_lm.mixers.bidirectional import Bidirectional, BidirectionalConfig
from diffusion_lm.mixers.mamba2 import Mamba2, Mamba2Config


def rotated(vector: torch.Tensor, position: int) -> torch.Tensor:
    """Channels (i, i + P/2) turned as one complex number by position * 10000^(-2i/P)."""
    half = len(vector) // 2
    angle = torch.tensor([position * 10_000 ** (-2 * i / len(vector)) for i in range(half)], dtype=torch.float64)
    turned = torch.complex(vector[:half], vector[half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag))


def naive_attention(mixer: Attention, x: torch.Tensor, head_dim: int, causal: bool) -> torch.Tensor:
    """Position by position, head by head, float64. x: [L, D]"""
    length, d_model = x.shape
    q, k, v = (x @ w.T for w in mixer.qkv.weight.split(d_model))
    rows = []
    for i in range(length):
        heads = []
        for h in range(0, d_model, head_dim):
            part = slice(h, h + head_dim)
            seen = range(i + 1) if causal else range(length)
            own = rotated(q[i, part], i)
            scores = torch.stack([own @ rotated(k[j, part], j) for j in seen]) / math.sqrt(head_dim)
            weights = scores.exp() / scores.exp().sum()
            heads.append(sum(w * v[j, part] for w, j in zip(weights, seen, strict=True)))
        rows.append(mixer.out_proj.weight @ torch.cat(heads))
    return torch.stack(rows)


def naive_mamba2(mixer: Mamba2, x: torch.Tensor, config: Mamba2Config) -> torch.Tensor:
    """The whole layer, position by position, as at generation: convolution window, state, gate, norm. x: [L, D]"""
    inner, heads = config.expand * x.shape[1], config.expand * x.shape[1] // config.head_dim
    state_size, groups = config.d_state, config.n_groups
    channels = inner + 2 * groups * state_size
    window = [x.new_zeros(channels)] * config.d_conv
    states = [x.new_zeros(config.head_dim, state_size) for _ in range(heads)]
    rows = []
    for position in x:
        projected = mixer.in_proj.weight @ position
        z, new, dt = projected[:inner], projected[inner : inner + channels], projected[inner + channels :]
        window = [*window[1:], new]
        mixed = mixer.conv1d.bias + sum(mixer.conv1d.weight[:, 0, k] * window[k] for k in range(config.d_conv))
        mixed = mixed * torch.sigmoid(mixed)
        values, keys, queries = mixed.split((inner, groups * state_size, groups * state_size))
        ys = []
        for h in range(heads):
            g = h // (heads // groups)
            own, key, query = (
                values[h * config.head_dim : (h + 1) * config.head_dim],
                keys[g * state_size : (g + 1) * state_size],
                queries[g * state_size : (g + 1) * state_size],
            )
            step = torch.log(1 + torch.exp(dt[h] + mixer.dt_bias[h]))
            decay = torch.exp(-step * torch.exp(mixer.A_log[h]))
            states[h] = decay * states[h] + step * torch.outer(own, key)
            ys.append(states[h] @ query + mixer.D[h] * own)
        gated = torch.cat(ys) * z * torch.sigmoid(z)
        normed = torch.cat([part / torch.sqrt((part**2).mean() + 1e-5) for part in gated.chunk(groups)])
        rows.append(mixer.out_proj.weight @ (normed * mixer.norm.weight))
    return torch.stack(rows)


def compare(mixer: nn.Module, naive, length: int, d_model: int, error: float = 1e-5) -> None:
    """Outputs and gradients of a float32 mixer and of a loop on a float64 copy of it."""
    generator = torch.Generator().manual_seed(length)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    x = torch.randn(2, length, d_model, generator=generator, requires_grad=True)
    weight = torch.randn(2, length, d_model, generator=generator)
    slow, x_slow = copy.deepcopy(mixer).double(), x.detach().double().requires_grad_()
    y, expected = mixer(x), torch.stack([naive(slow, row) for row in x_slow])
    torch.testing.assert_close(y.double(), expected, rtol=error, atol=error)
    (y * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(x.grad.double(), x_slow.grad, rtol=10 * error, atol=10 * error)
    for (name, own), right in zip(mixer.named_parameters(), slow.parameters(), strict=True):
        scale = max(0.1, float(right.grad.abs().max()))
        torch.testing.assert_close(own.grad.double() / scale, right.grad / scale, rtol=0, atol=10 * error, msg=name)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("head_dim", "length"), [(4, 1), (4, 5), (8, 7), (16, 6)])
def test_attention_is_softmax_over_rotated_products(causal, head_dim, length):
    torch.manual_seed(0)
    mixer = Attention(AttentionConfig(head_dim=head_dim, causal=causal), 16)
    compare(mixer, lambda slow, row: naive_attention(slow, row, head_dim, causal), length, 16)


def test_rotary_scores_depend_on_the_distance_alone():
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))
    table = rotary_table(12, 8, 10_000.0, q.device, torch.float32)
    turned = [rotate(v.expand(1, 12, 1, 8), table)[0, :, 0] for v in (q, k)]
    scores = turned[0] @ turned[1].T
    for distance in range(-5, 6):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-5)
    assert scores[0].std() > 0.1


CONFIGS = {
    "plain": Mamba2Config(d_state=4, head_dim=8, chunk_size=4),
    "groups": Mamba2Config(d_state=4, head_dim=4, n_groups=2, chunk_size=3),
    "wide": Mamba2Config(d_state=3, head_dim=8, expand=4, n_groups=2, d_conv=2, chunk_size=64),
    "no window": Mamba2Config(d_state=5, head_dim=16, d_conv=1, chunk_size=2),
}


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("length", [1, 3, 8, 11])
def test_mamba2_is_its_recurrence(name, length):
    config = CONFIGS[name]
    torch.manual_seed(1)
    compare(Mamba2(config, 16), lambda slow, row: naive_mamba2(slow, row, config), length, 16, error=2e-5)


def test_bidirectional_is_two_recurrences_one_of_them_backwards():
    inner = CONFIGS["plain"]
    torch.manual_seed(2)

    def naive(slow, row):
        return naive_mamba2(slow.forward_mixer, row, inner) + naive_mamba2(slow.reverse_mixer, row.flip(0), inner).flip(
            0
        )

    compare(Bidirectional(BidirectionalConfig(inner=inner), 16), naive, 9, 16, error=2e-5)


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
