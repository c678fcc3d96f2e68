"""Every objective with every process that it names, over every schedule: losses, gradients, given positions, bounds."""

import math
from dataclasses import dataclass, fields

import pytest
import torch

from diffusion_lm.config import build, config_class, part_class, variants
from diffusion_lm.noisy import Batch
from diffusion_lm.random import Noise
from diffusion_lm.readouts import Prediction

VOCABULARY, LENGTH = 5, 6
NAMES = [(o, p) for o in variants("objectives") for p in part_class(config_class("objectives", o)()).processes]
ENDS = [0.0, 1e-9, 1e-4, 0.5, 1 - 1e-6, 1 - 1e-12]


def default_schedule(objective: str) -> str:
    return part_class(config_class("objectives", objective)()).default_schedule


def all_weights(objective: str) -> dict[str, float]:
    """Every weight of an objective's config at 1: all terms of its loss at once."""
    weights = [f.name for f in fields(config_class("objectives", objective)) if f.name in ("bound", "cross_entropy")]
    return dict.fromkeys(weights, 1.0)


def batch_of(rows: int, seed: int = 0, length: int = LENGTH) -> Batch:
    tokens = torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))
    return Batch(tokens, torch.arange(rows))


@pytest.fixture(params=NAMES, ids="-".join)
def pair(request, tools):
    """(objective's name, process over the objective's default schedule)."""
    objective, process = request.param
    return objective, tools.process_of(process, default_schedule(objective), VOCABULARY)


@dataclass(frozen=True)
class FixedTimes:
    """Training noise at times that a test chose."""

    t: torch.Tensor

    def times(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        return self.t, torch.ones_like(self.t)

    def noise(self, batch: Batch) -> Noise:
        return Noise(0, batch.position)


@pytest.fixture
def recorder(tools):
    """Makes a model that keeps what it was shown, and adds something to the logits at the given positions."""

    class Recorder(tools.Fake):
        def __init__(self, model, shift: float = 0.0) -> None:
            super().__init__()
            self.model, self.shift, self.seen = model, shift, []

        def table(self):
            return self.model.table()

        def forward(self, noisy) -> Prediction:
            self.seen.append(noisy)
            logits = self.model(noisy).logits
            if noisy.given is None:
                return Prediction(logits)
            shift = self.shift * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
            return Prediction(logits + shift * noisy.given.unsqueeze(-1))

    return Recorder


def test_names_what_there_is():
    for objective in variants("objectives"):
        cls = part_class(config_class("objectives", objective)())
        assert cls.processes
        assert set(cls.processes) <= set(variants("processes"))
        assert cls.default_schedule in variants("schedules")


def test_shapes_of_a_loss_and_a_bound(pair, tools):
    name, process = pair
    model, batch = tools.shaken(tools.small_model(process)), batch_of(8)
    objective = tools.objective_of(name, process)
    loss = objective(model, batch)
    assert loss.loss.shape == ()
    assert loss.nll.shape == loss.tokens.shape == (8,)
    assert loss.tokens.tolist() == [LENGTH] * 8
    bound = objective.bound(model, batch, tools.rows_noise(8), 3)
    assert bound.nll.shape == bound.tokens.shape == (8,)
    assert bound.level.shape == bound.cross_entropy.shape == (8, 3)
    assert bound.tokens.tolist() == [LENGTH] * 8
    assert ((bound.level >= 0) & (bound.level <= 1)).all()
    torch.testing.assert_close(sum(bound.terms.values()), bound.nll)
    for value in (loss.loss, loss.nll, bound.nll, bound.cross_entropy):
        assert value.dtype in (torch.float32, torch.float64)
        assert value.isfinite().all()


@pytest.mark.parametrize("schedule", variants("schedules"))
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_loss_and_gradients_are_finite_at_both_ends_of_time(pair, tools, schedule, autocast):
    name, process = pair
    process = tools.process_of(config_name(process), schedule, VOCABULARY)
    model = tools.shaken(tools.small_model(process))
    objective = tools.objective_of(name, process, prompt=0.5, **all_weights(name))
    for t in ENDS:
        objective.training_noise = FixedTimes(torch.full((8, 1), t, dtype=torch.float64))
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = objective(model, batch_of(8))
        loss.loss.backward()
        assert loss.loss.isfinite(), t
        assert loss.nll.isfinite().all(), t
        assert loss.loss.dtype == torch.float32
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None), t


def config_name(process) -> str:
    return type(process.config).__module__.rpartition(".")[2]


def test_given_positions_are_shown_clean_marked_and_not_scored(pair, tools, recorder):
    name, process = pair
    model, batch = tools.shaken(tools.small_model(process)), batch_of(16)
    objective = tools.objective_of(name, process, prompt=1.0, **all_weights(name))
    plain, shifted = recorder(model), recorder(model, shift=50.0)
    loss, other = objective(plain, batch), objective(shifted, batch)
    clean = process.encode(batch.tokens, model.table())
    for noisy in plain.seen:
        given = noisy.given
        assert (given.sum(1) >= 1).all()
        assert torch.equal(noisy.x[given], clean[given])
        assert torch.equal(loss.tokens, (LENGTH - given.sum(1)).float())
    torch.testing.assert_close(other.loss, loss.loss, rtol=0, atol=0)
    torch.testing.assert_close(other.nll, loss.nll, rtol=0, atol=0)
    assert {k: float(v) for k, v in other.terms.items()} == {k: float(v) for k, v in loss.terms.items()}


