"""Whole models in blocks: the logits of training are those of generation from the cache, on the same content."""

from dataclasses import fields

import pytest
import torch

from diffusion_lm.blocks import Blocks
from diffusion_lm.cache import Cache, Denoising
from diffusion_lm.config import config_class, part_class, variants
from diffusion_lm.noisy import Noisy

VOCABULARY = 11


OF_FAMILY = {"attention": "transformer", "mamba": "mamba"}
"""A denoiser of one kind of mixer, for each family."""


def named(folder: str, refuses) -> list[str]:
    """The folder's variants but for those that blocks refuse, of each of which the class or config says why."""
    return [name for name in variants(folder) if not refuses(config_class(folder, name))]


LONG = pytest.mark.long
DENOISERS = named("denoisers", lambda cls: part_class(cls()).encodes_prompts)
CONDITIONINGS = named("conditioning", lambda cls: cls().positions > 0)


def trunk_of(tools, name: str, **options):
    """A denoiser of its default mixers, of few channels; the hybrid of both kinds within three layers."""
    cls = config_class("denoisers", name)
    parts = {f.name: type(getattr(cls(), f.name)) for f in fields(cls) if f.metadata.get("folder") == "mixers"}
    inner = {"inner": tools.small_mixer(config_class("mixers", "mamba2"))}
    mixers = {
        key: tools.small_mixer(part, **(inner if "inner" in part.__dataclass_fields__ else {}))
        for key, part in parts.items()
    }
    pattern = {"pattern": "MA"} if "pattern" in cls.__dataclass_fields__ else {}
    return name, mixers | pattern | options


def trunk_with(mixer):
    """The denoiser of a mixer's family, with it."""
    return OF_FAMILY[mixer.family()], {"mixer": mixer}


FULL = ("mamba", "hydra", "hybrid")


def full_of(tools, name: str):
    """Trunks with the papers' approximate cache."""
    inner = tools.small_mixer(config_class("mixers", "mamba2"))
    both = tools.small_mixer(config_class("mixers", "bidirectional"), inner=inner, reverse_scan="full")
    hydra = tools.small_mixer(config_class("mixers", "hydra"), reverse_scan="full")
    options = {"mamba": {"mixer": both}, "hydra": {"mixer": hydra}, "hybrid": {"mamba": both}}[name]
    return trunk_of(tools, "mamba" if name == "hydra" else name, **options)


PROCESSES = {"masked": "log_linear", "uniform": "log_linear", "gaussian": "cosine"}


def model_of(tools, trunk, process: str = "masked"):
    """Weights that matter everywhere; three layers, or as many as the trunk says."""
    denoiser, options = trunk
    part = tools.process_of(process, PROCESSES[process], VOCABULARY)
    model = tools.small_model(part, denoiser, **({"n_layers": 3, "mlp_expansion": 1.0} | options))
    return tools.shaken(model, size=0.05).eval()


def texts(model, count: int, size: int, rows: int = 2):
    """Clean tokens as rows of blocks, their noisy form, its levels, and given positions."""
    generator = torch.Generator().manual_seed(size)
    tokens = torch.randint(0, VOCABULARY, (rows * count, size), generator=generator)
    level = 0.1 + 0.8 * torch.rand(rows * count, 1, generator=generator)
    given = torch.rand(tokens.shape, generator=generator) < 0.2
    if model.process.discrete:
        hidden = torch.rand(tokens.shape, generator=generator) < level
        noise = torch.randint(0, model.process.symbols, tokens.shape, generator=generator)
        x = torch.where(hidden & ~given, noise, tokens)
    else:
        clean = model.process.encode(tokens, model.table())
        x = clean + torch.randn(clean.shape, generator=generator) * (level * ~given).unsqueeze(-1)
    return tokens, x, level, given


def trained(model, tokens, x, level, given, count):
    return model(Noisy(x, level, given, blocks=Blocks(tokens, count))).logits


def generated(model, tokens, x, level, given, count):
    """Block by block from the cache."""
    tokens, x, level, given = (v.unflatten(0, (-1, count)) for v in (tokens, x, level, given))
    cache, found = Cache.empty(len(tokens)), []
    for k in range(count):
        noisy = Noisy(x[:, k], level[:, k], given[:, k], cache=Denoising(cache=cache))
        found.append(model(noisy).logits)
        cache = model.commit(tokens[:, k], cache)
    return torch.stack(found, 1).flatten(0, 1)


def same(a, b, tolerance: float = 1e-5) -> None:
    finite = a.isfinite()
    assert torch.equal(finite, b.isfinite())
    torch.testing.assert_close(a[finite], b[finite], rtol=tolerance, atol=tolerance)


@torch.no_grad()
@pytest.mark.parametrize("name", DENOISERS)
@pytest.mark.parametrize(("count", "size"), [(4, 1), (3, 7), pytest.param(2, 33, marks=pytest.mark.slow), (1, 28)])
def test_training_gives_the_logits_of_generation(tools, name, count, size):
    model = model_of(tools, trunk_of(tools, name))
    content = texts(model, count, size)
    same(trained(model, *content, count), generated(model, *content, count))


@torch.no_grad()
def test_every_mixer_of_the_folder_gives_the_logits_of_generation_in_a_model(tools, exact_mixer):
    denoiser, options = trunk_with(exact_mixer)
    model = model_of(tools, (denoiser, options | {"n_layers": 2}))
    content = texts(model, 3, 5)
    same(trained(model, *content, 3), generated(model, *content, 3))


