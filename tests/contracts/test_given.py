"""Given positions (prompts): drawn as the config says, and never noised, whatever the process."""

import itertools

import pytest
import torch

from diffusion_lm.config import build, config_class, from_tree, part_class, variants
from diffusion_lm.errors import UserError
from diffusion_lm.experiment import ExperimentConfig
from diffusion_lm.noisy import Batch
from diffusion_lm.objectives.base import TrainingNoise
from diffusion_lm.prompts import PromptConfig, draw_given
from diffusion_lm.random import Noise


def pattern_counts(given: torch.Tensor) -> torch.Tensor:
    """How often each set of given positions was drawn, sets numbered by their bits."""
    length = given.shape[1]
    return torch.bincount((given.long() * 2 ** torch.arange(length)).sum(1), minlength=2**length)


def law_of_spans(length: int) -> torch.Tensor:
    """Probability of every set of given positions, by listing all draws."""
    longest, most = max(1, (length - 1) // 3), min(3, length - 1)
    single = [
        sum(2**i for i in range(start, min(start + size, length)))
        for start in range(length)
        for size in range(1, longest + 1)
    ]
    law = torch.zeros(2**length, dtype=torch.float64)
    for count in range(1, most + 1):
        for spans in itertools.product(single, repeat=count):
            union = 0
            for span in spans:
                union |= span
            law[union] += 1 / most / len(single) ** count
    return law


def test_the_share_of_prompted_rows_and_their_prefixes(tools):
    given = draw_given(PromptConfig(fraction=0.3), tools.rows_noise(20_000), 6)
    lengths = given.sum(1)
    assert (given == (torch.arange(6) < lengths[:, None])).all()
    counts = torch.bincount(lengths, minlength=7)
    expected = torch.tensor([0.7, *[0.3 / 5] * 5, 0.0])
    assert tools.chi_square(counts, expected) > 1e-4


@pytest.mark.parametrize("length", [2, 3, 4, 7])
def test_spans_have_their_law(tools, length):
    given = draw_given(PromptConfig(fraction=1.0, kind="spans"), tools.rows_noise(20_000), length)
    law = law_of_spans(length)
    assert law[0] == 0
    assert law[-1] == 0
    assert tools.chi_square(pattern_counts(given), law) > 1e-4


@pytest.mark.parametrize("kind", ["prefix", "spans"])
def test_dropout_hides_its_share_of_the_prompts(tools, kind):
    rows = tools.rows_noise(20_000)
    shown = draw_given(PromptConfig(fraction=0.5, kind=kind, dropout=0.4), rows, 5)
    prompted = draw_given(PromptConfig(fraction=0.5, kind=kind), rows, 5)
    hidden = prompted.any(1) & ~shown.any(1)
    assert torch.equal(shown[~hidden], prompted[~hidden])
    assert tools.near(shown.any(1).double(), 0.3)
    assert tools.near(hidden.double(), 0.2)
    assert PromptConfig(fraction=0.5, dropout=0.4).prompted() == pytest.approx(0.3)


def test_everything_hidden_is_nothing_given(tools):
    assert not draw_given(PromptConfig(fraction=1.0, dropout=1.0), tools.rows_noise(200), 5).any()


def test_no_prompts_where_none_are_asked_for_or_none_can_be(tools):
    assert draw_given(PromptConfig(fraction=0.0), tools.rows_noise(3), 6) is None
    assert draw_given(PromptConfig(fraction=1.0), tools.rows_noise(3), 1) is None
    assert draw_given(PromptConfig(fraction=1.0), tools.rows_noise(50), 2).tolist() == [[True, False]] * 50


@pytest.mark.parametrize("kind", ["prefix", "spans"])
def test_a_rows_prompt_is_its_own_whatever_the_batch(tools, kind):
    config = PromptConfig(fraction=0.6, kind=kind, dropout=0.2)
    whole = draw_given(config, tools.rows_noise(12), 9)
    assert torch.equal(draw_given(config, tools.rows_noise(5, start=4), 9), whole[4:9])


@pytest.mark.parametrize("field", ["fraction", "dropout"])
@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_a_share_outside_0_to_1_is_refused(field, value):
    with pytest.raises(ValueError, match=f"{field}: got {value}, expected 0 to 1"):
        PromptConfig(**{field: value})


def test_an_unknown_kind_is_refused():
    with pytest.raises(UserError, match=r"prompt\.kind: no choice 'suffix'; expected one of prefix, spans"):
        from_tree(ExperimentConfig, {"prompt": {"kind": "suffix"}})


def class_of(objective: str) -> type:
    return part_class(config_class("objectives", objective)())


PAIRS = [(o, p) for o in variants("objectives") if not class_of(o).causal for p in class_of(o).processes]


@pytest.mark.parametrize("kind", ["prefix", "spans"])
@pytest.mark.parametrize(("name", "process"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
def test_given_positions_are_clean_and_marked_and_not_scored(tools, name, process, kind):
    process = tools.process_of(process, class_of(name).default_schedule, 5)
    prompt = PromptConfig(fraction=0.8, kind=kind, dropout=0.3)
    objective = build(config_class("objectives", name)(), process, prompt, TrainingNoise(3, 32))
    tokens = torch.randint(5, (32, 9), generator=torch.Generator().manual_seed(0))
    given = draw_given(prompt, Noise(3, torch.arange(32)), 9)
    assert given.any(1).any()
    assert not given.any(1).all()

    class Recorder(tools.Fake):
        """Adds to the last layer at the given positions."""

        def __init__(self, shift: float) -> None:
            super().__init__()
            self.model = tools.shaken(tools.small_model(process, objective=name))
            self.shift, self.seen = shift, None

        def table(self) -> torch.Tensor:
            return self.model.table()

        def forward(self, noisy):
            self.seen = noisy
            wrong = self.shift * torch.linspace(-1, 1, 5)
            return tools.changed(
                self.model(noisy),
                lambda v: torch.cat((v[..., :5] + noisy.given.unsqueeze(-1) * wrong[: v.shape[-1]], v[..., 5:]), -1),
            )

    right, wrong = Recorder(0.0), Recorder(50.0)
    losses = [objective(model, Batch(tokens, torch.arange(32))) for model in (right, wrong)]
    assert torch.equal(right.seen.given, given)
    clean = process.encode(tokens, right.table())
    assert torch.equal(right.seen.x[given], clean[given])
    assert not torch.equal(right.seen.x[~given], clean[~given])
    assert losses[0].tokens.tolist() == (9 - given.sum(1)).tolist()
    torch.testing.assert_close(losses[0].loss, losses[1].loss)
    torch.testing.assert_close(losses[0].nll, losses[1].nll)


@pytest.mark.parametrize(("name", "process"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
def test_a_hidden_prompt_is_noised_and_scored_like_the_rest(tools, name, process):
    """With every prompt hidden, training is training without prompts."""
    process = tools.process_of(process, class_of(name).default_schedule, 5)
    model = tools.shaken(tools.small_model(process, objective=name))
    batch = Batch(torch.randint(5, (8, 9), generator=torch.Generator().manual_seed(0)), torch.arange(8))
    hidden, never = (
        build(config_class("objectives", name)(), process, PromptConfig(fraction=f, dropout=1.0), TrainingNoise(3, 8))
        for f in (1.0, 0.0)
    )
    torch.testing.assert_close(hidden(model, batch).loss, never(model, batch).loss)
    assert hidden(model, batch).tokens.tolist() == [9.0] * 8
