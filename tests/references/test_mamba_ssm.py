"""Our scan, norm and layer against mamba-ssm's own pure-PyTorch references."""

import pytest
import torch

from diffusion_lm.kernels.base import kernel_class
from diffusion_lm.layers.norm import GatedRMSNorm
from diffusion_lm.mixers.mamba2 import Mamba2, Mamba2Config

pytestmark = pytest.mark.mamba_ssm
HEADS, WIDTH, STATE = 4, 8, 6


def inputs(length: int, groups: int) -> list[torch.Tensor]:
    """x, dt, A, B, C"""
    generator = torch.Generator().manual_seed(length + groups)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    dt = torch.nn.functional.softplus(normal(2, length, HEADS) - 1)
    # mamba-ssm masks after its exponential: where a chunk decays by e^-88 its gradient is NaN (ours is not)
    A = -torch.logspace(-2, 0, HEADS)
    values = [
        normal(2, length, HEADS, WIDTH),
        dt,
        A,
        normal(2, length, groups, STATE),
        normal(2, length, groups, STATE),
    ]
    return [v.requires_grad_() for v in values]


def compare(own: torch.Tensor, theirs: torch.Tensor, values: list[torch.Tensor]) -> None:
    torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-5)
    weight = torch.randn(own.shape, generator=torch.Generator().manual_seed(1))
    for a, b in zip(*(torch.autograd.grad((y * weight).sum(), values) for y in (own, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("length", "chunk_size"), [(32, 8), (16, 16), (64, 16)])
def test_scan_equals_ssd_minimal_discrete(mamba_ssm, groups, length, chunk_size):
    values = inputs(length, groups)
    x, dt, A, B, C = values
    per_head = [v.repeat_interleave(HEADS // groups, 2) for v in (B, C)]
    reference = mamba_ssm("modules.ssd_minimal").ssd_minimal_discrete
    theirs, _ = reference(x * dt.unsqueeze(-1), A * dt, *per_head, chunk_size)
    compare(kernel_class("torch")().scan(*values, chunk_size=chunk_size)[0], theirs, values)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("length", "chunk_size"), [(32, 8), (16, 16), (64, 16)])
def test_scan_equals_ssd_chunk_scan_combined_ref(mamba_ssm, groups, length, chunk_size):
    values = inputs(length, groups)
    theirs = mamba_ssm("ops.triton.ssd_combined").ssd_chunk_scan_combined_ref(*values, chunk_size)
    compare(kernel_class("torch")().scan(*values, chunk_size=chunk_size)[0], theirs, values)


@pytest.mark.parametrize("groups", [1, 2])
def test_gated_norm_equals_rms_norm_ref(mamba_ssm, groups):
    norm, (y, z) = GatedRMSNorm(24, groups), torch.randn(2, 2, 5, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        norm.weight += torch.randn(24, generator=torch.Generator().manual_seed(1))
    reference = mamba_ssm("ops.triton.layernorm_gated").rms_norm_ref
    theirs = reference(y, norm.weight, None, z, eps=1e-5, group_size=24 // groups, norm_before_gate=False)
    torch.testing.assert_close(norm(y, z), theirs)


@pytest.mark.parametrize("groups", [1, 2])
def test_weights_have_the_names_and_shapes_of_mamba_ssm(mamba_ssm, groups):
    theirs = mamba_ssm("modules.mamba2").Mamba2(64, d_state=16, headdim=16, ngroups=groups, d_conv=4, expand=2)
    own = Mamba2(Mamba2Config(d_state=16, head_dim=16, n_groups=groups), 64)
    assert {n: p.shape for n, p in own.named_parameters()} == {n: p.shape for n, p in theirs.named_parameters()}
    own.load_state_dict(theirs.state_dict())
    assert (own.norm.eps, own.norm.weight.numel() // own.norm.groups) == (theirs.norm.eps, theirs.norm.group_size)
    assert theirs.norm.norm_before_gate is False
    assert theirs.activation == "silu"


def with_references(mamba_ssm, monkeypatch, groups):
    """Its split layer: scan and norm are Triton on every device, so that the references of both stand in; PyTorch's
    convolution does for causal_conv1d."""
    combined, gated = mamba_ssm("ops.triton.ssd_combined"), mamba_ssm("ops.triton.layernorm_gated")

    def convolve(x, weight, bias, activation):
        width = weight.shape[1]
        y = torch.nn.functional.conv1d(x, weight.unsqueeze(1), bias, padding=width - 1, groups=len(weight))
        return torch.nn.functional.silu(y[..., : x.shape[-1]])

    def scan(x, dt, A, B, C, D, z, dt_bias, dt_softplus, dt_limit):
        assert dt_softplus and z is None
        return combined.ssd_chunk_scan_combined_ref(x, dt, A, B, C, 8, D=D, dt_bias=dt_bias, dt_softplus=True)

    def norm(x, weight, bias, z, eps, norm_before_gate):
        return gated.rms_norm_ref(x, weight, bias, z, eps, len(weight) // groups, norm_before_gate)

    monkeypatch.setattr(combined, "causal_conv1d_fn", convolve)
    monkeypatch.setattr(combined, "ssd_selective_scan", scan)
    monkeypatch.setattr(combined, "rmsnorm_fn", norm)
    return combined


@pytest.mark.parametrize("groups", [1, 2])
def test_layer_equals_mamba_ssms_split_of_it(mamba_ssm, monkeypatch, groups):
    """in_proj, then mamba-ssm's reference of convolution, scan, gated norm and out_proj."""
    combined = with_references(mamba_ssm, monkeypatch, groups)
    torch.manual_seed(0)
    layer = Mamba2(Mamba2Config(d_state=16, head_dim=16, n_groups=groups, chunk_size=8), 32)
    with torch.no_grad():
        for parameter in (layer.D, layer.norm.weight, layer.conv1d.bias):
            parameter += 0.3 * torch.randn_like(parameter)

    x = torch.randn(2, 24, 32, requires_grad=True)
    theirs = combined.mamba_split_conv1d_scan_ref(
        layer.in_proj(x),
        layer.conv1d.weight.squeeze(1),
        layer.conv1d.bias,
        layer.dt_bias,
        -torch.exp(layer.A_log),
        layer.D,
        8,
        rmsnorm_weight=layer.norm.weight,
        rmsnorm_eps=1e-5,
        outproj_weight=layer.out_proj.weight,
        headdim=16,
        ngroups=groups,
        norm_before_gate=False,
    )
    compare(layer(x), theirs, [x, *layer.parameters()])
