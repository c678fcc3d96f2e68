"""Generation in blocks: equal to one that computes everything from scratch, row by row; and the command `generate`."""

import pytest
import torch

from diffusion_lm.blocks import Blocks
from diffusion_lm.config import build, config_class
from diffusion_lm.errors import UserError
from diffusion_lm.generation.blocks import generate_blocks
from diffusion_lm.model import DenoisingModel, ModelConfig
from diffusion_lm.noisy import Noisy
from diffusion_lm.random import Noise
from diffusion_lm.samplers.base import Guess, SamplerState, generate

VOCABULARY, SEED, STEPS = 11, 3, 4
MAMBA = {"head_dim": 16, "d_state": 8}
DENOISERS = {
    "transformer": {"n_layers": 2, "mixer": ("attention", {"head_dim": 16})},
    "mamba": {"n_layers": 2, "mixer": ("bidirectional", {"inner": ("mamba2", MAMBA)})},
    "hybrid": {
        "n_layers": 2,
        "attention_every": 1,
        "mamba": ("bidirectional", {"inner": ("mamba2", MAMBA)}),
        "attention": ("attention", {"head_dim": 16}),
    },
}


def made(value):
    """A part's config of a name and its keys."""
    name, keys = value
    return config_class("mixers", name)(**{k: made(v) if isinstance(v, tuple) else v for k, v in keys.items()})


