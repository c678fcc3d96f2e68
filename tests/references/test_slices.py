"""Work in slices of positions, without gradients, is the same arithmetic as over all of them."""

import pytest
import torch

from diffusion_lm.layers.convolution import convolve
from diffusion_lm.layers.norm import GatedRMSNorm
from diffusion_lm.layers.slices import AT_ONCE, slices


@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, 700), (3, 300), (300, 5), (2, 128)])
def test_slices_cover_every_position_once(rows, length):
    x = torch.zeros(rows, length, 1)
    assert slices(x) == [slice(0, length)]
    with torch.no_grad():
        found = slices(x)
    assert [place for part in found for place in range(length)[part]] == list(range(length))
    assert all(rows * len(range(length)[part]) <= max(AT_ONCE, rows) for part in found)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("before", [0, 1, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rows", "length"), [(1, 257), (2, 600), (300, 3)])
def test_convolution(rows, length, bias, before, mirrored):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, length, 6, generator=generator, dtype=torch.float64)[..., 1:5]
    weight = torch.randn(4, 1, 4, generator=generator, dtype=torch.float64)
    shift = torch.randn(4, generator=generator, dtype=torch.float64) if bias else None
    with torch.no_grad():
        assert len(slices(x)) > 1
        found = convolve(x, weight, shift, before, mirrored=mirrored)
    expected = torch.zeros_like(x)
    for tap in range(4):
        source = torch.arange(length) + tap - before
        inside = (source >= 0) & (source < length)
        used = weight[:, 0, 3 - tap if mirrored else tap]
        expected[:, inside] += x[:, source[inside]] * used
    torch.testing.assert_close(found, expected + (shift if bias else 0))


@pytest.mark.parametrize("before_gate", [False, True])
def test_gated_norm(before_gate):
    norm = GatedRMSNorm(8, groups=2, before_gate=before_gate)
    y, z = torch.randn(2, 3, 400, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert len(slices(y)) > 1
        found = norm(y, z)
    torch.testing.assert_close(found, norm(y, z).detach())
