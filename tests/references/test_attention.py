"""Attention with every option against loops over positions in float64, outputs and gradients; its kernels."""

import copy
import math

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

from diffusion_lm.attention_kernels.base import Pattern
from diffusion_lm.attention_kernels.flash_attn import FlashAttn
from diffusion_lm.attention_kernels.flex import Flex
from diffusion_lm.attention_kernels.sdpa import Sdpa
from diffusion_lm.backends import choose_backend
from diffusion_lm.errors import UserError
from diffusion_lm.mixers.attention import Attention, AttentionConfig
from diffusion_lm.mixers.base import Context

D_MODEL, HEAD_DIM, LENGTH = 24, 4, 9
SEGMENTS = torch.tensor([[1, 1, 1, 1, 2, 2, 2, 0, 0], [1, 2, 2, 2, 2, 2, 3, 3, 3]])
OPTIONS = {
    "plain": {},
    "grouped": {"n_kv_heads": 2},
    "one key head": {"n_kv_heads": 1},
    "normalised": {"qk_norm": True},
    "base": {"rope_base": 50.0},
    "everything": {"n_kv_heads": 3, "qk_norm": True, "rope_base": 500.0},
}
PATTERNS = {
    "full": {},
    "causal": {"causal": True},
    "blocks of 2": {"causal": True, "block_size": 2},
    "blocks of 4": {"causal": True, "block_size": 4},
}


def sees(config: AttentionConfig, i: int, j: int, segment: list | None) -> bool:
    """Whether position i sees j, by the definition."""
    start = 0
    if segment is not None:
        if segment[i] != segment[j]:
            return False
        start = segment.index(segment[i])
    if not config.causal:
        return True
    size = config.block_size or 1
    return (j - start) // size <= (i - start) // size


