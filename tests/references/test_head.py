"""The row-restricted output head against a dense cross-entropy in float64."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from diffusion_lm.config import build, config_class
from diffusion_lm.layers import row_cross_entropy as module
from diffusion_lm.layers.row_cross_entropy import row_cross_entropy
from diffusion_lm.model import DenoisingModel, ModelConfig
from diffusion_lm.noisy import Batch, Noisy, scored_rows
from diffusion_lm.objectives.base import TrainingNoise
from diffusion_lm.prompts import PromptConfig
from diffusion_lm.random import Noise

D = 8
VOCABULARY, LENGTH = 11, 16
WAITS = {"aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.index"}
"""Operations that wait for a device (aten.index with a mask does)."""


def naive(hidden, kernel, bias, tokens, weight, vocabulary):
    """-ln p of every row, one by one, and their weighted sum."""
    losses = []
    for h, y in zip(hidden, tokens):
        odds = [(h * kernel[v]).sum() + bias[v] for v in range(vocabulary)]
        losses.append(-odds[int(y)] + torch.stack(odds).exp().sum().log())
    losses = torch.stack(losses) if losses else hidden.new_zeros(0)
    return (weight * losses).sum(), losses


def problem(rows, vocabulary, width, dtype=torch.float64):
    """Hidden states, a head, tokens and weights (some 0, some negative)."""
    generator = torch.Generator().manual_seed(rows + vocabulary)
    hidden = torch.randn(rows, D, generator=generator, dtype=dtype).requires_grad_()
    head = nn.Linear(D, width, dtype=dtype)
    with torch.no_grad():
        head.weight.copy_(torch.randn(width, D, generator=generator))
        head.bias.copy_(torch.randn(width, generator=generator))
    tokens = torch.randint(vocabulary, (rows,), generator=generator)
    weight = torch.randn(rows, generator=generator, dtype=dtype)
    return hidden, head, tokens, weight * (torch.rand(rows, generator=generator) < 0.8)


class Largest(TorchDispatchMode):
    """Records the elements of the largest floating-point tensor that any operation makes, and the operations."""

    def __init__(self):
        super().__init__()
        self.elements, self.operations = 0, set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        self.operations.add(str(operation.overloadpacket))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                self.elements = max(self.elements, tensor.numel())
        return made


@pytest.mark.parametrize(("vocabulary", "width"), [(5, 5), (5, 8), (1, 8), (13, 16)])
@pytest.mark.parametrize("rows", [0, 1, 256, 257, 600])
def test_value_and_gradients_equal_the_naive_ones(rows, vocabulary, width, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 1)  # chunks of 256 rows
    hidden, head, tokens, weight = problem(rows, vocabulary, width)
    weight.requires_grad_()
    inputs = (hidden, head.weight, head.bias, weight)
    expected, expected_losses = naive(hidden, head.weight, head.bias, tokens, weight, vocabulary)
    expected_gradients = torch.autograd.grad(3 * expected + hidden.sum(), inputs, allow_unused=True)
    loss, losses = row_cross_entropy(hidden, head, tokens, weight, vocabulary)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(losses, expected_losses)
    assert not losses.requires_grad
    for found, value in zip(torch.autograd.grad(3 * loss + hidden.sum(), inputs), expected_gradients):
        torch.testing.assert_close(found, torch.zeros_like(found) if value is None else value)


def test_ids_outside_the_vocabulary_get_no_gradient_however_large_their_logits_are():
    hidden, head, tokens, weight = problem(9, 5, 8)
    with torch.no_grad():
        head.bias[5:] = 1e4
    loss, losses = row_cross_entropy(hidden, head, tokens, weight, 5)
    torch.testing.assert_close(losses, naive(hidden, head.weight, head.bias, tokens, weight, 5)[1])
    loss.backward()
    assert (head.weight.grad[5:] == 0).all() and (head.bias.grad[5:] == 0).all()
    assert (head.weight.grad[:5] != 0).all()


@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
def test_bfloat16_products(size):
    hidden, head, tokens, weight = problem(300, 13, 16, torch.float32)
    with torch.no_grad():
        head.weight *= size
    narrow = hidden.detach().bfloat16().requires_grad_()
    exact = [x.detach().double().requires_grad_() for x in (narrow, head.weight.bfloat16(), head.bias)]
    expected, expected_losses = naive(*exact, tokens, weight, 13)
    loss, losses = row_cross_entropy(narrow, head, tokens, weight, 13)
    assert loss.dtype == losses.dtype == torch.float32
    # a logit is a bfloat16 sum of products: 2^-9 of it
    limit = 2**-8 * float((exact[0] @ exact[1].T).detach().abs().max()) + 1e-5
    assert (losses - expected_losses).abs().max() <= limit
    expected.backward()
    loss.backward()
    for found, value in zip((narrow.grad, head.weight.grad, head.bias.grad), (x.grad for x in exact)):
        assert (found - value).norm() <= 0.02 * value.norm()
    assert narrow.grad.dtype == torch.bfloat16 and head.weight.grad.dtype == torch.float32


def test_a_second_backward_is_refused():
    hidden, head, tokens, weight = problem(3, 5, 8)
    loss, _ = row_cross_entropy(hidden, head, tokens, weight, 5)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward ran twice through row_cross_entropy"):
        loss.backward()


def masked_model(padding: int = 8) -> DenoisingModel:
    """A small model over the masked process, no parameter zero."""
    process = build(config_class("processes", "masked")(), build(config_class("schedules", "log_linear")()), VOCABULARY)
    torch.manual_seed(0)
    denoiser = config_class("denoisers", "transformer")(n_layers=1)
    model = DenoisingModel(ModelConfig(d_model=64, pad_vocabulary_to=padding), denoiser, process)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return model


def masked_batch(share: float, batch: int = 40):
    """(noisy, tokens, weight, rows) with that share of the positions masked and an eighth of the others given."""
    generator = torch.Generator().manual_seed(int(share * 100))
    tokens = torch.randint(VOCABULARY, (batch, LENGTH), generator=generator)
    masked = torch.rand(batch, LENGTH, generator=generator) < share
    given = (torch.rand(batch, LENGTH, generator=generator) < 0.125) & ~masked
    weight = torch.rand(batch, LENGTH, generator=generator) * masked
    level = torch.full((batch, 1), share, dtype=torch.float64)
    return Noisy(tokens.where(~masked, VOCABULARY), level, given), tokens, weight, scored_rows(masked)


def dense(model, noisy, tokens, weight):
    """The same from the model's logits, softmax in float64."""
    losses = -torch.log_softmax(model(noisy).logits.double(), -1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return (weight * losses).sum(), (losses * (weight != 0)).detach()


def gradients(model, loss):
    return dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, tuple(model.parameters()))))


