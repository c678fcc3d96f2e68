"""Attention in block mode against loops over positions in float64: training form, gradients, prefill, the cache."""

import copy
import math

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask, flex_attention

from diffusion_lm.attention_kernels import flex
from diffusion_lm.attention_kernels.base import BlockPattern
from diffusion_lm.experiment import ExperimentConfig
from diffusion_lm.layers import block_attention
from diffusion_lm.layers.key_value_cache import Room
from diffusion_lm.mixers.attention import Attention, AttentionConfig
from diffusion_lm.mixers.base import BlockContext, SequenceMixer

D_MODEL, HEAD_DIM, TEXTS = 24, 4, 2
OPTIONS = {
    "plain": {},
    "causal": {"causal": True},
    "grouped": {"n_kv_heads": 2},
    "everything": {"n_kv_heads": 3, "qk_norm": True, "rope_base": 500.0},
    "everything, causal": {"n_kv_heads": 1, "qk_norm": True, "rope_base": 50.0, "causal": True},
}
SHAPES = [(1, 5), (2, 5), (3, 4), (4, 1), (7, 2)]
CPU = torch.device("cpu")


def mixer_of(**options) -> Attention:
    torch.manual_seed(0)
    mixer = Attention(AttentionConfig(head_dim=HEAD_DIM, **options), D_MODEL).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return mixer