def turned(vector: torch.Tensor, position: int, base: float) -> torch.Tensor:
    """Channels (i, i + P/2) turned as one complex number by position * base^(-2i/P)."""
    half = len(vector) // 2
    angle = torch.tensor([position * base ** (-2 * i / len(vector)) for i in range(half)], dtype=torch.float64)
    pair = torch.complex(vector[:half], vector[half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((pair.real, pair.imag))


def naive(mixer: Attention, x: torch.Tensor, segment: list | None) -> torch.Tensor:
    """Position by position, head by head. x: [L, D]"""
    config, width = mixer.config, mixer.config.head_dim
    heads = x.shape[1] // width
    kv = config.n_kv_heads or heads
    q, k, v = (x @ w.T for w in mixer.qkv.weight.split((heads * width, kv * width, kv * width)))

    def ready(vector: torch.Tensor, position: int, scale: torch.Tensor | None) -> torch.Tensor:
        if scale is not None:
            vector = vector / torch.sqrt((vector**2).mean() + 1e-5) * scale
        return turned(vector, position, config.rope_base)

    rows = []
    for i in range(len(x)):
        out = []
        for h in range(heads):
            g = h // (heads // kv)
            own = ready(q[i, h * width : (h + 1) * width], i, mixer.q_norm)
            part = slice(g * width, (g + 1) * width)
            seen = [j for j in range(len(x)) if sees(config, i, j, segment)]
            scores = torch.stack([own @ ready(k[j, part], j, mixer.k_norm) for j in seen]) / math.sqrt(width)
            weights = scores.exp() / scores.exp().sum()
            out.append(sum(w * v[j, part] for w, j in zip(weights, seen, strict=True)))
        rows.append(mixer.out_proj.weight @ torch.cat(out))
    return torch.stack(rows)


def mixer_of(**options) -> Attention:
    torch.manual_seed(0)
    mixer = Attention(AttentionConfig(head_dim=HEAD_DIM, **options), D_MODEL).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return mixer


def compare(mixer: Attention, segment: torch.Tensor | None) -> None:
    x = torch.randn(2, LENGTH, D_MODEL, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, LENGTH, D_MODEL, dtype=torch.float64)
    slow, x_slow = copy.deepcopy(mixer), x.detach().clone().requires_grad_()
    y = mixer(x, Context(segment))
    rows = [None, None] if segment is None else segment.tolist()
    expected = torch.stack([naive(slow, row, ids) for row, ids in zip(x_slow, rows, strict=True)])
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
    (y * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(x.grad, x_slow.grad, rtol=1e-8, atol=1e-8)
    for (name, own), right in zip(mixer.named_parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(own.grad, right.grad, rtol=1e-8, atol=1e-8, msg=name)


@pytest.mark.parametrize("documents", [False, True], ids=["whole rows", "documents"])
@pytest.mark.parametrize("pattern", list(PATTERNS))
@pytest.mark.parametrize("options", list(OPTIONS))
def test_equals_the_loops(options, pattern, documents):
    compare(mixer_of(**OPTIONS[options], **PATTERNS[pattern]), SEGMENTS if documents else None)


def test_documents_of_one_number_that_do_not_touch_are_two():
    mixer, x = mixer_of(), torch.randn(1, 6, D_MODEL, dtype=torch.float64)
    again, fresh = torch.tensor([[1, 1, 2, 2, 1, 1]]), torch.tensor([[1, 1, 2, 2, 3, 3]])
    assert torch.equal(mixer(x, Context(again)), mixer(x, Context(fresh)))


def test_what_layers_share_is_made_once_and_changes_nothing():
    mixer, other, blocks = mixer_of(), mixer_of(qk_norm=True), mixer_of(causal=True, block_size=2)
    x = torch.randn(2, LENGTH, D_MODEL, dtype=torch.float64)
    context = mixer.prepare(x, Context(SEGMENTS))
    assert other.prepare(x, context) is context
    both = blocks.prepare(x, context)
    assert len(context.shared) == 1 and len(both.shared) == 2
    for one in (mixer, other, blocks):
        assert torch.equal(one(x, both), one(x, Context(SEGMENTS)))


def test_no_mask_is_made_where_none_is_needed_and_flash_serves_the_call():
    length = 128
    for causal in (False, True):
        prepared = Sdpa().prepare(Pattern(causal, 0), length, torch.device("cpu"), torch.float32)
        assert prepared.added is None and prepared.causal == causal
    for options in ({}, {"causal": True}, {"n_kv_heads": 2}, {"causal": True, "block_size": 16}):
        mixer = Attention(AttentionConfig(head_dim=16, **options), 64)
        with torch.profiler.profile() as profile:
            mixer(torch.randn(2, length, 64))
        names = {event.key for event in profile.key_averages()}
        assert "aten::_scaled_dot_product_flash_attention_for_cpu" in names, options
        assert "aten::_scaled_dot_product_attention_math" not in names, options


def test_flex_sees_the_same_positions():
    device = torch.device("cpu")
    for pattern in PATTERNS.values():
        config = AttentionConfig(**pattern)
        for segment in (None, SEGMENTS):
            asked = Pattern.of(config.causal, config.block_size, segment)
            prepared = Flex().prepare(asked, LENGTH, device, torch.float32)
            if prepared is None:
                assert segment is None and not config.causal
                continue
            rows = [None] if segment is None else segment.tolist()
            found = create_mask(prepared.mask_mod, len(rows), 1, LENGTH, LENGTH, device)[:, 0].tolist()
            places = range(LENGTH)
            assert found == [[[sees(config, i, j, row) for j in places] for i in places] for row in rows]


def test_flash_attn_is_told_where_documents_begin():
    prepared = FlashAttn().prepare(Pattern.of(True, 0, SEGMENTS), LENGTH, torch.device("cpu"), torch.bfloat16)
    assert prepared.boundaries.tolist() == [0, 4, 7, 9, 10, 15, 18]
    assert prepared.boundaries.dtype == torch.int32 and prepared.longest == LENGTH and prepared.causal


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_kv_heads": -1}, "n_kv_heads: got -1, expected 0 or more"),
        ({"rope_base": 1.0}, "rope_base: got 1.0, expected more than 1"),
        ({"block_size": 8}, "block_size: got 8 without causal; set causal=true, or block_size=0"),
        (
            {"kernel": "flash_attn", "causal": True, "block_size": 8},
            "kernel 'flash_attn': it has no block-causal pattern; set kernel=sdpa or flex",
        ),
        ({"kernel": "flash"}, "attention_kernels: no variant 'flash'; expected one of flash_attn, flex, sdpa"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AttentionConfig(**options)


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="n_kv_heads: got 4, expected a divisor of the 6 heads"):
        Attention(AttentionConfig(head_dim=4, n_kv_heads=4), 24)


def test_kernels_that_cannot_run_are_refused(monkeypatch):
    assert choose_backend("attention_kernels", "auto", "cpu") == "sdpa"
    monkeypatch.setattr("diffusion_lm.backends.find_spec", lambda package: "there")
    assert choose_backend("attention_kernels", "auto", "cuda") == "sdpa"
    assert choose_backend("attention_kernels", "flash_attn", "cuda") == "flash_attn"
    for name in ("flash_attn", "flex"):
        with pytest.raises(UserError, match=f"kernel '{name}': it needs a cuda device, got cpu; install it, or set"):
            choose_backend("attention_kernels", name, "cpu")
    monkeypatch.setattr("diffusion_lm.backends.find_spec", lambda package: None)
    with pytest.raises(UserError, match="kernel 'flash_attn': package 'flash_attn' is not installed"):
        choose_backend("attention_kernels", "flash_attn", "cuda")


def test_flash_attn_refuses_float32():
    with pytest.raises(UserError, match="kernel 'flash_attn': got float32, it computes in bfloat16 and float16; set"):
        FlashAttn().prepare(Pattern(False, 0), 8, torch.device("cpu"), torch.float32)
