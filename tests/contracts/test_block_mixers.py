"""Every mixer in blocks: the training form is what the cache gives, and nothing reaches back.

The variants and their switches are discovered from the folder (conftest.py); none can take itself out. What is cached
is exact: it is made of clean blocks alone, so that no later block, and no noise, moves it.
"""

from types import SimpleNamespace

import pytest
import torch

from diffusion_lm.blocks import fold, unfold
from diffusion_lm.config import build, config_class, variants
from diffusion_lm.mixers.base import BlockContext, SequenceMixer

D_MODEL = 16


def long(*sizes):
    """Sizes that are not tried every day."""
    return [pytest.param(*(size if isinstance(size, tuple) else (size,)), marks=pytest.mark.long) for size in sizes]


@pytest.fixture
def config(exact_mixer):
    return exact_mixer


def mixer_of(config):
    """With weights that matter: nothing is 0 any more."""
    torch.manual_seed(0)
    mixer = build(config, D_MODEL)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return mixer


def rows_of(texts: int, count: int, size: int, seed: int = 0) -> torch.Tensor:
    """Clean and noisy rows."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2 * texts * count, size, D_MODEL, generator=generator)


def trained(mixer, x, count):
    """As a trunk calls it in training."""
    context = mixer.prepare_blocks(x, BlockContext(count=count))
    return mixer.over_blocks(x, count, context)


def generated(mixer, x, count):
    """Noisy blocks from the cache, clean ones by going on from it; and the cache after every block."""
    caches = [mixer.start(unfold(x.chunk(2)[0], count)[:, :1])]
    outputs = ([], [])
    for clean, noisy in zip(*(unfold(half, count).split(x.shape[1], 1) for half in x.chunk(2)), strict=True):
        outputs[1].append(mixer.denoise(noisy, caches[-1]))
        y, cache = mixer.commit(clean, caches[-1])
        outputs[0].append(y)
        caches.append(cache)
    return torch.cat([fold(torch.cat(half, 1), x.shape[1]) for half in outputs]), caches


def close(a, b, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def probe(mixer, cache, size: int) -> torch.Tensor:
    """What a cache says to a block: caches of one content may lie differently in memory."""
    rows = torch.randn(2, size, D_MODEL, generator=torch.Generator().manual_seed(7))
    return mixer.denoise(rows, cache)


@torch.no_grad()
@pytest.mark.parametrize(("texts", "count", "size"), [(2, 4, 1), (2, 3, 17), *long((2, 5, 7), (1, 3, 33))])
def test_the_training_form_is_what_the_cache_gives(config, texts, count, size):
    mixer, x = mixer_of(config), rows_of(texts, count, size)
    close(trained(mixer, x, count), generated(mixer, x, count)[0])


def test_no_mixer_takes_itself_out():
    """Every file's mixer, as it is by default, has blocks and an exact cache."""
    for name in variants("mixers"):
        config = config_class("mixers", name)()
        assert config.exact_cache and config.block_refusal() is None


def test_no_case_is_refused(config):
    """A variant that refused blocks would not be held to anything below."""
    assert config.block_refusal() is None


@torch.no_grad()
def test_what_says_that_its_cache_is_not_exact_is_right(inexact_mixer):
    """As a layer of a whole text that ends in the noisy block: its outputs for earlier text, which the next layer would
    have to cache, move with the block's noise, and are not those that were committed."""
    mixer, x = mixer_of(inexact_mixer), rows_of(1, 3, 7)
    clean, noisy = (unfold(half, 3) for half in x.chunk(2))
    text, other = (torch.cat((clean[:, :14], last), 1) for last in (noisy[:, 14:], noisy[:, 14:] + 1))
    y = mixer(text)
    committed = unfold(generated(mixer, x, 3)[0][:3], 3)
    assert (mixer(other) - y)[:, :14].abs().max() > 1e-3
    assert (y - committed)[:, :14].abs().max() > 1e-3