def turned(vector: torch.Tensor, position: int, base: float) -> torch.Tensor:
    """Channels (i, i + P/2) turned as one complex number by position * base^(-2i/P)."""
    half = len(vector) // 2
    angle = torch.tensor([position * base ** (-2 * i / len(vector)) for i in range(half)], dtype=torch.float64)
    pair = torch.complex(vector[:half], vector[half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((pair.real, pair.imag))


def heads_of(mixer: Attention, x: torch.Tensor, position: int) -> tuple[list, list, list]:
    """Queries, keys and values of one position, a vector per head."""
    config = mixer.config
    width = config.head_dim
    kv = config.n_kv_heads or D_MODEL // width
    parts = (mixer.qkv.weight @ x).split(width)
    queries, keys, values = parts[: D_MODEL // width], parts[-2 * kv : -kv], parts[-kv:]

    def ready(vector: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
        if scale is not None:
            vector = vector / torch.sqrt((vector**2).mean() + 1e-5) * scale
        return turned(vector, position, config.rope_base)

    return [ready(q, mixer.q_norm) for q in queries], [ready(k, mixer.k_norm) for k in keys], list(values)


def attended(mixer: Attention, own: tuple, others: list[tuple]) -> torch.Tensor:
    """The output at a position that sees those others."""
    out, shared = [], len(own[0]) // len(own[1])
    for h, query in enumerate(own[0]):
        scores = torch.stack([query @ keys[h // shared] for _, keys, _ in others]) / math.sqrt(len(query))
        weights = torch.exp(scores - scores.max())
        values = torch.stack([values[h // shared] for _, _, values in others])
        out.append((weights / weights.sum()) @ values)
    return mixer.out_proj.weight @ torch.cat(out)


def own_block(mixer: Attention, i: int, start: int, size: int) -> range:
    """Positions of its own block that position i sees."""
    return range(start, i + 1) if mixer.config.causal else range(start, start + size)


def naive_blocks(mixer: Attention, clean: torch.Tensor, noisy: torch.Tensor, size: int) -> tuple[list, list]:
    """Outputs of a clean text and of its noisy blocks, position by position. [L, D] each"""
    clean = [heads_of(mixer, x, i) for i, x in enumerate(clean)]
    noisy = [heads_of(mixer, x, i) for i, x in enumerate(noisy)]
    outputs = ([], [])
    for i in range(len(clean)):
        start = i - i % size
        for half, out in zip((clean, noisy), outputs, strict=True):
            seen = clean[:start] + [half[j] for j in own_block(mixer, i, start, size)]
            out.append(attended(mixer, half[i], seen))
    return outputs


@pytest.fixture(params=[None, 2], ids=["one chunk", "chunks of 2"])
def chunk(request, monkeypatch):
    """Chunks shorter than those that pay off, so that short texts have several, the last one shorter."""
    if request.param is not None:
        monkeypatch.setattr(block_attention, "LEAST_CHUNK", request.param)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS)
def test_training_equals_the_loops(options, shape, chunk):
    (size, count), mixer = shape, mixer_of(**OPTIONS[options])
    x = torch.randn(2 * TEXTS * count, size, D_MODEL, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(x)
    slow, x_slow = copy.deepcopy(mixer), x.detach().clone().requires_grad_()
    y = mixer.over_blocks(x, count)
    clean, noisy = x_slow.view(2, TEXTS, count * size, D_MODEL)
    texts = [naive_blocks(slow, *pair, size) for pair in zip(clean, noisy, strict=True)]
    expected = torch.stack([torch.stack(text[half]) for half in (0, 1) for text in texts]).view_as(x)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
    (y * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(x.grad, x_slow.grad, rtol=1e-8, atol=1e-8)
    for (name, own), right in zip(mixer.named_parameters(), slow.named_parameters(), strict=True):
        torch.testing.assert_close(own.grad, right[1].grad, rtol=1e-8, atol=1e-8, msg=name)


@pytest.mark.parametrize("shape", [(1, 150), (7, 21), (16, 9), (64, 3), (100, 2)], ids=str)
@pytest.mark.parametrize("options", ["plain", "everything, causal"])
def test_training_equals_block_after_block(options, shape):
    """At the real sizes of chunks, outputs and gradients through caches."""
    (size, count), mixer = shape, mixer_of(**OPTIONS[options])
    x = torch.randn(2 * count, size, D_MODEL, dtype=torch.float64, requires_grad=True)
    weight, found = torch.randn_like(x), []
    for over_blocks in (Attention.over_blocks, SequenceMixer.over_blocks):
        y = over_blocks(mixer, x, count)
        found.append([y, *torch.autograd.grad((y * weight).sum(), [x, *mixer.parameters()])])
    for fast, slow in zip(*found, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)


def test_a_text_of_chunks_is_computed_without_pairs_that_nobody_sees():
    """Masks only inside a chunk of several blocks, none where a block is a chunk; the fused kernel serves all calls."""
    for pattern, masked in ((BlockPattern(4, 64), False), (BlockPattern(64, 4), True), (BlockPattern(1, 96), False)):
        chunks = block_attention.Chunks.of(pattern, CPU, torch.float32)
        assert all((mask is not None) == masked for mask in chunks.clean + chunks.noisy)
        mixer = Attention(AttentionConfig(head_dim=16, n_kv_heads=2), 64)
        with torch.profiler.profile() as profile:
            mixer.over_blocks(torch.randn(2 * pattern.count, pattern.size, 64), pattern.count)
        names = {event.key for event in profile.key_averages()}
        assert "aten::_scaled_dot_product_flash_attention_for_cpu" in names, pattern
        assert "aten::_scaled_dot_product_attention_math" not in names, pattern
    one = block_attention.Chunks.of(BlockPattern(64, 1), CPU, torch.float32)
    assert one.clean == (None,)  # blocks of one position are plainly causal


def test_layers_share_what_is_prepared():
    mixer, other = mixer_of(), mixer_of(qk_norm=True)
    x = torch.randn(2 * 3, 4, D_MODEL, dtype=torch.float64)
    context = mixer.prepare_blocks(x, BlockContext(count=3))
    assert other.prepare_blocks(x, context) is context and len(context.shared) == 1
    assert torch.equal(other.over_blocks(x, 3, context), other.over_blocks(x, 3))


def test_half_precision_is_close():
    mixer, x = mixer_of(qk_norm=True).float(), torch.randn(2 * 5, 16, D_MODEL)
    exact = mixer.over_blocks(x, 5)
    with torch.autocast("cpu", torch.bfloat16):
        rough, cache = mixer.over_blocks(x, 5), mixer.prefill(x[:4], 4, torch.tensor([4]))[1]
        block = mixer.denoise(x[9:], cache)
    assert rough.dtype == block.dtype == cache.room.keys.dtype == torch.bfloat16
    for value, right in ((rough, exact), (block, exact[9:])):
        assert (value.float() - right).norm() < 0.02 * right.norm()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("options", OPTIONS)
def test_the_cache_equals_the_loops(options, dtype):
    """Rows that are prefilled to lengths of their own and commit at times of their own."""
    size, count, exact = 3, 3, mixer_of(**OPTIONS[options])
    mixer = copy.deepcopy(exact).to(dtype)
    close = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    texts = torch.randn(3, count * size, D_MODEL, dtype=torch.float64)
    keep = torch.tensor([0, 3, 1])
    y, cache = mixer.prefill(texts.to(dtype).view(3 * count, size, D_MODEL), count, keep)
    y = y.view(3, count * size, D_MODEL)
    so_far = [text[: kept * size] for text, kept in zip(texts, keep.tolist(), strict=True)]
    for row, text in enumerate(so_far):
        for i, right in enumerate(naive_blocks(exact, text, text, size)[0]):
            torch.testing.assert_close(y[row, i].double(), right, **close)
    for rows in ([True, False, True], [True, True, False], [False, False, True], None, [True, False, False]):
        block = torch.randn(3, size, D_MODEL, dtype=torch.float64)
        y, after = mixer.commit(block.to(dtype), cache, None if rows is None else torch.tensor(rows))
        assert torch.equal(y, mixer.denoise(block.to(dtype), cache))
        for row, text in enumerate(so_far):
            longer = torch.cat((text, block[row]))
            expected = torch.stack(naive_blocks(exact, longer, longer, size)[0][-size:])
            torch.testing.assert_close(y[row].double(), expected, **close)
            if rows is None or rows[row]:
                so_far[row] = longer
        cache = after
        assert cache.length.tolist() == [len(text) for text in so_far]
        kept = sum(len(text) for text in so_far)
        heads = OPTIONS[options].get("n_kv_heads") or D_MODEL // HEAD_DIM
        assert cache.nbytes() == 2 * kept * heads * HEAD_DIM * (8 if dtype == torch.float64 else 4)


@torch.no_grad()
@pytest.mark.parametrize("rows", [None, torch.tensor([True, False])], ids=["even", "uneven"])
def test_a_cache_stays_what_it_is_whatever_is_made_of_it(rows):
    mixer = mixer_of()
    block, other, asked = torch.randn(3, 2, 4, D_MODEL, dtype=torch.float64)
    old = mixer.commit(block, mixer.start(block))[1]
    before = mixer.denoise(asked, old)
    first = mixer.commit(block, old, rows)[1]
    of_first = mixer.denoise(asked, first)
    second = mixer.commit(other, old, rows)[1]  # from the same older cache: in a room of its own
    mixer.denoise(other, first)
    third = mixer.commit(other, first, rows)[1]
    assert torch.equal(mixer.denoise(asked, old), before)
    assert torch.equal(mixer.denoise(asked, first), of_first)
    fresh = mixer.commit(other, mixer.commit(block, mixer.start(block))[1], rows)[1]
    assert torch.equal(mixer.denoise(asked, second), mixer.denoise(asked, fresh))
    assert not torch.equal(mixer.denoise(asked, second), of_first)
    assert first.room is third.room is old.room and second.room is not old.room


@torch.no_grad()
def test_rows_of_two_caches_and_rows_many_times():
    mixer = mixer_of()
    block, other, asked = torch.randn(3, 2, 4, D_MODEL, dtype=torch.float64)
    rows = torch.tensor([False, True])
    old = mixer.commit(block, mixer.start(block))[1]
    new = mixer.commit(other, old)[1]
    mixed, of_new = new.where(rows, old), mixer.denoise(asked, new)
    right = torch.where(rows[:, None, None], of_new, mixer.denoise(asked, old))
    torch.testing.assert_close(mixer.denoise(asked, mixed), right, rtol=1e-12, atol=1e-12)
    mixer.commit(asked, mixed)
    assert torch.equal(mixer.denoise(asked, new), of_new)
    twice = mixed.repeated(2)
    assert twice.nbytes() == 2 * mixed.nbytes()
    torch.testing.assert_close(
        mixer.denoise(asked.repeat(2, 1, 1), twice), right.repeat(2, 1, 1), rtol=1e-12, atol=1e-12
    )


@torch.no_grad()
def test_what_is_cached_is_moved_seldom(monkeypatch):
    """Once per doubling, and by no call that only looks."""
    mixer, moves, moved = mixer_of(), [], Room.moved
    monkeypatch.setattr(Room, "moved", lambda room, used, end: moves.append(used) or moved(room, used, end))
    block = torch.randn(1, 4, D_MODEL, dtype=torch.float64)
    cache = mixer.start(block)
    for _ in range(256):
        for _ in range(2):
            mixer.denoise(block, cache)
        cache = mixer.commit(block, cache)[1]
    assert cache.longest == 1024 and moves == [0, 64, 128, 256, 512]
    assert cache.room.size() == 1024


def test_a_cache_goes_from_one_mode_of_torch_to_another():
    mixer, block = mixer_of(), torch.randn(1, 4, D_MODEL, dtype=torch.float64)
    with torch.inference_mode():
        cache = mixer.commit(block, mixer.start(block))[1]
        mixer.denoise(block, cache)
    mixer.denoise(block, cache).sum().backward()
    with torch.no_grad():
        quiet = mixer.denoise(block, cache)
    assert torch.equal(mixer.denoise(block, cache).detach(), quiet)
    remembered = mixer.commit(block, mixer.start(block))[1]
    y = mixer.denoise(block, remembered)
    with torch.no_grad():
        assert torch.equal(mixer.denoise(2 * block, remembered), mixer.denoise(2 * block, cache))
    y.sum().backward()  # what autograd remembers was not written over
    assert mixer.qkv.weight.grad.isfinite().all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_flex_sees_the_three_parts(shape, causal):
    (size, count), length = shape, shape[0] * shape[1]
    prepared = flex.Flex().prepare_blocks(BlockPattern(count, size, causal), CPU, torch.float32)
    found = create_mask(prepared.mask_mod, 1, 1, 2 * length, 2 * length, CPU)[0, 0]
    for i in range(2 * length):
        at, start = i % length, i % length - i % length % size
        own = range(start, at + 1) if causal else range(start, start + size)
        seen = set(range(start)) | {j + (i - at) for j in own}
        assert set(found[i].nonzero().flatten().tolist()) == seen


def test_what_flex_keeps_serves_training_after_validation():
    flex.three_parts.cache_clear()
    with torch.inference_mode():
        first = flex.Flex().prepare_blocks(BlockPattern(2, 3), CPU, torch.float32)
    assert flex.Flex().prepare_blocks(BlockPattern(2, 3), CPU, torch.float32) is first
    assert not first.kv_indices.is_inference()


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_flex_puts_halves_side_by_side(monkeypatch):
    monkeypatch.setattr(flex, "compiled", lambda: flex_attention)  # uncompiled it runs on CPU too
    size, count = 8, 2
    mixers = [mixer_of(n_kv_heads=2, kernel=kernel) for kernel in ("flex", "sdpa")]
    x = torch.randn(2 * 3 * count, size, D_MODEL, dtype=torch.float64)
    torch.testing.assert_close(*(mixer.over_blocks(x, count) for mixer in mixers), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (
            {"kernel": "flash_attn"},
            "has kernel 'flash_attn': it cannot train on noisy blocks beside clean ones; set kernel=sdpa or flex",
        ),
        ({"causal": True, "block_size": 8}, "has a block_size of its own; leave that 0"),
    ],
)
def test_what_has_no_blocks_is_refused_when_the_config_is_read(options, why):
    config = ExperimentConfig()
    config.denoiser.mixer = AttentionConfig(**options)
    with pytest.raises(ValueError, match=f"block_size: got 4, but mixer 'attention' {why}"):
        ExperimentConfig(denoiser=config.denoiser, block_size=4)
    for kernel in ("auto", "sdpa", "flex"):
        assert AttentionConfig(kernel=kernel).block_refusal() is None
