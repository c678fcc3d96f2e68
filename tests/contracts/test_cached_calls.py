"""Calls of the model with a cache: a noisy block beside it, and next-token texts of any lengths read at once."""

import pytest
import torch

from diffusion_lm.blocks import Blocks, fold
from diffusion_lm.cache import Cache
from diffusion_lm.config import config_class
from diffusion_lm.noisy import Noisy

VOCABULARY = 11
ATTENTION = {"mixer": config_class("mixers", "attention")(head_dim=16, causal=True)}
MAMBA = {"mixer": config_class("mixers", "mamba2")(head_dim=16, d_state=8, chunk_size=4)}


def model_of(tools, process, denoiser, options):
    part = tools.process_of(process, "log_linear", VOCABULARY)
    return tools.shaken(tools.small_model(part, denoiser, n_layers=2, **options), size=0.1).eval()


@pytest.mark.parametrize(("denoiser", "options"), [("transformer", ATTENTION), ("mamba", MAMBA)])
@torch.no_grad()
def test_a_block_beside_the_cache_is_that_of_training(tools, denoiser, options):
    """The third block of two texts; said twice, for the cache stays as it is."""
    model = model_of(tools, "masked", denoiser, options)
    tokens = torch.arange(24).view(2, 12) * 7 % VOCABULARY
    rows, level = fold(tokens, 4), torch.full((6, 1), 0.5)
    x = rows.masked_fill(torch.arange(4) % 2 == 0, model.process.mask_id)
    trained = model(Noisy(x, level, blocks=Blocks(rows, 3))).logits[2::3, :, :VOCABULARY]
    cache = model.prefill(tokens[:, :8], torch.tensor([8, 8]), 4)
    for _ in range(2):
        found = model.denoise(Noisy(x[2::3], level[2::3]), cache).logits[..., :VOCABULARY]
        torch.testing.assert_close(found, trained, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("denoiser", "options"), [("transformer", ATTENTION), ("mamba", MAMBA)])
@torch.no_grad()
def test_texts_of_different_lengths_are_read_at_once(tools, denoiser, options):
    """As each alone, token by token: what is said, and what is said of a token more."""
    model = model_of(tools, "left_to_right", denoiser, options)
    inputs, lengths = torch.arange(18).view(3, 6) * 5 % VOCABULARY, torch.tensor([6, 1, 4])
    said, cache = model.read(inputs, lengths)
    more, named = torch.tensor([[3], [4], [5]]), torch.tensor([True, False, True])
    further, grown = model.advance(more, cache, named)
    assert cache.length.tolist() == [6, 1, 4] and grown.length.tolist() == [7, 1, 5]
    for row, length in enumerate(lengths.tolist()):
        own = Cache.empty(1)
        for token in inputs[row, :length]:
            alone, own = model.advance(token.view(1, 1), own)
        torch.testing.assert_close(said.logits[row : row + 1, :, :VOCABULARY], alone.logits[..., :VOCABULARY])
        after = model.advance(more[row : row + 1], own)[0].logits[..., :VOCABULARY]
        torch.testing.assert_close(further.logits[row : row + 1, :, :VOCABULARY], after)
