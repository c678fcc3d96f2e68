"""Every objective with every process that it names, over every schedule: losses, gradients, given positions, bounds."""

import math
from dataclasses import MISSING, dataclass, fields

import pytest
import torch

from diffusion_lm.config import config_class, from_tree, name_of, part_class, variants
from diffusion_lm.errors import UserError
from diffusion_lm.noisy import Batch
from diffusion_lm.objectives.base import Loss, TrainingNoise
from diffusion_lm.random import Noise

VOCABULARY, LENGTH = 5, 6
ENDS = [0.0, 1e-9, 1e-4, 0.5, 1 - 1e-6, 1 - 1e-12]


def class_of(objective: str) -> type:
    return part_class(config_class("objectives", objective)())


NAMES = [(o, p) for o in variants("objectives") for p in class_of(o).processes]
PROMPTED = [pair for pair in NAMES if not class_of(pair[0]).causal]  # to a causal model every prefix is a prompt
REPORTED = [pair for pair in NAMES if class_of(pair[0]).reports_bound]


def default_schedule(objective: str) -> str:
    return class_of(objective).default_schedule


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


def over(pairs: list[tuple[str, str]]):
    """Run a test on these pairs alone."""
    return pytest.mark.parametrize("pair", pairs, ids="-".join, indirect=True)


