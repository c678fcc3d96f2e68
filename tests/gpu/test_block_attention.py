"""Attention in block mode on CUDA: sdpa and flex against float32 on the CPU, and generation from the cache."""

import pytest
import torch

from diffusion_lm.mixers.attention import Attention, AttentionConfig
from diffusion_lm.mixers.base import BlockContext

pytestmark = pytest.mark.gpu

D_MODEL = 256
OPTIONS = {"plain": {}, "grouped": {"n_kv_heads": 2}, "causal": {"causal": True, "qk_norm": True}}


@pytest.fixture(autouse=True)
def needs_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")


def found(x, count: int, dtype: torch.dtype, kernel: str, **options) -> list[torch.Tensor]:
    """Output and gradients of one layer on x's device, weights the same whatever the kernel."""
    torch.manual_seed(0)
    mixer = Attention(AttentionConfig(kernel=kernel, **options), D_MODEL).to(x.device)
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x.device)
    x = x.clone().requires_grad_()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        y = mixer.over_blocks(x, count).float()
    return [value.detach().cpu() for value in (y, *torch.autograd.grad((y * weight).sum(), [x, *mixer.parameters()]))]


@pytest.mark.parametrize("shape", [(1, 130), (7, 40), (16, 24), (64, 4), (128, 1)], ids=str)
@pytest.mark.parametrize("options", list(OPTIONS))
@pytest.mark.parametrize("kernel", ["sdpa", "flex"])
def test_training_equals_the_cpu(kernel, options, shape):
    (size, count), options = shape, OPTIONS[options]
    x = torch.randn(2 * 2 * count, size, D_MODEL, generator=torch.Generator().manual_seed(2))
    exact = found(x, count, torch.float32, "sdpa", **options)
    for value, right in zip(found(x.cuda(), count, torch.bfloat16, kernel, **options), exact, strict=True):
        assert value.isfinite().all()
        assert (value - right).norm() <= 0.02 * right.norm()


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["sdpa", "flex", "flash_attn"])
@pytest.mark.parametrize("options", list(OPTIONS))
def test_the_cache_equals_the_cpu(options, kernel):
    """Generation is sdpa's whatever the kernel of training, so that none has to be installed for it."""
    torch.manual_seed(0)
    here = Attention(AttentionConfig(kernel=kernel, **OPTIONS[options]), D_MODEL)
    there = Attention(here.config, D_MODEL).cuda()
    there.load_state_dict(here.state_dict())
    texts, blocks = torch.randn(3 * 5, 8, D_MODEL), torch.randn(4, 3, 8, D_MODEL)
    keep, rows = torch.tensor([5, 0, 2]), torch.tensor([True, False, True])
    cache, other = here.prefill(texts, 5, keep)[1], there.prefill(texts.cuda(), 5, keep.cuda())[1]
    for block in blocks:
        y, cache = here.commit(block, cache, rows)
        torch.testing.assert_close(there.denoise(block.cuda(), other).cpu(), y, rtol=1e-3, atol=1e-3)
        other = there.commit(block.cuda(), other, rows.cuda())[1]
    assert cache.nbytes() == other.nbytes()


def test_rows_alike_wait_for_nothing():
    """Neither training nor a block of rows of one length asks the device for a number."""
    mixer, x = Attention(AttentionConfig(), D_MODEL).cuda(), torch.randn(2 * 8, 16, D_MODEL, device="cuda")
    context = mixer.prepare_blocks(x, BlockContext(count=8))
    cache = mixer.start(x[:1])
    torch.cuda.set_sync_debug_mode("error")
    try:
        mixer.over_blocks(x, 8, context).sum().backward()
        with torch.no_grad():
            for _ in range(9):
                mixer.denoise(x[:1], cache)
                cache = mixer.commit(x[:1], cache)[1]
    finally:
        torch.cuda.set_sync_debug_mode("default")