def model_of(denoiser: str, process: str, dtype: torch.dtype = torch.float64) -> DenoisingModel:
    """A small model with no weight at its start."""
    torch.manual_seed(0)
    keys = {k: made(v) if isinstance(v, tuple) else v for k, v in DENOISERS[denoiser].items()}
    gaussian = process == "gaussian"
    schedule = build(config_class("schedules", "cosine" if gaussian else "log_linear")())
    model = DenoisingModel(
        ModelConfig(d_model=32, embedding_dim=4, self_conditioning=0.5 * gaussian),
        config_class("denoisers", denoiser)(**keys),
        build(config_class("processes", process)(), schedule, VOCABULARY),
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.to(dtype).eval()


def sampler_of(model, name: str = "ancestral", steps: int = STEPS):
    return build(config_class("samplers", name)(num_steps=steps), model.process)


class Naive:
    """One row, block by block, in the form of training: the whole text so far at every call, and no cache.

    A block keeps the whole grid of times also where no mask is left.
    """

    def __init__(self, model, sampler, size: int, row: int) -> None:
        self.model, self.sampler, self.size, self.row = model, sampler, size, row

    def said(self, before: torch.Tensor, x: torch.Tensor, t: float, given: torch.Tensor, estimate):
        """The prediction for a block: the last of the noisy rows, of which the others are there to be ignored."""
        count = len(before) // self.size + 1
        clean = torch.cat((before, torch.zeros(self.size, dtype=torch.long))).view(count, self.size)
        noisy = x.expand(count, *x.shape[1:])
        level = self.model.process.noise_level(torch.full((count, 1), t, dtype=torch.float64))
        given = given.expand(count, -1) if bool(given.any()) else None
        estimate = None if estimate is None else estimate.expand(count, -1, -1)
        said = self.model(Noisy(noisy, level, given, estimate, blocks=Blocks(clean, count)))
        return type(said)(said.logits[-1:])

    def block(self, number: int, before: torch.Tensor, prompt: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        process, table = self.model.process, self.model.table()
        noise = Noise(SEED, torch.tensor([self.row + number * 2**32]))
        clean = process.encode(prompt.unsqueeze(0), table)
        where = given if process.discrete else given.unsqueeze(-1)

        def predict(state, t):
            estimate = state.estimates[0] if state.estimates else None
            said = self.said(before, state.x, float(t), given.unsqueeze(0), estimate)
            return Guess(said, (said.estimate(table),) if self.model.self_conditioning else ())

        x = torch.where(where, clean, process.prior(prompt.unsqueeze(0), table, noise))
        state = SamplerState(x, torch.tensor([0]), noise, table)
        for _ in range(self.sampler.config.num_steps):
            state = self.sampler.step(state, predict)
            state = SamplerState(torch.where(where, clean, state.x), state.index, noise, table, state.estimates)
        x, start = state.x, torch.zeros(1, 1, dtype=torch.float64)
        if not process.discrete or (x >= VOCABULARY).any():
            x = process.decode(x, predict(state, start).prediction, noise.at(state.index))
        return torch.where(given, prompt, x[0])

    @torch.no_grad()
    def text(self, length: int, prompt: torch.Tensor, known: int) -> torch.Tensor:
        """[length]"""
        tokens = torch.zeros(0, dtype=torch.long)
        room = torch.nn.functional.pad(prompt, (0, self.size))
        for number in range(-(-length // self.size)):
            at = slice(number * self.size, (number + 1) * self.size)
            given = torch.arange(at.start, at.stop) < known
            whole = room[at] if bool(given.all()) else self.block(number, tokens, room[at], given)
            tokens = torch.cat((tokens, whole))
        return tokens[:length]


CASES = [(denoiser, "masked", "ancestral", 3) for denoiser in DENOISERS]
OTHERS = [
    *[(denoiser, "gaussian", "ddim", 3) for denoiser in DENOISERS],
    ("transformer", "masked", "ancestral", 1),
    ("mamba", "masked", "ancestral", 1),
    ("mamba", "gaussian", "ancestral", 4),
    ("mamba", "uniform", "ancestral", 3),
    ("hybrid", "mask_uniform", "ancestral", 4),
]


@pytest.mark.parametrize(
    ("denoiser", "process", "name", "size"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in OTHERS)]
)
def test_equals_a_generator_without_a_cache(denoiser, process, name, size):
    """Rows of one batch, with prompts of different lengths, whose blocks end at different times."""
    model = model_of(denoiser, process)
    sampler, length, known = sampler_of(model, name), 8, torch.tensor([0, 7, 4])
    prompt = torch.randint(VOCABULARY, (3, length), generator=torch.Generator().manual_seed(5))
    given = torch.arange(length) < known.unsqueeze(1)
    sample = generate_blocks(sampler, model, Noise(SEED, torch.arange(3)), length, size, prompt, given)
    naive = [Naive(model, sampler, size, row).text(length, prompt[row], int(known[row])) for row in range(3)]
    assert torch.equal(sample.tokens, torch.stack(naive))
    alone = generate_blocks(sampler, model, Noise(SEED, torch.tensor([2])), length, size, prompt[2:3], given[2:3])
    assert torch.equal(alone.tokens[0], sample.tokens[2])
    assert alone.calls[0] == sample.calls[2]


@pytest.mark.parametrize("process", ["masked", "gaussian"])
@pytest.mark.parametrize("denoiser", list(DENOISERS))
def test_one_block_is_the_whole_text(denoiser, process):
    model = model_of(denoiser, process)
    noise = Noise(SEED, torch.arange(5))
    whole = generate(sampler_of(model), model, noise, 6)
    assert torch.equal(generate_blocks(sampler_of(model), model, noise, 6, 6).tokens, whole.tokens)


@pytest.mark.parametrize("denoiser", list(DENOISERS))
def test_a_longer_text_begins_with_the_shorter_one(denoiser):
    """And the cache holds what came before the last block: of a state always the same, of keys and values all."""
    model = model_of(denoiser, "masked", torch.float32)
    noise = Noise(SEED, torch.arange(3))
    short, long = (generate_blocks(sampler_of(model), model, noise, length, 4) for length in (8, 21))
    assert torch.equal(long.tokens[:, :8], short.tokens)
    state = 3 * (3 * (64 + 16) + 4 * 16 * 8) * 4  # three inputs of the convolution; 4 heads of 16 x 8
    token = 3 * 2 * 32 * 4  # keys and values
    layers = {"transformer": (0, 2), "mamba": (2, 0), "hybrid": (1, 1)}[denoiser]
    for sample, held in ((short, 4), (long, 20)):
        assert sample.cache_bytes == layers[0] * state + layers[1] * token * held


def test_the_state_is_float32_whatever_autocast_says():
    model = model_of("mamba", "masked", torch.float32)
    tokens = torch.randint(VOCABULARY, (2, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        cache = model.prefill(tokens, torch.tensor([8, 4]), 4)
        cache = model.commit(tokens[:, :4], cache)
    assert {layer.state[1].dtype for layer in cache.layers} == {torch.float32}


def test_rows_end_on_their_own():
    model = model_of("hybrid", "masked")
    noise, end = Noise(SEED, torch.arange(12)), 4
    free = generate_blocks(sampler_of(model), model, noise, 12, 3)
    ended = generate_blocks(sampler_of(model), model, noise, 12, 3, end=end)
    wanted = [row.index(end) if end in row else 12 for row in free.tokens.tolist()]
    assert ended.lengths.tolist() == wanted
    assert len(set(wanted)) > 3
    for own, row, n in zip(ended.tokens.tolist(), free.tokens.tolist(), wanted, strict=True):
        assert own == row[:n] + [end] * (12 - n)
    earlier = ended.lengths < 9
    assert (ended.calls[earlier] < free.calls[earlier]).all()


@pytest.mark.parametrize(
    ("length", "size", "text"),
    [
        (0, 4, "length: got 0, expected at least 1"),
        (8, 0, "block_size: got 0, expected at least 1"),
        (8, -2, "block_size: got -2, expected at least 1"),
    ],
)
def test_sizes_that_are_none(length, size, text):
    model = model_of("mamba", "masked")
    with pytest.raises(UserError, match=text):
        generate_blocks(sampler_of(model), model, Noise(0, torch.arange(1)), length, size)


def test_guidance_is_refused():
    model = model_of("mamba", "masked")
    sampler = build(config_class("samplers", "ancestral")(guidance=1.5), model.process)
    with pytest.raises(UserError, match=r"guidance: got 1\.5, but it has no meaning in blocks yet; set it to 0"):
        generate_blocks(sampler, model, Noise(0, torch.arange(1)), 8, 4)


@pytest.fixture(scope="module")
def blocks(shared):
    """A run in blocks of 8."""
    shared.train("blocks_of_eight", "block_size=8", "training.steps=4", "training.val_every=4")
    return "blocks_of_eight"


@pytest.fixture(scope="module")
def tokens(shared):
    """An autoregressive run."""
    shared.train("tokens", "objective=autoregressive", "denoiser.mixer.causal=true", "sampler=left_to_right",
                 "training.steps=4", "training.val_every=4")  # fmt: skip
    return "tokens"


def test_generate_beyond_the_training_context(shared, blocks):
    found = shared.json("generate", blocks, "--count", 3, "--length", 75, "--seed", 2)
    written = [min(10, n // 8 + 1) for n in found["tokens"]]  # blocks: the end of a text stands in its last one
    assert max(found["tokens"]) > 32 and len(found["texts"]) == 3
    for calls, n in zip(found["calls"], written, strict=True):
        assert 2 * n - 1 <= calls <= 4 * n - 1  # one to three steps for each, and all but the last are taken in
    assert found["cache_bytes"] == sum(8 * (n - 1) for n in written) * 2 * 32 * 4
    assert found["tokens_per_call"] == pytest.approx(sum(found["tokens"]) / sum(found["calls"]))
    assert shared.json("generate", blocks, "--length", 75, "--seed", 2)["texts"] == found["texts"][:1]


def test_generate_says_what_it_cost(shared, blocks):
    done = shared.command("generate", blocks, "--count", 2, "--prompt", "The cat runs ", "--prompt", "A")
    assert done.code == 0
    first, second, third, fourth = done.out.split("\n---\n")
    assert all(text.startswith("The cat runs ") for text in (first, second))
    assert all(text.startswith("A") for text in (third, fourth)) and first != second
    assert done.err.startswith("cache: ") and done.err.count("\n") == 1
    assert " bytes at the end, 4 texts; " in done.err and "calls of the network" in done.err


def test_calls_are_said_where_there_is_no_cache(shared, blocks):
    """One block of all, which nothing follows, and a model of whole texts."""
    for run, typed in ((blocks, ["--block-size", 64]), ("run", [])):
        done = shared.command("generate", run, "--length", 20, "num_steps=3", *typed)
        assert done.code == 0 and "no cache: 1 texts; " in done.err.splitlines()[-1]
        assert done.err.rstrip().endswith("per call") and "calls of the network" in done.err


def test_generate_in_other_blocks(shared, blocks):
    done = shared.command("generate", blocks, "--block-size", 4)
    assert done.code == 0 and done.err.startswith("block_size: 4, the run was trained with 8\ncache: ")
    assert shared.json("generate", blocks, "--block-size", 8)["texts"] == shared.json("generate", blocks)["texts"]
    alone = shared.json("generate", blocks, "--block-size", 1, "num_steps=1")
    assert alone["calls"] == [2 * min(32, alone["tokens"][0] + 1) - 1]


def test_training_and_evaluation_draw_in_blocks_too(shared, blocks):
    samples = (shared.folder / blocks / "samples.txt").read_text()
    assert samples.strip()
    assert samples == shared.json("generate", blocks)["texts"][0] + "\n"
    assert 0 <= shared.json("evaluate", blocks, "--samples", 2)["common_3grams"]["samples"] <= 1


def test_bad_input_in_one_line(shared, blocks, tokens):
    for run, argv, text in (
        (blocks, ["--block-size", "0"], "block_size: got 0, expected at least 1"),
        (blocks, ["--block-size", "x"], "block_size: got 'x', expected the tokens of a block (a whole number, "),
        (blocks, ["--length", "0"], "length: got 0, expected at least 1"),
        (blocks, ["--length", "4", "--prompt", "abcd"], "prompt: 4 tokens leave no room in 4"),
        (blocks, ["guidance=2", "--prompt", "a"], "but sampler.guidance has no meaning in blocks yet; set it to 0"),
        ("run", ["--block-size", "4"], "block_size: got 4, but run was trained on whole texts and has never seen a "),
        (tokens, ["--block-size", "4"], "block_size: got 4, but tokens is autoregressive and writes token by token"),
    ):
        assert text in shared.refused("generate", run, *argv)


def test_autoregressive_runs_say_it_as_well(shared, tokens):
    found = shared.json("generate", tokens, "--count", 2, "--length", 40)
    assert found["calls"] == [min(40, n + 1) for n in found["tokens"]]
    assert found["cache_bytes"] == sum(found["calls"]) * 2 * 32 * 4  # an ended row takes nothing more in
