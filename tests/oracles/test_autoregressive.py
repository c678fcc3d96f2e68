"""The autoregressive baseline by enumeration: a normalised likelihood, no look ahead, samples from it exactly."""

import itertools

import pytest
import torch

from diffusion_lm.cache import Cache
from diffusion_lm.config import build, config_class
from diffusion_lm.errors import UserError
from diffusion_lm.experiment import ExperimentConfig, load
from diffusion_lm.model import DenoisingModel, ModelConfig
from diffusion_lm.noisy import Batch, Noisy
from diffusion_lm.objectives.autoregressive import Autoregressive, AutoregressiveConfig
from diffusion_lm.objectives.base import TrainingNoise
from diffusion_lm.processes.left_to_right import LeftToRight, LeftToRightConfig
from diffusion_lm.prompts import PromptConfig
from diffusion_lm.random import Noise
from diffusion_lm.samplers.base import generate
from diffusion_lm.samplers.left_to_right import LeftToRight as Sampler
from diffusion_lm.samplers.left_to_right import LeftToRightConfig as SamplerConfig
from diffusion_lm.schedules.log_linear import LogLinear, LogLinearConfig

V, L = 3, 4
SEQUENCES = torch.tensor(list(itertools.product(range(V), repeat=L)))
CAUSAL = {
    "transformer": {"mixer": config_class("mixers", "attention")(causal=True, head_dim=16, n_kv_heads=1, qk_norm=True)},
    "mamba": {"mixer": config_class("mixers", "mamba2")(head_dim=16, d_state=8)},
    "hybrid": {
        "pattern": "MA",
        "mamba": config_class("mixers", "mamba2")(head_dim=16, d_state=8),
        "attention": config_class("mixers", "attention")(causal=True, head_dim=16),
    },
}


@pytest.fixture(params=list(CAUSAL))
def model(request) -> DenoisingModel:
    """A random causal model, far from uniform."""
    torch.manual_seed(3)
    denoiser = config_class("denoisers", request.param)(n_layers=2, **CAUSAL[request.param])
    process = LeftToRight(LeftToRightConfig(), LogLinear(LogLinearConfig()), V)
    model = DenoisingModel(ModelConfig(d_model=32), denoiser, process)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    return model.eval()


@pytest.fixture
def objective(model) -> Autoregressive:
    return Autoregressive(AutoregressiveConfig(), model.process, PromptConfig(), TrainingNoise(0, 8))


def log_likelihoods(objective, model) -> torch.Tensor:
    rows = torch.arange(len(SEQUENCES))
    with torch.no_grad():
        return -objective.bound(model, Batch(SEQUENCES, rows), Noise(0, rows), 2).nll


def test_the_likelihood_sums_to_one_over_all_sequences(objective, model):
    log_p = log_likelihoods(objective, model)
    assert log_p.std() > 0.1
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-5)


def test_the_training_loss_is_the_same_number(objective, model):
    rows = torch.arange(len(SEQUENCES))
    loss = objective(model, Batch(SEQUENCES, rows))
    torch.testing.assert_close(loss.nll.double(), -log_likelihoods(objective, model), rtol=1e-5, atol=1e-5)
    assert loss.tokens.tolist() == [L] * len(rows)
    torch.testing.assert_close(loss.loss, loss.nll.mean() / L)


def test_no_position_sees_itself_or_what_comes_after(model):
    x = SEQUENCES[[5]].clone()
    before = model(Noisy(x, torch.zeros(1, 1, dtype=torch.float64))).logits
    for i in range(L):
        changed = x.clone()
        changed[:, i:] = (changed[:, i:] + 1) % V
        after = model(Noisy(changed, torch.zeros(1, 1, dtype=torch.float64))).logits
        torch.testing.assert_close(after[:, : i + 1], before[:, : i + 1])
        if i + 1 < L:
            assert not torch.allclose(after[:, i + 1 :, :V], before[:, i + 1 :, :V], atol=1e-4)


def test_samples_follow_the_likelihood(objective, model, toy):
    sampler, rows = Sampler(SamplerConfig(), model.process), torch.arange(6000)
    sample = generate(sampler, model, Noise(1, rows), L)
    assert sample.calls.unique().tolist() == [L]
    place = V ** torch.arange(L - 1, -1, -1)
    counts = torch.bincount((sample.tokens * place).sum(1), minlength=V**L).double()
    likelihood = log_likelihoods(objective, model).exp()
    common = likelihood * len(rows) > 5
    grouped = torch.cat((counts[common], counts[~common].sum().unsqueeze(0)))
    chances = torch.cat((likelihood[common], likelihood[~common].sum().unsqueeze(0)))
    assert toy.chi_square(grouped[chances > 0], chances[chances > 0]) > 1e-4