@pytest.mark.parametrize("padding", [1, 8, 5])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.7, 1.0])
def test_a_model_scores_its_rows_as_the_dense_form_does(share, padding, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 1)
    model, (noisy, tokens, weight, rows) = masked_model(padding), masked_batch(share)
    if share == 0.001:  # one row alone
        weight, rows = torch.zeros_like(weight), torch.full((256,), -1)
        weight[3, 5], rows[17] = 0.5, 3 * LENGTH + 5
    expected, expected_losses = dense(model, noisy, tokens, weight)
    loss, losses = model.weighted_cross_entropy(noisy, tokens, weight, rows)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses.double(), expected_losses, rtol=1e-5, atol=1e-5)
    found, wanted = gradients(model, loss), gradients(model, expected)
    for name, gradient in found.items():
        assert (gradient - wanted[name]).norm() <= 1e-4 * wanted[name].norm(), name
    assert (wanted["head.bias"].norm() == 0) == (share == 0)


def test_under_autocast_a_model_keeps_near_its_float32_gradients():
    model, (noisy, tokens, weight, rows) = masked_model(), masked_batch(0.5)
    expected, _ = dense(model, noisy, tokens, weight)
    wanted = gradients(model, expected)
    with torch.autocast("cpu", torch.bfloat16):
        loss, losses = model.weighted_cross_entropy(noisy, tokens, weight, rows)
        found = gradients(model, loss)
    assert loss.dtype == losses.dtype == torch.float32
    assert abs(float(loss.detach()) - float(expected.detach())) <= 0.01 * float(expected.detach())
    for name in ("head.weight", "head.bias", "norm.weight", "embed.weight"):
        assert (found[name] - wanted[name]).norm() <= 0.05 * wanted[name].norm(), name


def test_outside_training_products_are_float32_whatever_the_autocast():
    model, (noisy, tokens, weight, rows) = masked_model().eval(), masked_batch(0.5)
    model.denoiser = Fixed(torch.randn(*tokens.shape, 64))
    with torch.no_grad():
        _, wanted = dense(model, noisy, tokens, weight)
        with torch.autocast("cpu", torch.bfloat16):
            loss, losses = model.weighted_cross_entropy(noisy, tokens, weight, rows)
    torch.testing.assert_close(losses.double(), wanted, rtol=1e-5, atol=1e-5)
    assert not loss.requires_grad


