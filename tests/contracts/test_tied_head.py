"""model.tie_head: the token table is the head's matrix, and learns from both ends."""

import pytest
import torch

from diffusion_lm.config import config_class, from_tree
from diffusion_lm.errors import UserError
from diffusion_lm.experiment import ExperimentConfig
from diffusion_lm.model import DenoisingModel, ModelConfig
from diffusion_lm.noisy import Noisy, scored_rows

VOCABULARY, D_MODEL, ROWS, LENGTH = 11, 64, 3, 8


def tied_model(process, **changes) -> DenoisingModel:
    torch.manual_seed(0)
    config = ModelConfig(d_model=D_MODEL, embedding_dim=6, tie_head=True, **changes)
    return DenoisingModel(config, config_class("denoisers", "transformer")(n_layers=1), process)


def noisy_ids(process) -> Noisy:
    x = torch.randint(process.symbols, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    return Noisy(x, torch.full((ROWS, 1), 0.5, dtype=torch.float64))


@torch.no_grad()
@pytest.mark.parametrize("process", ["masked", "uniform"])
def test_logits_are_products_with_the_token_table(tools, process):
    process = tools.process_of(process, "log_linear", VOCABULARY)
    model = tools.shaken(tied_model(process))
    noisy = noisy_ids(process)
    hidden = model.norm(model.denoiser(model.embed.weight[noisy.x], noisy))
    expected = torch.einsum("bld,vd->blv", hidden, model.table()[:VOCABULARY]) + model.head.bias[:VOCABULARY]
    torch.testing.assert_close(model(noisy).logits[..., :VOCABULARY], expected)
    assert len(model.table()) == process.symbols


@torch.no_grad()
def test_gaussian_logits_are_products_with_the_token_vectors(tools):
    process = tools.process_of("gaussian", "cosine", VOCABULARY)
    model = tools.shaken(tied_model(process, output_prior=False, local_estimate=False))
    x = torch.randn(ROWS, LENGTH, 6, generator=torch.Generator().manual_seed(1))
    noisy = Noisy(x, torch.full((ROWS, 1), 0.5, dtype=torch.float64))
    hidden = model.norm(model.denoiser(model.embed.project(x), noisy))
    vectors = hidden @ model.head.weight.T
    expected = vectors @ model.table().T + model.head.bias[:VOCABULARY]
    torch.testing.assert_close(model(noisy).logits[..., :VOCABULARY], expected)


def test_the_table_gets_the_gradients_of_both_its_uses(tools):
    """The tied gradient is the sum of those of an untied model of the same numbers."""
    process = tools.process_of("masked", "log_linear", VOCABULARY)
    tied = tools.shaken(tied_model(process))
    untied = DenoisingModel(ModelConfig(d_model=D_MODEL), config_class("denoisers", "transformer")(n_layers=1), process)
    untied.load_state_dict({**tied.state_dict(), "embed.weight": tied.table()})
    noisy = noisy_ids(process)
    weight, rows = torch.rand(ROWS, LENGTH), scored_rows(torch.ones(ROWS, LENGTH, dtype=torch.bool))
    for model in (tied, untied):
        loss, _ = model.weighted_cross_entropy(noisy, noisy.x.clamp(max=VOCABULARY - 1), weight, rows)
        loss.backward()
    both = untied.head.weight.grad.clone()
    both[: process.symbols] += untied.embed.weight.grad
    torch.testing.assert_close(tied.embed.weight.grad, both)
    assert tied.head.weight is tied.embed.weight
    assert both.abs().sum() > 0


def test_a_vector_has_no_head_to_tie():
    line = (
        "model.tie_head: got true with readout 'vector', whose last layer is x_0_hat and has no output per token; "
        "expected false, or an objective over tokens (objective=gaussian)"
    )
    tree = {"objective": "dimba_literal", "denoiser": "dimba", "model": {"tie_head": True}}
    with pytest.raises(UserError) as refusal:
        from_tree(ExperimentConfig, tree)
    assert str(refusal.value) == line