def test_the_likelihood_is_the_sum_of_cached_conditionals(objective, model):
    """One token per call, each the exact conditional of the next one."""
    cache = Cache.empty(len(SEQUENCES))
    inputs = torch.nn.functional.pad(SEQUENCES, (1, 0), value=model.process.mask_id)
    total = torch.zeros(len(SEQUENCES), dtype=torch.float64)
    with torch.no_grad():
        for i in range(L):
            said, cache = model.advance(inputs[:, i : i + 1], cache)
            total += said.logits[:, 0].log_softmax(-1).gather(1, SEQUENCES[:, i : i + 1]).squeeze(1)
    torch.testing.assert_close(total, log_likelihoods(objective, model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("pieces", [[1] * 9, [9], [4, 1, 1, 3], [1, 8]])
def test_what_is_said_from_the_cache_is_what_is_said_of_the_whole_text(model, pieces):
    """However the text is cut: the prompt in one call, one token per call, or anything between."""
    texts = torch.arange(27).view(3, 9) * 7 % V
    with torch.no_grad():
        whole = model(Noisy(texts, torch.zeros(3, 1, dtype=torch.float64))).logits
        inputs = torch.nn.functional.pad(texts[:, :-1], (1, 0), value=model.process.mask_id)
        cache, end = Cache.empty(3), 0
        for piece, part in zip(pieces, inputs.split(pieces, 1), strict=True):
            said, after = model.advance(part, cache)
            again, _ = model.advance(part, cache)
            end += piece
            torch.testing.assert_close(said.logits[:, 0], whole[:, end - 1], rtol=0, atol=1e-5)
            assert torch.equal(again.logits, said.logits)  # the cache stayed as it was
            cache = after
    assert cache.length.tolist() == [9] * 3


PROMPTS = {
    "none": None,
    "of different lengths": torch.arange(14) < torch.tensor([[3], [0], [9], [14]]),
    "of one length": (torch.arange(14) < 7).expand(4, 14),
    "with holes": torch.arange(14) % torch.tensor([[2], [3], [5], [7]]) == 0,
}


@pytest.mark.slow
@pytest.mark.parametrize("given", PROMPTS.values(), ids=PROMPTS)
def test_the_cache_draws_what_whole_sequences_draw(model, given):
    model, noise = model.double(), Noise(6, torch.tensor([2, 11, 5, 7]))
    prompt = None if given is None else torch.arange(56).view(4, 14) // 3 % V
    sampler = Sampler(SamplerConfig(), model.process)
    sample = sampler.write(model, noise, 14, prompt, given)
    assert torch.equal(sample.tokens, generate(sampler, model, noise, 14, prompt, given).tokens)
    known = {"of different lengths": [3, 0, 9, 14], "of one length": [7] * 4, "with holes": [1] * 4, "none": [0] * 4}
    name = next(name for name, one in PROMPTS.items() if one is given)
    assert sample.calls.tolist() == [14 - n for n in known[name]]  # the first says what follows the prompt
    rows = []
    for i in range(4):
        alone = () if given is None else (prompt[i : i + 1], given[i : i + 1])
        rows.append(sampler.write(model, Noise(6, noise.position[i : i + 1]), 14, *alone))
        assert torch.equal(rows[i].tokens[0], sample.tokens[i])
        assert int(rows[i].calls) == int(sample.calls[i])
    assert sum(row.cache_bytes for row in rows) == sample.cache_bytes


def test_a_prompt_is_one_call_and_a_token_another(model, monkeypatch):
    """The network is called as often as the row that needs it most, for prompts of any lengths."""
    seen, advance, read = [], model.advance, model.read
    monkeypatch.setattr(model, "advance", lambda *given: seen.append("token") or advance(*given))
    monkeypatch.setattr(model, "read", lambda *given: seen.append("prompts") or read(*given))
    prompt, given = torch.ones(3, 12, dtype=torch.long), torch.arange(12) < torch.tensor([[11], [4], [7]])
    sample = Sampler(SamplerConfig(), model.process).write(model, Noise(0, torch.arange(3)), 12, prompt, given)
    assert sample.calls.tolist() == [1, 8, 5] and seen == ["prompts"] + ["token"] * 7


def test_a_row_ends_where_it_draws_the_end_and_others_go_on(model):
    """An end that is given is no end."""
    sampler, noise, end = Sampler(SamplerConfig(), model.process), Noise(8, torch.arange(5)), 1
    prompt, given = torch.full((5, 24), end), torch.arange(24) < torch.tensor([[0], [2], [1], [0], [5]])
    free = sampler.write(model, noise, 24, prompt, given)
    assert free.lengths is None
    sample = sampler.write(model, noise, 24, prompt, given, end)
    for row in range(5):
        text, known = free.tokens[row].tolist(), int(given[row].sum())
        first = text.index(end, known) if end in text[known:] else 24
        assert sample.tokens[row].tolist() == text[:first] + [end] * (24 - first)
        assert int(sample.lengths[row]) == first
        assert int(sample.calls[row]) == min(24, first + 1) - known
    assert len(set(sample.lengths.tolist())) > 1


def test_the_size_of_the_cache_is_printed_by_the_sample(model):
    """Per row and float32: keys and values of a head of 16 per attention layer and input; of a Mamba-2 layer 4 heads of
    16 x 8 and 3 inputs of a convolution of 64 + 2 x 8 channels."""
    attention, mamba = 4 * 2 * 16, 4 * (4 * 16 * 8 + 3 * 80)
    layers = {"Attention": lambda n, kv: attention * n * kv, "Mamba2": lambda n, kv: mamba}
    for length in (5, 33):
        sample = Sampler(SamplerConfig(), model.process).write(model, Noise(0, torch.arange(2)), length)
        mixers = [block.mixer.inner for block in model.denoiser.stack.blocks]
        each = [layers[type(m).__name__](length, getattr(m, "kv_heads", 0)) for m in mixers]
        assert sample.cache_bytes == 2 * sum(each)


def test_a_conditioning_in_the_sequence_is_refused():
    typed = ["objective=autoregressive", "sampler=left_to_right", "denoiser.mixer.causal=true"]
    with pytest.raises(UserError, match=r"conditioning 'token'.*expected adaln, film, additive or none"):
        load("quickstart", [*typed, "denoiser.conditioning=token"])


def test_a_prompt_is_continued_by_its_conditional(objective, model, toy):
    rows = torch.arange(3000)
    prompt = SEQUENCES[[30]].expand(len(rows), L)
    given = (torch.arange(L) < 3).expand(len(rows), L)
    tokens = generate(Sampler(SamplerConfig(), model.process), model, Noise(2, rows), L, prompt, given).tokens
    assert (tokens[:, :3] == prompt[:, :3]).all()
    fits = (SEQUENCES[:, :3] == SEQUENCES[30, :3]).all(1)
    wanted = torch.softmax(log_likelihoods(objective, model)[fits], 0)
    assert toy.chi_square(torch.bincount(tokens[:, 3], minlength=V).double(), wanted) > 1e-4


@pytest.mark.parametrize(("denoiser", "keys"), [
    ("transformer", "set denoiser.mixer.causal=true"),
    ("mamba", "set denoiser.mixer=mamba2"),
    ("hybrid", "set denoiser.mamba=mamba2 denoiser.attention.causal=true"),
    ("dimba", "no key makes it causal; take another, like denoiser=mamba denoiser.mixer=mamba2"),
])  # fmt: skip
def test_a_denoiser_that_looks_ahead_is_refused_with_the_keys_that_help(denoiser, keys):
    """What the line says to set is accepted."""
    typed = ["objective=autoregressive", "sampler=left_to_right", f"denoiser={denoiser}"]
    with pytest.raises(UserError) as refused:
        load("quickstart", typed)
    assert str(refused.value).endswith(f"needs a causal denoiser, and '{denoiser}' sees later positions; {keys}")
    changes = [word for word in keys.split() if word.startswith("denoiser")]
    assert load("quickstart", typed[: 2 if denoiser == "dimba" else 3] + changes).denoiser.is_causal()


def test_attention_in_blocks_sees_ahead():
    typed = ["objective=autoregressive", "sampler=left_to_right", "denoiser.mixer={causal: true, block_size: 4}"]
    with pytest.raises(UserError, match=r"sees later positions; set denoiser\.mixer\.block_size=0$"):
        load("quickstart", typed)


def test_a_causal_denoiser_is_paired_with_shifted_input():
    parts = {"objective": AutoregressiveConfig(), "sampler": SamplerConfig()}
    config = ExperimentConfig(denoiser=config_class("denoisers", "transformer")(**CAUSAL["transformer"]), **parts)
    assert build(config.process, build(config.schedule), V).shifted


def test_another_sampler_is_refused_with_the_one_that_can():
    with pytest.raises(ValueError, match=r"cannot sample process 'left_to_right'.*set sampler=left_to_right"):
        ExperimentConfig(
            objective=AutoregressiveConfig(), denoiser=config_class("denoisers", "transformer")(**CAUSAL["transformer"])
        )
