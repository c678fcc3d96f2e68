"""Autoregressive runs through the commands: exact likelihoods, generation by the cache, beside blocks of one token."""

import pytest
import torch

from diffusion_lm.cache import Cache
from diffusion_lm.evaluation.load import load_run
from diffusion_lm.evaluation.sequences import sequence_set

CAUSAL = ["objective=autoregressive", "sampler=left_to_right"]
ARMS = {
    "transformer": ["denoiser.mixer.causal=true"],
    "mamba": ["denoiser=mamba", "denoiser.n_layers=1", "denoiser.mixer={name: mamba2, head_dim: 16, d_state: 8}"],
    "hybrid": [
        "denoiser=hybrid",
        "denoiser.n_layers=2",
        "denoiser.pattern=MA",
        "denoiser.mamba={name: mamba2, head_dim: 16, d_state: 8}",
        "denoiser.attention={causal: true, head_dim: 16}",
    ],
}


@pytest.fixture(scope="module", params=ARMS)
def run(request, shared):
    """A finished run of every arm."""
    name = f"causal_{request.param}"
    shared.train(name, *CAUSAL, *ARMS[request.param])
    return name


def conditionals(model, texts):
    """-ln p of every text [B], by one cached call of the network per token."""
    cache, total = Cache.empty(len(texts)), torch.zeros(len(texts), dtype=torch.float64)
    inputs = torch.nn.functional.pad(texts, (1, 0), value=model.process.mask_id)
    for i in range(texts.shape[1]):
        said, cache = model.advance(inputs[:, i : i + 1], cache)
        total -= said.logits[:, 0].double().log_softmax(-1).gather(1, texts[:, i : i + 1]).squeeze(1)
    return total


def test_the_likelihood_is_exact_and_the_sum_of_cached_conditionals(shared, run, monkeypatch):
    monkeypatch.chdir(shared.folder)
    loaded = load_run(run)
    data = sequence_set(loaded.config.data, None, None, 0)
    with torch.no_grad():
        nll = torch.cat([conditionals(loaded.model, batch.tokens.long()) for batch in data.batches(6)])
    found = shared.json("evaluate", run)
    assert found["exact"]
    assert found["val/nll"] == pytest.approx(float(nll.mean()) / 32, abs=1e-5)
    out = shared.command("evaluate", run).out
    assert f"  exact       {found['val/nll']:.4f} ± " in out
    assert "left_to_right, exact" in out and "at most" not in out


def test_generation_goes_on_from_the_cache_beyond_the_training_length(shared, run):
    done = shared.command("generate", run, "--length", "75", "--count", "3", "--prompt", "the cat")
    assert done.code == 0, done.err
    found = shared.json("generate", run, "--length", "75", "--count", "3", "--prompt", "the cat")
    assert "\n---\n".join(found["texts"]) + "\n" == done.out
    assert all(text.startswith("the cat") for text in found["texts"])
    assert f"cache: {found['cache_bytes']:,} bytes" in done.err and found["cache_bytes"] > 0
    assert all(1 <= calls <= 75 - len("the cat") for calls in found["calls"])


def test_the_state_of_mamba_is_as_large_at_every_length(shared, run):
    short, long = (
        shared.json("generate", run, "--length", length, "--prompt", "the")["cache_bytes"] for length in (4, 5)
    )
    assert (short == long) == ("mamba" in run)


def test_a_block_size_is_refused(shared, run):
    assert "autoregressive" in shared.refused("generate", run, "--block-size", "4")


def test_blocks_of_one_token_stand_beside_it(shared):
    """The same factorisation, both exact: they are compared."""
    shared.train("causal", *CAUSAL, *ARMS["transformer"])
    shared.train("single", *ARMS["transformer"], "block_size=1")
    out = shared.command("evaluate", "causal", "single").out
    assert "left_to_right, exact" in out and "masked, exact" in out
    assert "not compared" not in out and "and the other a bound" not in out
