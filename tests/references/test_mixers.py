"""Attention against loops over positions that were written for this test, outputs and gradients."""

import copy
import math

import pytest
import torch
from torch import nn

from diffusion_lm.layers.rotary import rotary_table, rotate
from diffusion_lm.mixers.attention import Attention, AttentionConfig


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
