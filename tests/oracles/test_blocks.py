"""Bounds block by block on a toy source: with all that is known of a block from the blocks before it, they are H(x).

-ln p(x) = sum_b -ln p(x_b | x_<b), and each term's bound is tight for the exact posterior, whatever the process. Masks
are enumerated, random tokens too (with the trapezoid rule over the log-odds of the noise level), vectors are drawn.
Vocabulary 3, length 4. A block of one masked token is the autoregressive factorisation, shown on real models.
"""

import itertools
import math

import pytest
import torch

import diffusion_lm.discrete.objective as drawing
from diffusion_lm.blocks import Blocks, unfold
from diffusion_lm.blockwise import objective_of
from diffusion_lm.cache import Denoising
from diffusion_lm.config import build, config_class
from diffusion_lm.discrete.objective import Drawn
from diffusion_lm.model import DenoisingModel, ModelConfig
from diffusion_lm.noisy import Batch, Noisy
from diffusion_lm.objectives.base import TrainingNoise
from diffusion_lm.prompts import PromptConfig
from diffusion_lm.random import Noise
from diffusion_lm.readouts import Prediction
from diffusion_lm.schedules.cosine import Cosine, CosineConfig

V, L = 3, 4
ENDS = (4.0, -8.0)
DISCRETE = [("uniform", "uniform"), ("gidd", "uniform"), ("gidd", "mask_uniform")]


@pytest.fixture(scope="module")
def source(toy):
    return toy.Source(V, L)


@pytest.fixture(scope="module")
def oracle(toy, source):
    """Makes a model of blocks of a size that knows the source and is told how likely a state is under every token."""

    class InBlocks(toy.Known):
        """likely(noisy): q(x_t^i | v) [R, S, V]. own: look at the own position too. blur: a share of noise."""

        def __init__(self, size: int, likely, *, own: bool = False, blur: float = 0.0, vectors=None) -> None:
            super().__init__()
            self.size, self.likely, self.own, self.blur, self.vectors = size, likely, own, blur, vectors
            self.values = torch.tensor(list(itertools.product(range(V), repeat=size)))  # [V^S, S]

        def table(self) -> torch.Tensor:
            return torch.zeros(V + 1, 1, dtype=torch.float64) if self.vectors is None else self.vectors

        def given_the_past(self, blocks: Blocks) -> torch.Tensor:
            """p(x_b | x_<b) of every row, over the values of its block. [R, V^S]"""
            texts, found = unfold(blocks.tokens, blocks.count), []
            for k in range(blocks.count):
                past = (texts[:, : k * self.size] * V ** torch.arange(k * self.size - 1, -1, -1)).sum(1)
                joint = source.probabilities.view(V ** (k * self.size), V**self.size, -1).sum(-1)
                found.append((joint / joint.sum(1, keepdim=True))[past])
            return torch.stack(found, 1).flatten(0, 1)

        def forward(self, noisy: Noisy) -> Prediction:
            each = self.likely(noisy)[:, torch.arange(self.size), self.values]  # [R, V^S, S]
            weight, said = self.given_the_past(noisy.blocks), []
            for i in range(self.size):
                seen = [j for j in range(self.size) if self.own or j != i]
                likelihood = each[..., seen].prod(-1) * weight
                said.append(likelihood @ torch.nn.functional.one_hot(self.values[:, i], V).double())
            p = torch.stack(said, 1)
            p = (1 - self.blur) * p / p.sum(-1, keepdim=True) + self.blur / V
            return Prediction(p.log() if self.vectors is not None else toy.padded(p.log()))

    return InBlocks


def of_world(world):
    """How likely ids are under every token, by the process's definition."""

    def likely(noisy: Noisy) -> torch.Tensor:
        levels, row = noisy.noise_level.squeeze(1).unique(return_inverse=True)
        kernel = world.kernel(world.a_of(levels))[row].transpose(1, 2)
        return kernel[torch.arange(len(row))[:, None], noisy.x][..., :V]

    return likely


def of_vectors(vectors: torch.Tensor):
    """How likely vectors are under every token, up to a factor."""

    def likely(noisy: Noisy) -> torch.Tensor:
        log_snr = (ENDS[0] - noisy.noise_level * (ENDS[0] - ENDS[1])).unsqueeze(-1)
        apart = (noisy.x.unsqueeze(2) - torch.sigmoid(log_snr).sqrt().unsqueeze(-1) * vectors).square().sum(-1)
        each = -apart / (2 * torch.sigmoid(-log_snr))
        return (each - each.amax(-1, keepdim=True)).exp()

    return likely


def blocks_of(name: str, process: str, size: int, **settings):
    """An objective over blocks, on a schedule that no bound in continuous time depends on."""
    process = build(config_class("processes", process)(**settings), Cosine(CosineConfig()), V)
    noise = TrainingNoise(0, 8)
    return objective_of(config_class("objectives", name)(), process, PromptConfig(fraction=0.0), noise, size, L)