@dataclass(frozen=True)
class FixedTimes:
    """Training noise at times that a test chose."""

    t: torch.Tensor

    def times(self, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.t, torch.ones_like(self.t)

    def noise(self, position: torch.Tensor) -> Noise:
        return Noise(0, position)

    def mean_of_step(self, position, value):
        """As if the rows were a global batch."""
        return value(position).mean().expand(len(position))


@pytest.fixture
def recorder(tools):
    """Makes a model that keeps what it was shown, and adds something to the last layer at the given positions."""

    class Recorder(tools.Fake):
        def __init__(self, model, shift: float = 0.0) -> None:
            super().__init__()
            self.model, self.shift, self.seen = model, shift, []

        def table(self):
            return self.model.table()

        def forward(self, noisy):
            self.seen.append(noisy)
            said = self.model(noisy)
            if noisy.given is None:
                return said
            generator, given = torch.Generator().manual_seed(1), noisy.given.unsqueeze(-1)
            return tools.changed(said, lambda v: v + self.shift * given * torch.randn(v.shape, generator=generator))

    return Recorder


def test_names_what_there_is():
    for objective in variants("objectives"):
        cls = class_of(objective)
        assert cls.processes
        assert set(cls.processes) <= set(variants("processes"))
        assert cls.default_schedule in variants("schedules")


def test_shape_of_a_loss(pair, tools):
    name, process = pair
    model, batch = tools.shaken(tools.small_model(process, objective=name)), batch_of(8)
    loss = tools.objective_of(name, process)(model, batch)
    assert loss.loss.shape == ()
    assert loss.nll.shape == loss.tokens.shape == (8,)
    assert loss.tokens.tolist() == [LENGTH] * 8
    assert not loss.nll.requires_grad
    assert not any(term.requires_grad for term in loss.terms.values())
    for value in (loss.loss, loss.nll, *loss.terms.values()):
        assert value.dtype == torch.float32
        assert value.isfinite().all()


def test_a_batch_that_was_drawn_before_gives_the_same_loss(pair, tools):
    """`draw` needs no model and no gradient: on the host, or inside `forward`."""
    name, process = pair
    model, batch = tools.shaken(tools.small_model(process, objective=name)), batch_of(8)
    objective = tools.objective_of(name, process, prompt=0.5)
    drawn = objective.draw(batch)
    assert torch.equal(drawn.tokens, batch.tokens)
    first, again = objective(model, drawn.to("cpu")), objective(model, batch)
    assert torch.equal(first.loss, again.loss)
    assert torch.equal(first.nll, again.nll)


@over(REPORTED)
def test_shape_of_a_bound(pair, tools):
    name, process = pair
    model, batch = tools.shaken(tools.small_model(process, objective=name)), batch_of(8)
    bound = tools.objective_of(name, process).bound(model, batch, tools.rows_noise(8), 3)
    assert bound.nll.shape == bound.tokens.shape == (8,)
    assert bound.level.shape == bound.cross_entropy.shape == (8, 3)
    assert bound.tokens.tolist() == [LENGTH] * 8
    assert ((bound.level >= 0) & (bound.level <= 1)).all()
    torch.testing.assert_close(sum(bound.terms.values()), bound.nll)
    for value in (bound.nll, bound.cross_entropy, *bound.terms.values(), *bound.beside.values()):
        assert value.dtype in (torch.float32, torch.float64)
        assert value.isfinite().all()


@pytest.mark.parametrize("schedule", variants("schedules"))
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_loss_and_gradients_are_finite_at_both_ends_of_time(pair, tools, schedule, autocast):
    name, process = pair
    try:
        process = tools.process_of(name_of(process.config), schedule, VOCABULARY)
    except ValueError as refused:
        assert len(str(refused).splitlines()) == 1
        return
    model = tools.shaken(tools.small_model(process, objective=name))
    objective = tools.objective_of(name, process, prompt=0.5, **all_weights(name))
    t = torch.tensor(ENDS, dtype=torch.float64).repeat(4).unsqueeze(1)
    objective.training_noise = FixedTimes(t)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = objective(model, batch_of(len(t)))
    loss.loss.backward()
    assert loss.nll.isfinite().all(), t[~loss.nll.isfinite()]
    assert loss.loss.isfinite()
    assert loss.loss.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert any(p.grad is not None for p in model.parameters())


@over(PROMPTED)
def test_given_positions_are_shown_clean_marked_and_not_scored(pair, tools, recorder):
    name, process = pair
    model, batch = tools.shaken(tools.small_model(process, objective=name)), batch_of(16)
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


@over(PROMPTED)
def test_other_positions_are_scored(pair, tools, recorder):
    """The gradient of the loss reaches the last layer at positions that are not given, and only there."""
    name, process = pair
    model, batch = tools.shaken(tools.small_model(process, objective=name)), batch_of(64)
    objective = tools.objective_of(name, process, prompt=1.0)
    seen = []

    class Watched(recorder):
        def forward(self, noisy):
            return tools.changed(self.model(noisy), lambda v: self.watch(v.detach().clone().requires_grad_(), noisy))

        def watch(self, values, noisy):
            seen.append((noisy.given, values))
            return values

    objective(Watched(model), batch).loss.backward()
    for given, values in seen:
        if values.grad is None:  # an estimate that is only shown to the network again
            continue
        reached = values.grad.abs().sum(-1) > 0
        assert not reached[given].any()
        assert reached[~given].float().mean() > 0.2
    assert any(values.grad is not None for _, values in seen)


@over(REPORTED)
def test_nothing_is_given_in_the_bound(pair, tools, recorder):
    name, process = pair
    model = recorder(tools.small_model(process, objective=name))
    tools.objective_of(name, process, prompt=1.0).bound(model, batch_of(4), tools.rows_noise(4), 2)
    assert model.seen
    assert all(noisy.given is None or not noisy.given.any() for noisy in model.seen)


@dataclass(frozen=True)
class CrowdedTimes:
    """Training times that crowd near 0 and 1, where bounds vary most, with the weights that make up for it."""

    usual: TrainingNoise

    def times(self, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        v, weight = self.usual.times(position)
        return v**2 * (3 - 2 * v), weight * 6 * v * (1 - v)

    def noise(self, position: torch.Tensor) -> Noise:
        return self.usual.noise(position)

    def mean_of_step(self, position, value):
        """As if the rows were a global batch."""
        return value(position).mean().expand(len(position))


@pytest.mark.slow
@torch.no_grad()
@over([pair for pair in REPORTED if class_of(pair[0]).trains_bound])
def test_training_nll_averages_to_the_bound(pair, tools):
    """With every term of the loss on; the share of the range that training leaves out is far below the error."""
    name, process = pair
    model = tools.small_model(process, objective=name)
    tools.shaken(model.head, size=0.05)
    rows, batch = 6000, batch_of(6000, seed=3)
    settings = {"t_min": 1e-6} if "t_min" in {f.name for f in fields(config_class("objectives", name))} else {}
    objective = tools.objective_of(name, process, global_batch=rows, **settings, **all_weights(name))
    objective.training_noise = CrowdedTimes(objective.training_noise)
    trained = objective(model, batch).nll.double()
    bound = objective.bound(model, batch, tools.rows_noise(rows, seed=5), 4).nll.double()
    error = math.sqrt((trained.var() + bound.var()) / rows)
    assert error < 0.04 * float(bound.mean())
    assert abs(float(trained.mean() - bound.mean())) < 4 * error + 1e-9


@over([pair for pair in NAMES if class_of(pair[0]).trains_bound])
def test_loss_is_the_mean_per_scored_token_of_its_rows(pair, tools):
    """The bound's share of the loss is sum(nll) / sum(tokens): rows with prompts weigh less."""
    name, process = pair
    weights = all_weights(name)
    model, batch = tools.shaken(tools.small_model(process, objective=name)), batch_of(8)
    if "cross_entropy" in weights:
        weights["cross_entropy"] = 0.0
    loss = tools.objective_of(name, process, prompt=0.5, **weights)(model, batch)
    assert len(set(loss.tokens.tolist())) > 1 or class_of(name).causal
    torch.testing.assert_close(loss.loss, loss.nll.sum() / loss.tokens.sum())


@torch.no_grad()
@over(REPORTED)
def test_a_row_alone_has_the_bound_it_has_in_a_batch(pair, tools):
    name, process = pair
    model, batch = tools.shaken(tools.small_model(process, objective=name)), batch_of(5)
    objective = tools.objective_of(name, process)
    whole = objective.bound(model, batch, Noise(7, batch.position), 3)
    alone = Batch(batch.tokens[3:4], batch.position[3:4])
    one = objective.bound(model, alone, Noise(7, alone.position), 3)
    torch.testing.assert_close(one.nll, whole.nll[3:4], rtol=1e-5, atol=1e-5)
    again = objective.bound(model, batch, Noise(7, batch.position), 3)
    assert torch.equal(again.nll, whole.nll)
    other = objective.bound(model, batch, Noise(8, batch.position), 3)
    assert not torch.equal(other.nll, whole.nll) or class_of(name).exact


@pytest.mark.parametrize("prompt", [0.0, 0.5])
@pytest.mark.parametrize("rows", [1, pytest.param(2, marks=pytest.mark.slow), 4])
def test_training_does_not_depend_on_how_the_global_batch_is_split(pair, tools, rows, prompt):
    """Passes over parts of it, in a row or on devices: their mean loss and mean gradients are those of one pass."""
    name, process = pair
    model, batch = tools.shaken(tools.small_model(process, objective=name)), batch_of(8)
    batch = Batch(batch.tokens, batch.position + 16)
    objective = tools.objective_of(name, process, prompt=prompt, **all_weights(name))

    def run(part: Batch) -> tuple[Loss, list[torch.Tensor]]:
        loss = objective(model, objective.draw(part))
        gradients = torch.autograd.grad(loss.loss, list(model.parameters()), allow_unused=True, materialize_grads=True)
        return loss, list(gradients)

    whole, wanted = run(batch)
    parts = zip(batch.tokens.split(rows), batch.position.split(rows))
    losses, gradients = zip(*(run(Batch(*part)) for part in parts))
    torch.testing.assert_close(torch.cat([loss.nll for loss in losses]), whole.nll, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.stack([loss.loss.detach() for loss in losses]).mean(), whole.loss.detach())
    for found, value in zip(zip(*gradients), wanted):
        largest = float(value.abs().max())
        torch.testing.assert_close(torch.stack(found).mean(0), value, rtol=1e-3, atol=1e-4 * largest + 1e-8)


@torch.no_grad()
@over(REPORTED)
def test_an_untrained_model_of_ids_is_worth_ln_vocabulary(pair, tools):
    """The uniform prediction is the leave-one-out posterior of uniform text: every bound is tight there.

    In all conventions, and for any chain of steps: the reverse of independent positions is exact, and the prior is the
    noise of t = 1 with the rest of alpha spread evenly. An untrained Gaussian model keeps its token evidence instead.
    """
    name, process = pair
    if not process.discrete:
        return
    model, rows = tools.small_model(process, objective=name, n_layers=2), 3000
    nll = tools.objective_of(name, process).bound(model, batch_of(rows), tools.rows_noise(rows), 2).nll.double()
    expected = LENGTH * math.log(VOCABULARY)
    assert float(nll.std()) / rows**0.5 < 0.02 * expected
    rounding = 1e-6 * expected
    assert abs(float(nll.mean()) - expected) < 4 * float(nll.std()) / rows**0.5 + rounding


@torch.no_grad()
@pytest.mark.parametrize("denoiser", variants("denoisers"))
def test_an_untrained_denoiser_predicts_nothing_yet(tools, denoiser):
    process = tools.process_of("masked", "log_linear", VOCABULARY)
    model = tools.small_model(process, denoiser, n_layers=6)
    bound = tools.objective_of("masked", process).bound(model, batch_of(3), tools.rows_noise(3), 5)
    expected = torch.full((3,), LENGTH * math.log(VOCABULARY), dtype=bound.nll.dtype)
    torch.testing.assert_close(bound.nll, expected, rtol=1e-6, atol=0)


@over(REPORTED)
def test_likelihoods_are_float32_whatever_the_networks_precision(pair, tools, recorder):
    """Same logits, with and without autocast: the arithmetic of the loss and the bound is not in bfloat16."""
    name, process = pair
    model, batch = tools.shaken(tools.small_model(process, objective=name)), batch_of(32)
    objective = tools.objective_of(name, process, **all_weights(name))

    class Still(recorder):
        """The network itself runs without autocast."""

        def forward(self, noisy):
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
        kind = type(field.default)
        if field.default is not MISSING and kind in (int, float):
            with pytest.raises(ValueError, match=rf"^(?=.*{field.name}).*got .*expected"):
                config_class("objectives", name)(**{field.name: kind(-1)})


@pytest.mark.parametrize("name", variants("objectives"))
def test_its_words_are_checked_when_the_config_is_read(name):
    for field in fields(config_class("objectives", name)):
        for word in field.metadata.get("choices", ()):
            assert from_tree(config_class("objectives", name), {field.name: word})
        if "choices" in field.metadata:
            with pytest.raises(UserError, match="no choice"):
                from_tree(config_class("objectives", name), {field.name: "no-such-word"})


@torch.no_grad()
def test_every_choice_of_its_words_changes_the_loss(pair, tools):
    name, process = pair
    model, batch = tools.shaken(tools.small_model(process, objective=name)), batch_of(8)
    for field in fields(config_class("objectives", name)):
        losses = [
            float(tools.objective_of(name, process, **{field.name: word})(model, batch).loss)
            for word in field.metadata.get("choices", ())
        ]
        assert all(math.isfinite(loss) for loss in losses)
        assert len(set(losses)) == len(losses)
