"""Packed documents: every mixer, every denoiser and every objective keep them apart."""

from dataclasses import fields
from itertools import pairwise

import pytest
import torch

from diffusion_lm.config import build, config_class, part_class, variants
from diffusion_lm.mixers.base import Context
from diffusion_lm.noisy import Batch, Noisy

D_MODEL = 64
LENGTHS = (5, 1, 9, 4, 2)
"""Of the documents of a row; the last is padding."""


def layout(rows: int = 2) -> torch.Tensor:
    """Segments of a row: documents 1, 2, ... and padding 0."""
    ids = [*range(1, len(LENGTHS)), 0]
    return torch.tensor(ids).repeat_interleave(torch.tensor(LENGTHS)).expand(rows, -1)


def spans() -> list[slice]:
    """Places of the documents, without the padding."""
    ends = torch.tensor((0, *LENGTHS)).cumsum(0).tolist()
    return [slice(start, end) for start, end in pairwise(ends[:-1])]


def mixers() -> list:
    """Every mixer by default, with each switch turned on, and with blocks where it has them."""
    found = []
    for name in variants("mixers"):
        cls = config_class("mixers", name)
        found.append(pytest.param(cls(), id=name))
        found += [pytest.param(cls(**{f.name: True}), id=f"{name}-{f.name}") for f in fields(cls) if f.default is False]
        if "block_size" in cls.__dataclass_fields__:
            found.append(pytest.param(cls(causal=True, block_size=3), id=f"{name}-blocks"))
        if "chunk_size" in cls.__dataclass_fields__:
            found.append(pytest.param(cls(chunk_size=4), id=f"{name}-chunks"))
    return found


@torch.no_grad()
@pytest.mark.parametrize("config", mixers())
def test_a_document_among_others_is_as_it_is_alone(config, tools):
    torch.manual_seed(0)
    mixer = tools.shaken(build(config, D_MODEL))
    segment = layout()
    x = torch.randn(2, segment.shape[1], D_MODEL)
    y = mixer(x, Context(segment))
    assert y.isfinite().all()
    for place in spans():
        torch.testing.assert_close(y[:, place], mixer(x[:, place]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", mixers())
def test_padding_changes_nothing_and_no_gradient_crosses_a_boundary(config, tools):
    torch.manual_seed(0)
    mixer = tools.shaken(build(config, D_MODEL))
    segment = layout()
    x = torch.randn(2, segment.shape[1], D_MODEL)
    other = torch.where((segment == 0).unsqueeze(-1), 7.0, x)
    text = slice(0, spans()[-1].stop)
    torch.testing.assert_close(mixer(other, Context(segment))[:, text], mixer(x, Context(segment))[:, text])
    x.requires_grad_()
    inside = spans()[2]
    (mixer(x, Context(segment))[:, inside] ** 2).sum().backward()
    assert x.grad[:, inside].abs().amax(-1).min() > 0
    largest = x.grad[:, inside].abs().max()
    outside = torch.ones(segment.shape[1], dtype=torch.bool)
    outside[inside] = False
    assert x.grad[:, outside].abs().max() <= 1e-6 * largest
    assert all(p.grad.isfinite().all() for p in mixer.parameters() if p.grad is not None)


@torch.no_grad()
@pytest.mark.parametrize("denoiser", variants("denoisers"))
@pytest.mark.parametrize("given", [False, True], ids=["", "given"])
def test_a_model_reads_a_document_among_others_as_alone(denoiser, given, tools):
    process = tools.process_of("masked", "log_linear")
    layers = {"n_layers": 6} if denoiser == "hybrid" else {}
    model = tools.shaken(tools.small_model(process, denoiser, **layers)).eval()
    segment = layout()
    x = torch.randint(process.symbols, segment.shape, generator=torch.Generator().manual_seed(0))
    level = torch.tensor([[0.3], [0.8]], dtype=torch.float64)
    shown = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.4 if given else None
    logits = model(Noisy(x, level, shown, segment=segment)).logits
    for place in spans():
        alone = model(Noisy(x[:, place], level, None if shown is None else shown[:, place])).logits
        torch.testing.assert_close(logits[:, place], alone, rtol=1e-3, atol=1e-4)


def test_a_conditioning_with_a_position_of_its_own_is_refused(tools):
    process = tools.process_of("masked", "log_linear")
    model = tools.small_model(process, conditioning=config_class("conditioning", "token")())
    segment = layout()
    with pytest.raises(TypeError, match="conditioning token: its positions belong to no document"):
        model(Noisy(torch.zeros_like(segment), torch.ones(2, 1), segment=segment))


@torch.no_grad()
def test_the_first_token_of_a_document_follows_the_begin_marker(tools):
    process = tools.process_of("left_to_right", "log_linear")
    model = tools.shaken(tools.small_model(process, objective="autoregressive")).eval()
    segment = layout()
    x = torch.randint(process.vocabulary, segment.shape, generator=torch.Generator().manual_seed(0))
    level = torch.zeros(2, 1, dtype=torch.float64)
    logits = model(Noisy(x, level, segment=segment)).logits
    for place in spans():
        torch.testing.assert_close(logits[:, place], model(Noisy(x[:, place], level)).logits, rtol=1e-4, atol=1e-5)


def pairs() -> list:
    """Every objective over every process of its."""
    return [
        pytest.param(name, process, id=f"{name}-{process}")
        for name in variants("objectives")
        for process in part_class(config_class("objectives", name)()).processes
    ]


def watched(model) -> list[Noisy]:
    """What the model's trunk is shown from now on."""
    seen = []
    model.denoiser.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1]))
    return seen


@pytest.mark.parametrize(("name", "process"), pairs())
def test_every_call_of_an_objective_is_told_the_segments(name, process, tools):
    """In training and in the bound, also where a self-conditioned model makes an estimate of some rows first."""
    schedule = part_class(config_class("objectives", name)()).default_schedule
    process = tools.process_of(process, schedule)
    model = tools.small_model(process, objective=name)
    model.self_conditioning = 0.0 if process.discrete else 0.5
    objective = tools.objective_of(name, process, prompt=0.5)
    segment = layout(8)
    tokens = torch.randint(process.vocabulary, segment.shape, generator=torch.Generator().manual_seed(0))
    batch = Batch(tokens, torch.arange(8), segment=segment)
    seen = watched(model)
    objective(model, objective.draw(batch)).loss.backward()
    trained = len(seen)
    assert trained
    with torch.no_grad():
        if objective.bound(model, batch, tools.rows_noise(8), 2) is None:
            objective.measures(model, batch, tools.rows_noise(8), 2)
    assert len(seen) > trained
    for noisy in seen:
        assert torch.equal(noisy.segment, segment[: len(noisy.x)])


@torch.no_grad()
@pytest.mark.parametrize(("name", "process"), pairs())
def test_segments_reach_the_numbers(name, process, tools):
    """What is reported of a model that has learned something is another where documents are apart."""
    process = tools.process_of(process, part_class(config_class("objectives", name)()).default_schedule)
    model = tools.shaken(tools.small_model(process, objective=name), size=0.3).eval()
    objective, noise = tools.objective_of(name, process), tools.rows_noise(4)
    tokens = torch.randint(process.vocabulary, (4, sum(LENGTHS)), generator=torch.Generator().manual_seed(0))
    found = []
    for segment in (None, layout(4)):
        batch = Batch(tokens, torch.arange(4), segment=segment)
        bound = objective.bound(model, batch, noise, 2)
        found.append(objective.measures(model, batch, noise, 2)["mse"] if bound is None else bound.nll)
    assert found[1].isfinite().all()
    assert not torch.equal(*found)
