"""Self-conditioning: which rows see an estimate, where it comes from, and that it takes no part in the gradients."""

import pytest
import torch

from diffusion_lm.commands.describe import describe
from diffusion_lm.config import build, config_class, from_tree
from diffusion_lm.errors import UserError
from diffusion_lm.experiment import ExperimentConfig
from diffusion_lm.model import DenoisingModel, ModelConfig, training_flops_per_token
from diffusion_lm.noisy import Batch, Noisy
from diffusion_lm.readouts import Prediction
from diffusion_lm.samplers.base import generate
from diffusion_lm.self_conditioning import with_own_estimate

ROWS, LENGTH, V = 6, 5, 7


@pytest.fixture
def process(tools):
    return tools.process_of("gaussian", "cosine", V)


def model_of(process, share: float, seed: int = 0) -> DenoisingModel:
    torch.manual_seed(seed)
    trunk = config_class("denoisers", "transformer")(n_layers=1)
    return DenoisingModel(ModelConfig(d_model=64, embedding_dim=4, self_conditioning=share), trunk, process)


def noisy_of(process, rows: int = ROWS, given: torch.Tensor | None = None) -> Noisy:
    x = torch.randn(rows, LENGTH, 4, generator=torch.Generator().manual_seed(1))
    return Noisy(x, torch.linspace(0.1, 0.9, rows, dtype=torch.float64).unsqueeze(1), given)


def batch_of(rows: int, start: int = 0) -> Batch:
    tokens = torch.randint(V, (40, LENGTH), generator=torch.Generator().manual_seed(2))
    return Batch(tokens[start : start + rows], torch.arange(start, start + rows))


def test_is_the_same_network_at_the_start(process):
    """The projection starts at zero, and does not change how the rest starts."""
    with_it, without = model_of(process, 0.25), model_of(process, 0.0)
    noisy = noisy_of(process)
    assert not with_it.embed.own_estimate.any()
    assert torch.equal(with_it(with_own_estimate(with_it, noisy)).logits, without(noisy).logits)


def test_the_estimate_is_the_networks_own_of_the_same_state(process, tools):
    model = tools.shaken(model_of(process, 0.25))
    given = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
    given[::2, :2] = True
    noisy = noisy_of(process, given=given)
    shown = with_own_estimate(model, noisy)
    first = torch.softmax(model(noisy).logits, -1)[..., :V] @ model.table()
    torch.testing.assert_close(shown.self_condition, first)
    assert not shown.self_condition.requires_grad
    assert not torch.allclose(model(shown).logits[..., :V], model(noisy).logits[..., :V], atol=1e-3)


def test_zeros_are_no_estimate(process, tools):
    model = tools.shaken(model_of(process, 0.25))
    noisy = noisy_of(process)
    zeros = Noisy(noisy.x, noisy.noise_level, None, torch.zeros_like(noisy.x))
    assert torch.equal(model(zeros).logits, model(noisy).logits)


def test_in_training_a_share_of_the_rows_sees_it(process, tools):
    model = tools.shaken(model_of(process, 0.25))
    noisy = noisy_of(process, 4000)
    some = with_own_estimate(model, noisy, tools.rows_noise(4000)).self_condition
    seen = (some != 0).any(-1).any(-1)
    assert tools.near(seen.double(), 0.25)
    every = with_own_estimate(model, noisy).self_condition
    torch.testing.assert_close(some[seen], every[seen])
    part = Noisy(noisy.x[30:70], noisy.noise_level[30:70])
    alone = with_own_estimate(model, part, tools.rows_noise(40, start=30)).self_condition
    torch.testing.assert_close(alone, some[30:70])


class Spy(torch.nn.Module):
    """Counts the rows that a model is called with, and keeps what it was shown."""

    def __init__(self, model: DenoisingModel) -> None:
        super().__init__()
        self.rows, self.shown = [], []
        model.register_forward_pre_hook(lambda module, inputs: self.see(inputs[0]))

    def see(self, noisy: Noisy) -> None:
        self.rows.append(len(noisy.x))
        self.shown.append(noisy.self_condition)