@torch.no_grad()
def test_no_mixer_without_an_exact_cache_does(tools, inexact_mixer):
    """The model that is trained is not the one that generates from the cache, but for the first block."""
    model = model_of(tools, trunk_with(inexact_mixer))
    content = texts(model, 3, 5)
    gap = (trained(model, *content, 3) - generated(model, *content, 3))[..., :VOCABULARY].abs().amax((1, 2)).view(2, 3)
    assert (gap[:, 0] < 1e-5).all() and (gap[:, 1:] > 1e-3).all()


@torch.no_grad()
@pytest.mark.parametrize("name", CONDITIONINGS)
def test_every_conditioning_gives_the_logits_of_generation(tools, name):
    model = model_of(tools, trunk_of(tools, "hybrid", conditioning=config_class("conditioning", name)()))
    content = texts(model, 3, 5)
    same(trained(model, *content, 3), generated(model, *content, 3))


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("name", DENOISERS)
@pytest.mark.parametrize("size", [1, pytest.param(2, marks=LONG), pytest.param(7, marks=LONG), 64, 448])
def test_training_gives_the_logits_of_generation_at_length_448(tools, name, size):
    model = model_of(tools, trunk_of(tools, name))
    content = texts(model, 448 // size, size, rows=1)
    same(trained(model, *content, 448 // size), generated(model, *content, 448 // size))


@torch.no_grad()
@pytest.mark.parametrize("process", ["uniform", "gaussian"])
def test_any_process_has_the_same_blocks(tools, process):
    model = model_of(tools, trunk_of(tools, "hybrid"), process)
    content = texts(model, 3, 5)
    same(trained(model, *content, 3), generated(model, *content, 3))


@torch.no_grad()
@pytest.mark.parametrize("name", DENOISERS)
def test_a_prompt_is_taken_in_at_once_as_block_by_block(tools, name):
    """Rows of different lengths."""
    model = model_of(tools, trunk_of(tools, name))
    tokens, x, level, given = texts(model, 5, 7)
    cache = model.prefill(tokens.unflatten(0, (2, 5)).flatten(1), torch.tensor([14, 35]), 7)
    assert cache.length.tolist() == [14, 35]
    found = model(Noisy(x[:2], level[:2], given[:2], cache=Denoising(cache=cache))).logits
    for row, blocks in enumerate((2, 5)):
        slow = Cache.empty(1)
        for k in range(blocks):
            slow = model.commit(tokens[row * 5 + k][None], slow)
        one = slice(row, row + 1)
        own = model(Noisy(x[one], level[one], given[one], cache=Denoising(cache=slow))).logits
        same(found[one], own)


@torch.no_grad()
@pytest.mark.parametrize("name", DENOISERS)
def test_noise_moves_its_own_block_and_clean_text_the_later_ones(tools, name):
    model = model_of(tools, trunk_of(tools, name))
    tokens, x, level, given = texts(model, 4, 6, rows=1)
    said = trained(model, tokens, x, level, given, 4)
    for k in range(4):
        other, changed = x.clone(), tokens.clone()
        other[k] = (other[k] + 1) % VOCABULARY
        changed[k] = (changed[k] + 1) % VOCABULARY
        for content, expected in (((tokens, other), [k]), ((changed, x), list(range(k + 1, 4)))):
            moved = (trained(model, *content, level, given, 4) - said)[..., :VOCABULARY].abs().amax((1, 2))
            assert (moved > 1e-5).nonzero().flatten().tolist() == expected


@torch.no_grad()
@pytest.mark.parametrize("name", FULL)
def test_a_full_reverse_scan_keeps_the_contract_in_one_block_alone(tools, name):
    model = model_of(tools, full_of(tools, name))
    one, more = texts(model, 1, 28), texts(model, 4, 7)
    same(trained(model, *one, 1), generated(model, *one, 1))
    gap = (trained(model, *more, 4) - generated(model, *more, 4))[..., :VOCABULARY].abs().amax((1, 2)).view(2, 4)
    assert (gap[:, 1:] > 1e-3).all()


@torch.no_grad()
@pytest.mark.parametrize("name", FULL)
def test_a_full_reverse_scan_is_whole_texts_that_end_in_the_noisy_block(tools, name):
    """Without any blocks: earlier text clean and at noise level 0, told so by position."""
    model = model_of(tools, full_of(tools, name))
    model.given.zero_()  # a given position and an earlier one differ by this marker alone
    tokens, x, level, _ = texts(model, 3, 5, rows=1)
    said = trained(model, tokens, x, level, None, 3)
    for k in range(3):
        text = torch.cat((tokens[:k].flatten(), x[k]))[None]
        given = (torch.arange(text.shape[1]) < 5 * k)[None]
        same(said[k : k + 1], model(Noisy(text, level[k : k + 1], given)).logits[:, -5:])


@torch.no_grad()
def test_later_blocks_do_not_reach_earlier_ones_in_a_full_reverse_scan_either(tools):
    model = model_of(tools, full_of(tools, "hybrid"))
    tokens, x, level, given = texts(model, 4, 6, rows=1)
    said = trained(model, tokens, x, level, given, 4)
    other = tokens.clone()
    other[2] = (other[2] + 1) % VOCABULARY
    same(trained(model, other, x, level, given, 4)[:3], said[:3])
