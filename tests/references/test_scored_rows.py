"""Over masks every objective's head runs on the masked rows, in chunks; score entropy with the same kernel."""

import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from diffusion_lm.config import build, config_class, part_class
from diffusion_lm.layers import row_cross_entropy as module
from diffusion_lm.layers.row_cross_entropy import row_cross_entropy
from diffusion_lm.model import DenoisingModel, ModelConfig
from diffusion_lm.noisy import Batch
from diffusion_lm.objectives.base import TrainingNoise
from diffusion_lm.prompts import PromptConfig
from diffusion_lm.random import Noise

D, WIDE, ROWS, LENGTH = 8, 2000, 32, 32
OBJECTIVES = ["masked", "cross_entropy", "discrete_time", "score_entropy"]


def score_entropy(hidden, head, tokens, vocabulary):
    """sum_v s(v) / V - ln s(y) + ln V - 1 of every row: what is least where s(y) = V and all others are 0."""
    last = (hidden @ head.weight.T + head.bias)[:, :vocabulary]
    own = last.gather(1, tokens.unsqueeze(1)).squeeze(1)
    return last.exp().sum(1) / vocabulary - own + math.log(vocabulary) - 1


@pytest.mark.parametrize(("vocabulary", "width"), [(5, 5), (5, 8), (13, 16)])
@pytest.mark.parametrize("rows", [1, 256, 600])
def test_scores_against_the_naive_form(rows, vocabulary, width, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 1)  # chunks of 256 rows
    generator = torch.Generator().manual_seed(rows + vocabulary)
    hidden = torch.randn(rows, D, generator=generator, dtype=torch.float64).requires_grad_()
    head = nn.Linear(D, width, dtype=torch.float64)
    tokens = torch.randint(vocabulary, (rows,), generator=generator)
    weight = torch.randn(rows, generator=generator, dtype=torch.float64).requires_grad_()
    inputs = (hidden, head.weight, head.bias, weight)
    expected = score_entropy(hidden, head, tokens, vocabulary)
    loss, losses = row_cross_entropy(hidden, head, tokens, weight, vocabulary, normalised=False)
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(loss, (weight * expected).sum())
    wanted = torch.autograd.grad((weight * expected).sum(), inputs)
    for found, value in zip(torch.autograd.grad(loss, inputs), wanted):
        torch.testing.assert_close(found, value)


@pytest.mark.parametrize("level", [-300.0, -70.0, 0.0, 60.0])
def test_scores_far_from_1_are_numbers(level):
    head = nn.Linear(D, 8)
    with torch.no_grad():
        head.bias.fill_(level)
        head.weight.zero_()
    tokens = torch.tensor([0, 1, 2])
    loss, losses = row_cross_entropy(torch.ones(3, D), head, tokens, torch.ones(3), 5, normalised=False)
    loss.backward()
    torch.testing.assert_close(losses, torch.full((3,), math.exp(level) - level - 1 + math.log(5)))
    assert head.bias.grad.isfinite().all()


class Largest(TorchDispatchMode):
    """Records the elements of the largest floating-point tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                self.elements = max(self.elements, tensor.numel())
        return made


def setting(name: str, process: str):
    """(objective, model, batch) over a vocabulary so large that logits are the largest tensor."""
    process = build(config_class("processes", process)(), build(config_class("schedules", "log_linear")()), WIDE)
    config = config_class("objectives", name)()
    trunk = config_class("denoisers", "transformer")(n_layers=1)
    torch.manual_seed(0)
    model = DenoisingModel(ModelConfig(d_model=64), trunk, process, part_class(config).readout)
    objective = build(config, process, PromptConfig(fraction=0.5), TrainingNoise(0, ROWS))
    return objective, model, Batch(torch.randint(WIDE, (ROWS, LENGTH)), torch.arange(ROWS))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_training_over_masks_never_holds_the_logits_of_all_rows(name, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 1)
    objective, model, batch = setting(name, "masked")
    with Largest() as seen:
        objective(model, objective.draw(batch)).loss.backward()
    assert seen.elements == 256 * len(model.head.bias)
    assert seen.elements < ROWS * LENGTH * WIDE / 2


@pytest.mark.parametrize("name", ["masked", "discrete_time"])
def test_nor_does_a_bound_over_masks(name, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 1)
    objective, model, batch = setting(name, "masked")
    with Largest() as seen, torch.no_grad():
        objective.bound(model, batch, Noise(0, batch.position), 2)
    assert seen.elements == 256 * len(model.head.bias)


def test_over_random_tokens_every_position_is_scored():
    objective, model, batch = setting("uniform", "uniform")
    with Largest() as seen:
        objective(model, objective.draw(batch)).loss.backward()
    assert seen.elements == ROWS * LENGTH * len(model.head.bias)