class Fixed(nn.Module):
    """A denoiser that always says the same."""

    def __init__(self, hidden):
        super().__init__()
        self.hidden = hidden

    def forward(self, hidden, noisy):
        return self.hidden


def test_memory_never_holds_the_logits_of_all_rows_and_nothing_waits_for_a_device(monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 1)
    generator = torch.Generator().manual_seed(0)
    rows, vocabulary = 2048, 4000
    hidden = torch.randn(rows, D, generator=generator).requires_grad_()
    head = nn.Linear(D, vocabulary)
    tokens = torch.randint(vocabulary, (rows,), generator=generator)
    with Largest() as seen:
        loss, _ = row_cross_entropy(hidden, head, tokens, torch.ones(rows), vocabulary - 1)
        loss.backward()
    assert seen.elements == 256 * vocabulary
    model, batch = masked_model(), masked_batch(0.7)
    with Largest() as seen:
        model.weighted_cross_entropy(*batch)[0].backward()
    assert not seen.operations & WAITS
    with Largest() as seen:  # what the recorder has to see
        torch.ones(3)[torch.ones(3) > 0].sum().item()
    assert {"aten.index", "aten._local_scalar_dense"} <= seen.operations


def test_the_masked_bound_is_that_of_the_dense_head():
    """With more masked positions than the smallest number of rows."""
    model, draws, rows = masked_model().eval(), 3, 40
    objective = build(config_class("objectives", "masked")(), model.process, PromptConfig(), TrainingNoise(0, 8))
    tokens = torch.randint(VOCABULARY, (rows, LENGTH), generator=torch.Generator().manual_seed(0))
    noise = Noise(0, torch.arange(rows))
    with torch.no_grad():
        bound = objective.bound(model, Batch(tokens, torch.arange(rows)), noise, draws)
        counts = (bound.level * LENGTH).round().long()
        assert (counts.sum(0) > 256).any() and (counts.sum(0) % 256 != 0).all()
        expected = torch.zeros(rows, dtype=torch.float64)
        for k in range(draws):
            x_t = model.process.corrupt_exactly(tokens, counts[:, k], noise.at(k))
            masked = x_t == VOCABULARY
            _, losses = dense(model, Noisy(x_t, bound.level[:, k : k + 1]), tokens, masked.double())
            expected += losses.sum(1) * LENGTH / counts[:, k] / draws
    torch.testing.assert_close(bound.nll, expected, rtol=1e-5, atol=1e-5)


def test_rows_are_named_and_filled_up():
    for size in (0, 1, 255, 256, 257, 700):
        scored = (torch.arange(1000) < size)[torch.randperm(1000)].view(10, 100)
        expected = [place for place, wanted in enumerate(scored.flatten().tolist()) if wanted]
        filled = max(256, -(-size // 256) * 256)
        expected = torch.tensor(expected + [-1] * (filled - size))
        assert torch.equal(scored_rows(scored), expected)
        assert torch.equal(scored_rows(scored, size), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_cuda_without_waiting_for_it(dtype):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    hidden, head, tokens, weight = problem(600, 13, 16, torch.float32)
    narrow = hidden.detach().to(dtype).requires_grad_()
    exact = [x.detach().double().requires_grad_() for x in (narrow, head.weight.to(dtype), head.bias)]
    expected, expected_losses = naive(*exact, tokens, weight, 13)
    expected.backward()
    there = [x.detach().cuda().requires_grad_(x.requires_grad) for x in (narrow, tokens, weight)]
    head.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss, losses = row_cross_entropy(there[0], head, *there[1:], 13)
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(losses.cpu().double(), expected_losses, rtol=1e-4, atol=1e-4)  # sums are unrounded
    for found, value in zip((there[0].grad, head.weight.grad, head.bias.grad), (x.grad for x in exact)):
        assert (found.cpu() - value).norm() <= (0.02 if dtype == torch.bfloat16 else 1e-3) * value.norm()


def test_gaussian_states_are_refused():
    process = build(config_class("processes", "gaussian")(), build(config_class("schedules", "cosine")()), VOCABULARY)
    model = DenoisingModel(ModelConfig(d_model=64), config_class("denoisers", "transformer")(n_layers=1), process)
    noisy = Noisy(torch.randn(2, LENGTH, 16), torch.full((2, 1), 0.5, dtype=torch.float64))
    tokens = torch.zeros(2, LENGTH, dtype=torch.long)
    with pytest.raises(TypeError, match="a Gaussian state's evidence belongs to the logits"):
        model.weighted_cross_entropy(noisy, tokens, torch.ones(2, LENGTH), scored_rows(tokens == 0))