def test_the_bound_shows_every_row_its_estimate(process, tools):
    model = tools.shaken(model_of(process, 0.25))
    objective, spy = tools.objective_of("gaussian", process), Spy(model)
    with torch.no_grad():
        objective.bound(model, batch_of(4), tools.rows_noise(4), 3)
    assert spy.rows == [4] * 8  # three levels and the reconstruction, twice each
    assert all(shown is None for shown in spy.shown[::2])
    assert all((shown != 0).all() for shown in spy.shown[1::2])


def test_training_costs_the_share_of_a_forward_pass(process, tools):
    model = tools.shaken(model_of(process, 0.5))
    objective, spy = tools.objective_of("gaussian", process, global_batch=40), Spy(model)
    objective(model, batch_of(40))
    chosen, rows = spy.rows
    assert rows == 40
    assert 10 < chosen < 30
    assert int((spy.shown[1] != 0).any(-1).any(-1).sum()) == chosen


@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_are_those_of_a_constant_estimate(process, tools, autocast):
    """Autocast keeps weights that it has cast: those of the pass without gradient must not serve in the other one."""
    model = tools.shaken(model_of(process, 0.5))
    given = (torch.arange(LENGTH) < 2).expand(ROWS, -1)
    noisy = noisy_of(process, given=given)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        shown = with_own_estimate(model, noisy)
        model(shown).logits[..., :V].square().sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    constant = Noisy(noisy.x, noisy.noise_level, given, shown.self_condition.clone())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        model(constant).logits[..., :V].square().sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-3, atol=1e-3 * float(p.grad.abs().max()))
    assert found["embed.own_estimate"].any()


def test_without_it_nothing_is_shown(process):
    noisy = noisy_of(process)
    assert with_own_estimate(model_of(process, 0.0), noisy) is noisy


@pytest.mark.parametrize("sampler", ["ancestral", "ddim"])
def test_samplers_show_the_estimate_of_the_step_before(process, tools, sampler):
    class Teller(tools.Fake):
        """Says another token at every call, so that estimates can be told apart."""

        self_conditioning = 0.25

        def __init__(self) -> None:
            super().__init__()
            self.shown = []

        def table(self) -> torch.Tensor:
            return tools.circle(V, 2)

        def forward(self, noisy: Noisy) -> Prediction:
            self.shown.append(noisy.self_condition)
            logits = torch.full((*noisy.x.shape[:2], V), -torch.inf, dtype=torch.float64)
            logits[..., len(self.shown) % V] = 0.0
            return Prediction(logits)

    model, steps = Teller(), 4
    sample = generate(build(config_class("samplers", sampler)(num_steps=steps), process), model, tools.rows_noise(3), 2)
    assert model.shown[0] is None
    for call, shown in enumerate(model.shown[1:], 1):
        torch.testing.assert_close(shown, model.table()[call].expand(3, 2, 2))
    assert sample.calls.tolist() == [steps + 1] * 3


def test_parameters_and_operations_are_predicted(process):
    config = ModelConfig(d_model=64, embedding_dim=4, self_conditioning=0.25)
    trunk = config_class("denoisers", "transformer")(n_layers=1)
    plain = training_flops_per_token(ModelConfig(d_model=64, embedding_dim=4), trunk, process, LENGTH)
    projection = 2 * 4 * 64
    assert training_flops_per_token(config, trunk, process, LENGTH) == 3.25 * (plain / 3 + projection)
    tree = {"objective": "gaussian", "model": {"self_conditioning": 0.5}, "data": {"path": "-"}}
    facts = describe(from_tree(ExperimentConfig, tree))
    assert facts["FLOPs per token, training"] == 3.5 * facts["FLOPs per token, forward"]


def test_is_refused_where_states_are_ids():
    with pytest.raises(UserError, match=r"self_conditioning: got 0\.25 with process 'masked', whose states are ids"):
        from_tree(ExperimentConfig, {"model": {"self_conditioning": 0.25}})


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_an_impossible_share_is_refused(share):
    with pytest.raises(ValueError, match=f"self_conditioning: got {share}, expected 0 or more and less than 1"):
        ModelConfig(self_conditioning=share)
