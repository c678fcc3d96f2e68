"""flash_attn and flex against sdpa on CUDA: outputs and gradients within bfloat16's error."""

import pytest
import torch

from diffusion_lm.attention_kernels.base import Pattern
from diffusion_lm.backends import backend_class
from diffusion_lm.mixers.attention import Attention, AttentionConfig
from diffusion_lm.mixers.base import Context

pytestmark = pytest.mark.gpu

LENGTH, D_MODEL = 384, 256
PATTERNS = {
    "full": {},
    "causal": {"causal": True},
    "blocks": {"causal": True, "block_size": 32},
}


@pytest.fixture(autouse=True)
def needs_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")


def packed(rows: int = 2) -> torch.Tensor:
    """Documents of very different lengths, and padding at the end."""
    sizes = torch.tensor([200, 1, 63, 90, 30])
    return torch.tensor([1, 2, 3, 4, 0]).repeat_interleave(sizes).expand(rows, -1).cuda()


def found(kernel: str, segment: torch.Tensor | None, dtype: torch.dtype, **options) -> list[torch.Tensor]:
    """Output and gradients of one layer, weights and input the same whatever the kernel."""
    torch.manual_seed(0)
    mixer = Attention(AttentionConfig(head_dim=64, kernel=kernel, **options), D_MODEL).cuda()
    x = torch.randn(2, LENGTH, D_MODEL, device="cuda", requires_grad=True)
    weight = torch.randn(2, LENGTH, D_MODEL, device="cuda")
    with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y = mixer(x, Context(segment)).float()
    gradients = torch.autograd.grad((y * weight).sum(), [x, *mixer.parameters()])
    return [y.detach(), *gradients]


@pytest.mark.parametrize("documents", [False, True], ids=["whole rows", "documents"])
@pytest.mark.parametrize("pattern", list(PATTERNS))
@pytest.mark.parametrize("options", [{}, {"n_kv_heads": 2}, {"qk_norm": True}], ids=["plain", "grouped", "normalised"])
@pytest.mark.parametrize("kernel", ["flash_attn", "flex"])
def test_equals_sdpa(kernel, options, pattern, documents):
    """As far from sdpa in float32 as sdpa in bfloat16 is, with room for another order of sums."""
    if kernel == "flash_attn":
        pytest.importorskip("flash_attn")
    options = options | PATTERNS[pattern]
    if backend_class("attention_kernels", kernel).refusal(options.get("causal", False), options.get("block_size", 0)):
        with pytest.raises(ValueError, match=f"kernel '{kernel}'"):
            AttentionConfig(kernel=kernel, **options)
        return
    segment = packed() if documents else None
    exact = found("sdpa", segment, torch.float32, **options)
    rough = found("sdpa", segment, torch.bfloat16, **options)
    own = found(kernel, segment, torch.bfloat16, **options)
    for value, other, right in zip(own, rough, exact, strict=True):
        assert value.isfinite().all()
        assert (value - right).norm() <= 2 * (other - right).norm() + 1e-3 * right.norm()
        assert (value - right).norm() <= 0.02 * right.norm()


@pytest.mark.parametrize("causal", [False, True])
def test_sdpa_is_served_by_a_fused_kernel(causal):
    """On Hopper cuDNN's or flash, never the one that holds all scores."""
    q, k, v = torch.randn(3, 2, LENGTH, 8, 64, device="cuda", dtype=torch.bfloat16)
    kernel = backend_class("attention_kernels", "sdpa")()
    prepared = kernel.prepare(Pattern(causal, 0), LENGTH, q.device, q.dtype)
    with torch.profiler.profile() as profile:
        kernel.attend(q, k, v, prepared)
    names = {event.key for event in profile.key_averages()}
    fused = ("_scaled_dot_product_flash_attention", "_scaled_dot_product_cudnn_attention")
    assert any(f"aten::{name}" in names for name in fused), names


@pytest.mark.parametrize("kernel", ["sdpa", "flex"])
def test_layers_share_what_is_prepared_and_nothing_waits_for_the_device(kernel):
    mixer = Attention(AttentionConfig(kernel=kernel), D_MODEL).cuda()
    x = torch.randn(2, LENGTH, D_MODEL, device="cuda")
    context = mixer.prepare(x, Context(packed()))
    mixer(x, context)
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert mixer.prepare(x, context) is context
        mixer(x, context)
    finally:
        torch.cuda.set_sync_debug_mode("default")
