"""Every sampler with every process that it names: law of its samples, given positions, rows, network calls."""

from dataclasses import fields

import pytest
import torch

from diffusion_lm.config import build, config_class, part_class, variants
from diffusion_lm.random import Noise
from diffusion_lm.samplers.base import generate

LENGTH, STEPS = 2, 32
PAIRS = [(s, p) for s in variants("samplers") for p in part_class(config_class("samplers", s)()).processes]


def default_schedule(process: str) -> str:
    objectives = [part_class(config_class("objectives", name)()) for name in variants("objectives")]
    return next(o.default_schedule for o in objectives if process in o.processes)


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(request, tools):
    """(config class of the sampler, process)"""
    sampler, process = request.param
    return config_class("samplers", sampler), tools.process_of(process, default_schedule(process))


def built(config, process, steps: int):
    """A sampler of that many steps, where it leaves their number open."""
    return build(config(**({"num_steps": steps} if "num_steps" in {f.name for f in fields(config)} else {})), process)


def markov(tools) -> tuple[torch.Tensor, torch.Tensor]:
    """Two tokens of which the second is mostly the first plus one: all sequences and their probabilities."""
    sequences = tools.all_sequences(3, LENGTH)
    start = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    step = torch.tensor([[0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.7, 0.2, 0.1]], dtype=torch.float64)
    return sequences, start[sequences[:, 0]] * step[sequences[:, 0], sequences[:, 1]]