def test_what_only_blocks_read_is_said():
    """And is one of the config's keys; what has no exact cache says which key makes it so."""
    for name in variants("mixers"):
        cls = config_class("mixers", name)
        assert set(cls().of_blocks()) <= set(cls.__dataclass_fields__)
    for name in ("bidirectional", "hydra"):
        cls = config_class("mixers", name)
        assert cls().exact_cache and not cls(reverse_scan="full").exact_cache
    outer = config_class("denoisers", "mamba")(mixer=config_class("mixers", "hydra")(reverse_scan="full"))
    whole, blocks = (SimpleNamespace(block_size=size, model=SimpleNamespace(d_model=64)) for size in (0, 16))
    assert outer.unused(whole) == {"denoiser.mixer.reverse_scan": "block_size is 0, and it is a key of block mode"}
    assert outer.unused(blocks) == {}


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("size", [64, *long(1, 2, 7, 448)])
def test_the_training_form_is_what_the_cache_gives_at_length_448(config, size):
    mixer, x = mixer_of(config), rows_of(1, 448 // size, size)
    close(trained(mixer, x, 448 // size), generated(mixer, x, 448 // size)[0])


@pytest.mark.parametrize(("count", "size"), [(3, 7), *long((5, 1), (3, 33))])
def test_the_training_form_has_the_gradients_of_the_slow_one(config, count, size):
    mixer, x = mixer_of(config).double(), rows_of(2, count, size).double().requires_grad_()
    weight = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    of, found = [x, *mixer.parameters()], []
    for y in (trained(mixer, x, count), SequenceMixer.over_blocks(mixer, x, count)):
        found.append((y, torch.autograd.grad((y * weight).sum(), of)))
    close(found[0][0], found[1][0], 1e-9)
    for own, right in zip(found[0][1], found[1][1], strict=True):
        close(own, right, 1e-8)


@torch.no_grad()
@pytest.mark.parametrize(("count", "size"), [(4, 7), *long((6, 1), (3, 33))])
def test_one_pass_fills_the_cache_as_blocks_do(config, count, size):
    """Each row as far as it says."""
    mixer, x = mixer_of(config), rows_of(2, count, size)
    clean = x.chunk(2)[0]
    expected, caches = generated(mixer, x, count)
    for keep in ([0, count], [2, 1], [count, count - 1]):
        y, cache = mixer.prefill(clean, count, torch.tensor(keep))
        said = probe(mixer, cache, size)
        for text, blocks in enumerate(keep):
            close(said[text], probe(mixer, caches[blocks], size)[text])
            rows = slice(text * count, text * count + blocks)
            close(y[rows], expected[rows])


@torch.no_grad()
@pytest.mark.parametrize(("count", "size"), [(3, 7), *long((4, 1), (3, 33))])
def test_nothing_reaches_back(config, count, size):
    """Neither a later clean block nor the noise of any block: outputs before it are the same, bit for bit, or to
    rounding; noise moves its own block alone."""
    mixer, x = mixer_of(config), rows_of(2, count, size)
    y, rows = trained(mixer, x, count), len(x) // 2
    for k in range(count):
        other = x.clone()
        other[k] += 1  # clean block k of text 0
        moved = (trained(mixer, other, count) - y).abs().amax((1, 2)) > 1e-6
        expected = torch.zeros(2 * rows, dtype=torch.bool)
        expected[k:count] = expected[rows + k + 1 : rows + count] = True
        assert not (moved & ~expected).any()
        assert moved[k] and moved[rows + k + 1 : rows + count][:1].all()
        other = x.clone()
        other[rows + k] += 1
        moved = (trained(mixer, other, count) - y).abs().amax((1, 2)) > 1e-6
        assert moved.nonzero().flatten().tolist() == [rows + k]


@torch.no_grad()
@pytest.mark.parametrize("size", [7, *long((1,))])
def test_denoising_leaves_the_cache_and_committing_moves_named_rows(config, size):
    mixer, x = mixer_of(config), rows_of(2, 3, size)
    _, caches = generated(mixer, x, 3)
    before = [probe(mixer, cache, size) for cache in caches]
    noisy, clean = (unfold(half, 3)[:, :size] for half in x.chunk(2))
    for _ in range(2):
        mixer.denoise(noisy * 3, caches[2])
        y, after = mixer.commit(clean, caches[2], torch.tensor([True, False]))
    close(y, mixer.commit(clean, caches[2])[0])
    for cache, said in zip(caches, before, strict=True):
        assert torch.equal(probe(mixer, cache, size), said)
    said = probe(mixer, after, size)
    close(said[1], before[2][1])
    close(said[0], probe(mixer, mixer.commit(clean, caches[2])[1], size)[0])
    assert (said[0] - before[2][0]).abs().max() > 1e-4


@torch.no_grad()
def test_the_cache_of_a_state_has_one_size_and_float32(config):
    if config.family() != "mamba":
        assert generated(mixer_of(config), rows_of(1, 2, 8), 2)[1][2].nbytes() > 0
        return
    mixer = mixer_of(config)
    _, caches = generated(mixer, rows_of(1, 4, 8), 4)
    assert len({cache.nbytes() for cache in caches}) == 1
    with torch.autocast("cpu", torch.bfloat16):
        cache = mixer.prefill(rows_of(1, 4, 8).chunk(2)[0].bfloat16(), 4, torch.tensor([3]))[1]
        for _ in range(2):
            assert [value.dtype for value in cache.state if value.dim() == 4] == [torch.float32]
            cache = mixer.commit(rows_of(1, 1, 8)[:1].bfloat16(), cache)[1]