def test_other_positions_are_scored(pair, tools, recorder):
    """The gradient of the loss reaches the logits of positions that are not given, and only these."""
    name, process = pair
    model, batch = tools.shaken(tools.small_model(process)), batch_of(64)
    objective = tools.objective_of(name, process, prompt=1.0)
    seen = []

    class Watched(recorder):
        def forward(self, noisy) -> Prediction:
            logits = self.model(noisy).logits.detach().clone().requires_grad_()
            seen.append((noisy.given, logits))
            return Prediction(logits)

    objective(Watched(model), batch).loss.backward()
    for given, logits in seen:
        reached = logits.grad.abs().sum(-1) > 0
        assert not reached[given].any()
        assert reached[~given].float().mean() > 0.2


def test_nothing_is_given_in_the_bound(pair, tools, recorder):
    name, process = pair
    model = recorder(tools.small_model(process))
    tools.objective_of(name, process, prompt=1.0).bound(model, batch_of(4), tools.rows_noise(4), 2)
    assert model.seen
    assert all(noisy.given is None or not noisy.given.any() for noisy in model.seen)


@torch.no_grad()
def test_training_nll_averages_to_the_bound(pair, tools):
    """With every term of the loss on; the share of the range that training leaves out is far below the error."""
    name, process = pair
    model = tools.small_model(process)
    tools.shaken(model.head, size=0.3)
    rows, batch = 4000, batch_of(4000, seed=3)
    objective = tools.objective_of(name, process, global_batch=rows, **all_weights(name))
    trained = objective(model, batch).nll.double()
    bound = objective.bound(model, batch, tools.rows_noise(rows, seed=5), 4).nll.double()
    error = math.sqrt((trained.var() + bound.var()) / rows)
    assert error < 0.02 * float(bound.mean())
    assert abs(float(trained.mean() - bound.mean())) < 4 * error


def test_loss_is_the_mean_per_scored_token_of_its_rows(pair, tools):
    """The bound's share of the loss is sum(nll) / sum(tokens): rows with prompts weigh less."""
    name, process = pair
    weights = all_weights(name)
    model, batch = tools.shaken(tools.small_model(process)), batch_of(8)
    if "cross_entropy" in weights:
        weights["cross_entropy"] = 0.0
    loss = tools.objective_of(name, process, prompt=0.5, **weights)(model, batch)
    assert len(set(loss.tokens.tolist())) > 1
    torch.testing.assert_close(loss.loss, loss.nll.sum() / loss.tokens.sum())


@torch.no_grad()
def test_a_row_alone_has_the_bound_it_has_in_a_batch(pair, tools):
    name, process = pair
    model, batch = tools.shaken(tools.small_model(process)), batch_of(5)
    objective = tools.objective_of(name, process)
    whole = objective.bound(model, batch, Noise(7, batch.position), 3)
    alone = Batch(batch.tokens[3:4], batch.position[3:4])
    one = objective.bound(model, alone, Noise(7, alone.position), 3)
    torch.testing.assert_close(one.nll, whole.nll[3:4], rtol=1e-5, atol=1e-5)
    again = objective.bound(model, batch, Noise(7, batch.position), 3)
    assert torch.equal(again.nll, whole.nll)
    other = objective.bound(model, batch, Noise(8, batch.position), 3)
    assert not torch.equal(other.level, whole.level)


@torch.no_grad()
def test_training_does_not_depend_on_how_the_global_batch_is_split(pair, tools):
    name, process = pair
    model, batch = tools.shaken(tools.small_model(process)), batch_of(8)
    objective = tools.objective_of(name, process, prompt=0.5)
    whole = objective(model, batch)
    parts = [objective(model, Batch(batch.tokens[k : k + 2], batch.position[k : k + 2])) for k in range(0, 8, 2)]
    torch.testing.assert_close(torch.cat([part.nll for part in parts]), whole.nll, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("denoiser", variants("denoisers"))
@pytest.mark.parametrize("objective", [o for o, p in NAMES if p == "masked"])
def test_an_untrained_masked_model_is_worth_ln_vocabulary_exactly(tools, denoiser, objective):
    process = tools.process_of("masked", default_schedule(objective), VOCABULARY)
    model = tools.small_model(process, denoiser, n_layers=6)
    bound = tools.objective_of(objective, process).bound(model, batch_of(3), tools.rows_noise(3), 5)
    expected = torch.full((3,), LENGTH * math.log(VOCABULARY), dtype=bound.nll.dtype)
    torch.testing.assert_close(bound.nll, expected, rtol=1e-6, atol=0)


def test_likelihoods_are_float32_whatever_the_networks_precision(pair, tools, recorder):
    """Same logits, with and without autocast: the arithmetic of the loss and the bound is not in bfloat16."""
    name, process = pair
    model, batch = tools.shaken(tools.small_model(process)), batch_of(32)
    objective = tools.objective_of(name, process, **all_weights(name))

    class Still(recorder):
        """The network itself runs without autocast."""

        def forward(self, noisy) -> Prediction:
            with torch.autocast("cpu", enabled=False):
                return self.model(noisy)

    with torch.no_grad():
        plain = objective(model, batch)
        exact = objective.bound(model, batch, tools.rows_noise(32), 4)
        with torch.autocast("cpu", torch.bfloat16):
            cast = objective(Still(model), batch)
            rough = objective.bound(Still(model), batch, tools.rows_noise(32), 4)
    torch.testing.assert_close(cast.loss, plain.loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(cast.nll, plain.nll, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rough.nll, exact.nll, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", variants("objectives"))
def test_wrong_numbers_are_refused(name):
    for field in fields(config_class("objectives", name)):
        with pytest.raises(ValueError, match=r"got .*expected"):
            build(config_class("objectives", name)(**{field.name: -1.0}), None, None, None)