def counts(sequences: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """How often each sequence was drawn."""
    matches = (tokens.unsqueeze(1) == sequences).all(-1)
    assert matches.sum() == len(tokens)
    return matches.sum(0)


def test_names_processes_that_there_are():
    assert {p for _, p in PAIRS} <= set(variants("processes"))
    assert {s for s, _ in PAIRS} == set(variants("samplers"))


def test_samples_of_independent_tokens_have_their_law(pair, tools):
    config, process = pair
    sequences, probabilities = tools.factorised(4, LENGTH)
    oracle = tools.Oracle(process, sequences, probabilities)
    sample = generate(built(config, process, STEPS), oracle, tools.rows_noise(2000), LENGTH)
    assert tools.chi_square(counts(sequences, sample.tokens), probabilities) > 1e-4


def test_samples_of_a_markov_chain_have_its_law(pair, tools):
    config, process = pair
    sequences, probabilities = markov(tools)
    oracle = tools.Oracle(process, sequences, probabilities)
    sample = generate(built(config, process, STEPS), oracle, tools.rows_noise(1000, seed=1), LENGTH)
    assert tools.chi_square(counts(sequences, sample.tokens), probabilities) > 1e-4


@pytest.mark.parametrize("given", [[True, False], [False, True]])
def test_given_positions_stay_and_condition_the_others(pair, tools, given):
    config, process = pair
    sequences, probabilities = markov(tools)
    prompt, given = torch.tensor([[1, 2]]), torch.tensor([given])
    knows = given if not process.shifted else given & given.cumprod(1).bool()  # in reading order: what comes before
    matches = ((sequences == prompt) | ~knows).all(1)
    conditional = torch.where(matches, probabilities, 0.0)
    sample = generate(
        built(config, process, STEPS),
        tools.Oracle(process, sequences, probabilities),
        tools.rows_noise(1000, seed=2),
        LENGTH,
        prompt.expand(1000, -1),
        given.expand(1000, -1),
    )
    assert ((sample.tokens == prompt) | ~given).all()
    if process.shifted:  # what comes after is put in its place
        conditional = sum(
            torch.where((sequences == torch.where(given, prompt, row)).all(1), p, 0.0)
            for row, p in zip(sequences, conditional, strict=True)
        )
    assert tools.chi_square(counts(sequences, sample.tokens), conditional / conditional.sum()) > 1e-4


@pytest.mark.parametrize("steps", [1, 2, 9])
@pytest.mark.parametrize("denoiser", ["oracle", "network"])
def test_a_sample_is_text_without_mask_or_padding(pair, tools, steps, denoiser):
    config, process = pair
    sequences, probabilities = tools.factorised(4, LENGTH)
    model = tools.Oracle(process, sequences, probabilities)
    if denoiser == "network":
        model = tools.shaken(tools.small_model(process))
    tokens = generate(built(config, process, steps), model, tools.rows_noise(200), LENGTH).tokens
    assert tokens.shape == (200, LENGTH)
    assert tokens.dtype == torch.long
    assert tokens.min() >= 0
    assert tokens.max() < process.vocabulary


@pytest.mark.parametrize("steps", [1, 5])
def test_network_calls_are_counted_per_row(pair, tools, steps):
    config, process = pair
    oracle = tools.Oracle(process, *tools.factorised(4, LENGTH))
    sampler = built(config, process, steps)
    sample = generate(sampler, oracle, tools.rows_noise(7), LENGTH)
    assert sample.calls.tolist() == [oracle.calls] * 7
    steps = getattr(sampler.config, "num_steps", LENGTH)
    assert steps <= oracle.calls <= steps + 1


def test_a_row_alone_is_the_row_in_the_batch(pair, tools):
    config, process = pair
    sampler = built(config, process, 6)
    model = tools.shaken(tools.small_model(process)).eval()
    prompt = torch.tensor([[0, 0, 2, 1, 0]]).expand(6, -1)
    given = torch.tensor([[True, False, True, False, False]]).expand(6, -1)
    for clues in ((None, None), (prompt, given)):
        whole = generate(sampler, model, tools.rows_noise(6, seed=3), 5, *clues).tokens
        for row in (0, 4):
            own = [v if v is None else v[row : row + 1] for v in clues]
            alone = generate(sampler, model, Noise(3, torch.tensor([row])), 5, *own).tokens
            assert torch.equal(alone[0], whole[row])
    assert len(whole.unique(dim=0)) > 1


def test_the_seed_decides(pair, tools):
    config, process = pair
    oracle = tools.Oracle(process, *tools.factorised(4, LENGTH))
    sampler = built(config, process, 4)
    first, again, other = (generate(sampler, oracle, tools.rows_noise(40, seed=s), LENGTH).tokens for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_everything_given_comes_back(pair, tools):
    config, process = pair
    prompt = torch.tensor([[2, 1], [0, 0]])
    oracle = tools.Oracle(process, *tools.factorised(4, LENGTH))
    sample = generate(
        built(config, process, 3),
        oracle,
        tools.rows_noise(2),
        LENGTH,
        prompt,
        torch.ones(2, 2, dtype=torch.bool),
    )
    assert torch.equal(sample.tokens, prompt)


@pytest.mark.parametrize("name", variants("samplers"))
def test_an_empty_time_grid_is_refused(name):
    if "num_steps" not in {f.name for f in fields(config_class("samplers", name))}:
        return
    with pytest.raises(ValueError, match="num_steps: got 0, expected at least 1"):
        config_class("samplers", name)(num_steps=0)


def test_ddim_with_all_of_the_noise_is_ancestral(tools):
    """eta = 1 is the ancestral step (Song et al., section 4.2), here with the same noise: the same samples."""
    process = tools.process_of("gaussian", "cosine")
    oracle = tools.Oracle(process, *markov(tools))
    ddim = build(config_class("samplers", "ddim")(num_steps=8, eta=1.0), process)
    ancestral = build(config_class("samplers", "ancestral")(num_steps=8), process)
    drawn = [generate(sampler, oracle, tools.rows_noise(300), LENGTH).tokens for sampler in (ddim, ancestral)]
    assert torch.equal(*drawn)


def test_the_start_and_the_first_step_share_no_number(tools):
    """What a first step replaces has nothing to do with what stood there."""
    process, rows = tools.process_of("uniform", "log_linear"), tools.rows_noise(4000)
    blank = torch.zeros(4000, 1, dtype=torch.long)
    start = process.prior(blank, torch.zeros(3, 1), rows)
    replaced = process.draw_noise(blank, torch.zeros(4000, 1, dtype=torch.float64), rows)
    assert tools.near((start == replaced).double(), 1 / 3)


@pytest.mark.parametrize("eta", [-0.1, 1.5])
def test_ddim_refuses_an_impossible_share_of_noise(eta):
    with pytest.raises(ValueError, match=f"eta: got {eta}, expected 0 to 1"):
        config_class("samplers", "ddim")(eta=eta)