def expected(source, values: torch.Tensor) -> float:
    return float((source.probabilities * values.double()).sum())


def enumerated_masks(monkeypatch, source, objective, model, size: int) -> torch.Tensor:
    """`objective.bound` of every sequence, every mask of a block by turns: S strata are a draw per number of masks."""
    every = torch.tensor(list(itertools.product([False, True], repeat=size)))
    many, count = math.lcm(*(math.comb(size, n) for n in range(1, size + 1))), L // size

    def chosen(x, counts, noise, given=None):
        out = x.clone()
        for row, number in enumerate(counts.tolist()):
            masks = every[every.sum(1) == number]
            out[row][masks[row // count % len(masks)]] = V
        return out

    monkeypatch.setattr(objective.process, "corrupt_exactly", chosen)
    tokens = source.sequences.repeat_interleave(many, 0)
    rows = torch.arange(len(tokens))
    return objective.bound(model, Batch(tokens, rows), Noise(0, rows), size).nll.double().view(-1, many).mean(1)


def integral_over_masks(model, source, size: int) -> torch.Tensor:
    """Sum over blocks of int du / u E[sum over the masked of -ln p], each masked with probability u. Every sequence.

    A block's set of l masks has the weight int u^(l - 1) (1 - u)^(S - l) du = (l - 1)! (S - l)! / S!.
    """
    x, total = source.sequences, torch.zeros(len(source.sequences), dtype=torch.float64)
    clean = Blocks(x.unflatten(1, (-1, size)).flatten(0, 1), L // size)
    for mask in itertools.product([False, True], repeat=size):
        masked = sum(mask)
        if masked:
            state = clean.tokens.masked_fill(torch.tensor(mask), V)
            level = torch.full((len(state), 1), masked / size, dtype=torch.float64)
            log_p = model(Noisy(state, level, blocks=clean)).logits.log_softmax(-1)
            losses = -log_p.gather(-1, clean.tokens.unsqueeze(-1)).squeeze(-1)[:, list(mask)].sum(1)
            ways = math.factorial(masked - 1) * math.factorial(size - masked) / math.factorial(size)
            total += ways * losses.view(len(x), -1).sum(1)
    return total


@pytest.mark.parametrize("size", [1, 2, 4])
def test_masks_in_blocks(toy, monkeypatch, source, oracle, size):
    likely, objective = of_world(toy.World("masked")), blocks_of("masked", "masked", size)
    exact, wrong = (oracle(size, likely, blur=blur) for blur in (0.0, 0.1))
    assert expected(source, integral_over_masks(exact, source, size)) == pytest.approx(source.entropy, abs=1e-12)
    found = enumerated_masks(monkeypatch, source, objective, exact, size)
    assert expected(source, found) == pytest.approx(source.entropy, abs=1e-6)
    other = enumerated_masks(monkeypatch, source, objective, wrong, size)
    torch.testing.assert_close(other, integral_over_masks(wrong, source, size), rtol=1e-6, atol=1e-6)
    assert expected(source, other) > source.entropy + 0.01


def enumerated_states(monkeypatch, toy, source, world, objective, model, size: int) -> torch.Tensor:
    """`objective.bound` of every sequence, each block in every state at every node of the noise level in turn. [81]"""
    a, step = world.nodes()
    states = world.states(size)
    shape = (len(source.sequences), len(a), len(states))
    text, node, state = (v.flatten() for v in torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij"))
    slope = torch.autograd.functional.jvp(lambda v: world.masses(v)[0], (a,), (torch.ones_like(a),))[1]
    count = L // size
    node_of, x_t = node.repeat_interleave(count), states[state].repeat_interleave(count, 0)
    level = (1 - world.masses(a)[0])[node_of].unsqueeze(1)

    def drawn(process, x_0, t, noise):
        likely = world.kernel(a)[node_of[:, None], x_0, x_t].prod(1)
        return Drawn(x_t, t, likely * (step * slope)[node_of])

    monkeypatch.setattr(drawing, "stratified_levels", lambda noise, draws: level)
    monkeypatch.setattr(drawing, "draw_states", drawn)
    tokens, rows = source.sequences[text], torch.arange(len(text))
    found = objective.bound(model, Batch(tokens, rows), Noise(0, rows), 1).nll
    return found.view(len(source.sequences), -1).sum(1)


@torch.no_grad()
@pytest.mark.parametrize("size", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "process"), DISCRETE)
def test_random_tokens_in_blocks(toy, monkeypatch, source, oracle, name, process, size):
    """Of one token alone nothing is known but the past, so that looking at it as well is what goes wrong."""
    world, objective = toy.World(process), blocks_of(name, process, size)

    def value(**changes) -> float:
        model = oracle(size, of_world(world), **changes)
        return expected(source, enumerated_states(monkeypatch, toy, source, world, objective, model, size))

    assert value() == pytest.approx(source.entropy, abs=1e-6)
    assert value(own=True) > source.entropy + 0.02
    assert value(blur=0.02) > source.entropy + 1e-4


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize(("name", "process"), [("masked", "masked"), *DISCRETE, ("gaussian", "gaussian")])
def test_the_bounds_own_draws_agree_with_the_entropy(toy, source, oracle, name, process, size):
    """Of vectors what is left of the prior is KL(q(z_1 | x_<b) || N) <= -D / 2 ln(1 - alpha_1) L < 0.0014."""
    discrete, rows = process != "gaussian", 1500
    settings = {} if discrete else {"log_snr_max": ENDS[0], "log_snr_min": ENDS[1]}
    objective, vectors = blocks_of(name, process, size, **settings), toy.polygon(V)
    likely = of_world(toy.World(process)) if discrete else of_vectors(vectors)
    shown = {} if discrete else {"own": True, "vectors": vectors}
    tokens, position = source.draw(rows), torch.arange(rows)

    def nll(**changes) -> torch.Tensor:
        model = oracle(size, likely, **(shown | changes))
        return objective.bound(model, Batch(tokens, position), Noise(5, position), 4).nll.double()

    exact, wrong = nll(), nll(blur=0.3)
    error, apart = (float(values.std()) / rows**0.5 for values in (exact, wrong - exact))
    assert error < 0.04 * source.entropy
    assert abs(float(exact.mean()) - source.entropy) < 4 * error + 0.0014
    assert float((wrong - exact).mean()) > 4 * apart


@pytest.fixture(params=["transformer", "mamba"])
def network(request):
    """A masked model with random weights, several layers."""
    torch.manual_seed(0)
    sizes = {"transformer": {"mixer": config_class("mixers", "attention")(head_dim=8)}}
    trunk = config_class("denoisers", request.param)(n_layers=3, **sizes.get(request.param, {}))
    process = build(config_class("processes", "masked")(), Cosine(CosineConfig()), 5)
    model = DenoisingModel(ModelConfig(d_model=64), trunk, process)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return model.eval()


@torch.no_grad()
def test_blocks_of_one_masked_token_are_the_autoregressive_factorisation(network):
    """The bound is no bound but -ln p(x): of the training form, of the cache, and of a pass over each prefix."""
    rows, length = 3, 6
    tokens = torch.randint(5, (rows, length), generator=torch.Generator().manual_seed(1))
    noise, position = TrainingNoise(0, rows), torch.arange(rows)
    config = config_class("objectives", "masked")()
    objective = objective_of(config, network.process, PromptConfig(fraction=0.0), noise, 1, length)
    bounds = [objective.bound(network, Batch(tokens, position), Noise(seed, position), 2).nll for seed in (0, 1)]
    torch.testing.assert_close(bounds[0], bounds[1], rtol=0, atol=0)  # nothing is left to chance

    mask = torch.full((rows, 1), network.process.mask_id)
    level = torch.ones(rows, 1, dtype=torch.float64)
    cache = network.prefill(tokens, torch.zeros(rows, dtype=torch.long), 1)
    cached, naive = torch.zeros(rows, dtype=torch.float64), torch.zeros(rows, dtype=torch.float64)
    for i in range(length):
        said = network(Noisy(mask, level, cache=Denoising(cache=cache))).logits[:, 0]
        cached -= said.log_softmax(-1).gather(1, tokens[:, i : i + 1]).squeeze(1)
        cache = network.commit(tokens[:, i : i + 1], cache)
        prefix = Blocks(tokens[:, : i + 1].flatten().unsqueeze(1), i + 1)  # the last of them is hidden from itself
        hidden, noised = mask.repeat(1, i + 1).flatten().unsqueeze(1), level.repeat(1, i + 1).flatten().unsqueeze(1)
        said = network(Noisy(hidden, noised, blocks=prefix)).logits[:, 0].unflatten(0, (rows, -1))[:, -1]
        naive -= said.log_softmax(-1).gather(1, tokens[:, i : i + 1]).squeeze(1)
    for other in (cached, naive):
        torch.testing.assert_close(bounds[0].double(), other, rtol=0, atol=1e-5)


@torch.no_grad()
def test_probabilities_of_one_token_blocks_add_up_to_1(network):
    """Over all texts of a length exp(-bound) is a distribution: the bound is exact."""
    texts = torch.tensor(list(itertools.product(range(5), repeat=3)))
    position, config = torch.arange(len(texts)), config_class("objectives", "masked")()
    noise = TrainingNoise(0, len(texts))
    objective = objective_of(config, network.process, PromptConfig(fraction=0.0), noise, 1, 3)
    nll = objective.bound(network, Batch(texts, position), Noise(0, position), 1).nll
    assert float((-nll.double()).exp().sum()) == pytest.approx(1, abs=1e-5)
