"""Generation in blocks with the exact posterior of a toy chain: its draws follow the joint distribution.

The oracle has a cache like a model: a mixer that remembers the tokens of the blocks that were taken in.
"""

from dataclasses import dataclass

import pytest
import torch

from diffusion_lm.cache import Committing, Prefilling
from diffusion_lm.config import build, config_class
from diffusion_lm.generation.blocks import generate_blocks
from diffusion_lm.mixers.base import MixerCache, SequenceMixer
from diffusion_lm.random import Noise, Stream
from diffusion_lm.readouts import Prediction

V, L = 3, 4
SCHEDULES = {"masked": "log_linear", "uniform": "log_linear", "mask_uniform": "log_linear", "gaussian": "cosine"}
PROCESSES = list(SCHEDULES)
SLOW = pytest.mark.slow
STEPS = {1: 1, 2: 40, 4: 80}
"""Of a masked block of so many tokens: one is exact for a single token, more only in the limit."""


class Chain:
    """Tokens of which each depends on the one before it."""

    sequences = torch.cartesian_prod(*[torch.arange(V)] * L)
    start = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    move = torch.tensor([[0.15, 0.7, 0.15], [0.1, 0.2, 0.7], [0.6, 0.15, 0.25]], dtype=torch.float64)
    place = V ** torch.arange(L - 1, -1, -1)

    def __init__(self) -> None:
        moves = self.move[self.sequences[:, :-1], self.sequences[:, 1:]]
        self.probabilities = self.start[self.sequences[:, 0]] * moves.prod(1)

    def after(self, last: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
        """Probabilities of blocks [n, S] after a last token; V: after none. [B] -> [B, n]"""
        first = torch.cat((self.move, self.start.unsqueeze(0)))[last][:, blocks[:, 0]]
        return first * self.move[blocks[:, :-1], blocks[:, 1:]].prod(1)

    def counts(self, tokens: torch.Tensor) -> torch.Tensor:
        """How often each sequence was drawn."""
        assert tokens.min() >= 0 and tokens.max() < V
        return torch.bincount((tokens * self.place).sum(1), minlength=V**L).double()


@dataclass(frozen=True)
class Last(MixerCache):
    """The last token of every row, V where there is none, and their number. [B] each"""

    token: torch.Tensor
    count: torch.Tensor

    def where(self, rows, other):
        return Last(self.token.where(rows, other.token), self.count.where(rows, other.count))

    def repeated(self, times):
        raise AssertionError("only training repeats a cache")

    def nbytes(self):
        return int(self.count.sum())


class Memory(SequenceMixer):
    """Input: ids of the block's tokens. Output: that of the last token before it, at every position."""

    def __init__(self):
        super().__init__(None, 1)

    def forward(self, x, context=None):
        raise AssertionError("blocks only")

    def start(self, x):
        return Last(torch.full((len(x),), V), torch.zeros(len(x), dtype=torch.long))

    def resume(self, x, cache):
        after = Last(x[:, -1, 0].long(), cache.count + x.shape[1])
        return cache.token.double().view(-1, 1, 1).expand_as(x), after


@pytest.fixture(scope="module")
def oracle(toy):
    """A model over the named process that knows the chain: p(x_0^i | block without i, blocks before)."""

    class Oracle(toy.Known):
        def __init__(self, name: str) -> None:
            super().__init__()
            schedule = build(config_class("schedules", SCHEDULES[name])())
            self.process = build(config_class("processes", name)(), schedule, V)
            self.chain, self.memory, self.calls = Chain(), Memory(), 0
            self.world = toy.World(name) if self.process.discrete else None

        def table(self):
            return toy.polygon(V)

        def last(self, ids, use):
            """The token before the block; the cache's use hears of the block."""
            return use.mix_layer(self.memory, ids.double().unsqueeze(-1), 0)[:, 0, 0].long()

        def commit(self, block, cache, rows=None):
            use = Committing(cache=cache, rows=rows)
            self.last(block, use)
            return use.result(block.shape[1])

        def prefill(self, tokens, lengths, block_size):
            use = Prefilling(count=tokens.shape[1] // block_size, keep=lengths // block_size)
            self.last(tokens.unflatten(1, (-1, block_size)).flatten(0, 1), use)
            return use.result(block_size)

        def forward(self, noisy):
            self.calls += 1
            discrete, size = self.process.discrete, noisy.x.shape[1]
            ids = noisy.x if discrete else (noisy.x.unsqueeze(2) - self.table()).square().sum(-1).argmin(-1)
            blocks = torch.cartesian_prod(*[torch.arange(V)] * size).view(-1, size)
            prior, each = self.chain.after(self.last(ids, noisy.cache), blocks), self.likelihood(noisy, blocks)
            if noisy.given is not None:
                each = torch.where(noisy.given.unsqueeze(1), (blocks == ids.unsqueeze(1)).double(), each)
            said = []
            for i in range(size):
                sees = [j for j in range(size) if j != i or not discrete]
                weight = prior * each[..., sees].prod(-1)
                said.append(weight @ torch.nn.functional.one_hot(blocks[:, i], V).double())
            posterior = torch.stack(said, 1)
            return Prediction(toy.padded((posterior / posterior.sum(-1, keepdim=True)).log()))

        def likelihood(self, noisy, blocks):
            """q(x_t^i | x_0^i) of every row and position under every block. [B, n, S]"""
            levels, row = noisy.noise_level.squeeze(1).unique(return_inverse=True)
            if self.world is not None:
                kernel, place = self.world.kernel(self.world.a_of(levels)), torch.arange(blocks.shape[1])
                of_x = kernel.transpose(1, 2)[row[:, None], noisy.x]  # [B, S, V]
                return of_x[:, place, blocks]
            config = self.process.config
            log_snr = config.log_snr_max - levels * (config.log_snr_max - config.log_snr_min)
            alpha = torch.sigmoid(log_snr)[row].view(-1, 1, 1, 1)
            apart = noisy.x.unsqueeze(1) - alpha.sqrt() * self.table()[blocks]
            return torch.exp(-apart.square().sum(-1) / (2 * (1 - alpha.squeeze(-1))))

    return Oracle


def sampler_of(process, steps: int, name: str = "ancestral"):
    return build(config_class("samplers", name)(num_steps=steps), process)


def fits(toy, counts: torch.Tensor, law: torch.Tensor) -> float:
    """p-value of the counts, cells that are rare taken together."""
    common = law > 5 / float(counts.sum())
    cells = [torch.cat((v[common], v[~common].sum()[None])) for v in (counts, law)]
    return toy.chi_square(*(cell[: len(cell) - bool(common.all())] for cell in cells))


@pytest.mark.parametrize("size", [pytest.param(1, marks=SLOW), 2, pytest.param(4, marks=SLOW)])
@pytest.mark.parametrize("name", PROCESSES)
def test_draws_follow_the_joint_distribution(toy, oracle, name, size):
    model, rows = oracle(name), 1000
    steps = STEPS[size] if name == "masked" else 32
    noise = Noise(size, torch.arange(rows))
    sample = generate_blocks(sampler_of(model.process, steps), model, noise, L, size)
    assert fits(toy, model.chain.counts(sample.tokens), model.chain.probabilities) > 1e-4
    assert sample.cache_bytes == rows * (L - size)


def test_one_step_per_block_draws_its_tokens_apart(toy, oracle):
    """The test above can tell: given the blocks before, two tokens drawn at once are independent."""
    model, rows = oracle("masked"), 4000
    chain = model.chain
    sample = generate_blocks(sampler_of(model.process, 1), model, Noise(0, torch.arange(rows)), L, 2)
    second = chain.start @ chain.move
    law = chain.start[chain.sequences[:, 0]] * second[chain.sequences[:, 1]]
    two = chain.move @ chain.move
    before = chain.sequences[:, 1]
    law = law * chain.move[before, chain.sequences[:, 2]] * two[before, chain.sequences[:, 3]]
    counts = chain.counts(sample.tokens)
    assert fits(toy, counts, law) > 1e-4
    assert fits(toy, counts, chain.probabilities) < 1e-9


@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_last_block_is_cut(toy, oracle, size):
    """Three tokens have the law of the chain's first three."""
    model, rows = oracle("masked"), 800
    tokens = generate_blocks(sampler_of(model.process, 40), model, Noise(5, torch.arange(rows)), 3, size).tokens
    assert tokens.shape == (rows, 3)
    whole = torch.cat((tokens, torch.zeros(rows, 1, dtype=torch.long)), 1)
    law = model.chain.probabilities.view(-1, V).sum(1)
    assert fits(toy, model.chain.counts(whole).view(-1, V)[:, 0], law) > 1e-4


@pytest.mark.parametrize("name", PROCESSES)
def test_prompts_of_different_lengths_condition_their_rows(toy, oracle, name):
    model, each = oracle(name), 250
    prompt = torch.tensor([2, 0, 1, 1])
    lengths = torch.arange(4).repeat_interleave(each)
    given = torch.arange(L) < lengths.unsqueeze(1)
    noise = Noise(7, torch.arange(4 * each))
    prompts = prompt.expand(4 * each, -1)
    sample = generate_blocks(sampler_of(model.process, 40), model, noise, L, 2, prompts, given)
    assert (sample.tokens == prompt)[given].all()
    for known in range(4):
        fit = (model.chain.sequences[:, :known] == prompt[:known]).all(1)
        law = model.chain.probabilities * fit
        counts = model.chain.counts(sample.tokens[lengths == known])
        assert counts[~fit].sum() == 0
        assert fits(toy, counts[fit], (law / law.sum())[fit]) > 1e-4


@pytest.mark.parametrize("size", [1, 2])
def test_texts_end_before_the_first_token_of_the_end(toy, oracle, size):
    model, rows = oracle("masked"), 800
    end, sequences = 2, model.chain.sequences
    sampler = sampler_of(model.process, STEPS[size])
    sample = generate_blocks(sampler, model, Noise(9, torch.arange(rows)), L, size, end=end)
    where = torch.where((sequences == end).any(1), (sequences == end).int().argmax(1), L)
    law = torch.stack([model.chain.probabilities[where == n].sum() for n in range(L + 1)])
    assert fits(toy, torch.bincount(sample.lengths, minlength=L + 1).double(), law) > 1e-4
    written = torch.arange(L) < sample.lengths.unsqueeze(1)
    assert (sample.tokens[~written] == end).all() and (sample.tokens[written] != end).all()
    on = generate_blocks(sampler, model, Noise(9, torch.arange(rows)), L, size)
    assert on.lengths is None
    assert torch.equal(on.tokens[written], sample.tokens[written])
    assert sample.calls.sum() < on.calls.sum()


def test_an_end_in_the_prompt_ends_nothing(oracle):
    model = oracle("masked")
    prompt, given = torch.tensor([[2, 2, 0, 0]]), torch.tensor([[True, True, False, False]])
    sample = generate_blocks(sampler_of(model.process, 8), model, Noise(0, torch.arange(1)), L, 1, prompt, given, end=2)
    assert sample.lengths.item() >= 2 and sample.calls.item() > 1


def test_masked_rows_ask_for_no_more_than_they_need(oracle):
    """As many calls as there are steps in which masks go, which the noise says; those of a block and its taking in."""
    model, rows, steps = oracle("masked"), 64, 16
    calls = generate_blocks(sampler_of(model.process, steps), model, Noise(3, torch.arange(rows)), L, 2).calls
    wanted = torch.ones(rows, dtype=torch.long)  # one block is taken in
    for block in range(2):
        own = Noise(3, torch.arange(rows) + (block << 32))
        masked = torch.ones(rows, 2, dtype=torch.bool)
        for step in range(steps):
            t, s = 1 - step / steps, 1 - (step + 1) / steps
            alpha_t, alpha_s = (1 - (1 - 1e-3) * v for v in (t, s))
            jump = own.at(step).uniform(Stream.CHANGE, 2) < (1 - alpha_t / alpha_s) / (1 - alpha_t)
            jump &= masked & (own.at(step).uniform(Stream.SOURCE, 2) < alpha_s)
            masked &= ~jump
            wanted += jump.any(1)
    assert torch.equal(calls, wanted)
    assert len(calls.unique()) > 1 and int(calls.max()) == 5
    assert model.calls <= 5  # no row waits for another
