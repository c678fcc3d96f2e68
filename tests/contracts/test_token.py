"""The time token: where it stands, what it says, and that trunks of every kind hear it."""

import pytest
import torch

from diffusion_lm.config import build, config_class
from diffusion_lm.noisy import Noisy

D_MODEL, ROWS, LENGTH = 64, 2, 6


@pytest.fixture
def token(tools):
    torch.manual_seed(0)
    return tools.shaken(build(config_class("conditioning", "token")(), D_MODEL))


def noisy_of(*levels: float, given: torch.Tensor | None = None) -> Noisy:
    level = torch.tensor([levels], dtype=torch.float64).expand(ROWS, -1)
    return Noisy(torch.zeros(ROWS, LENGTH, dtype=torch.long), level, given)


def hidden(seed: int = 0) -> torch.Tensor:
    return torch.randn(ROWS, LENGTH, D_MODEL, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_stands_before_the_sequence_and_is_taken_off(token):
    x, signal = hidden(), token.signal(noisy_of(0.3))
    longer = token.extend(x, signal)
    assert torch.equal(longer[:, 1:], x)
    expected = token.project(torch.nn.functional.silu(token.embedding(torch.tensor([[0.3]], dtype=torch.float64))))
    torch.testing.assert_close(longer[:, :1], expected.expand(ROWS, 1, -1))
    assert torch.equal(token.strip(longer, signal), x)


@torch.no_grad()
def test_levels_of_blocks_stand_before_their_own_blocks(token):
    x, signal = hidden(), token.signal(noisy_of(0.3, 0.8))
    longer = token.extend(x, signal)
    low, high = (token.extend(x, token.signal(noisy_of(level)))[:, 0] for level in (0.3, 0.8))
    assert longer.shape == (ROWS, LENGTH + 2, D_MODEL)
    torch.testing.assert_close(longer[:, 0], low)
    torch.testing.assert_close(longer[:, 4], high)
    assert torch.equal(token.strip(longer, signal), x)
    assert torch.equal(longer[:, 1:4], x[:, :3])


@torch.no_grad()
def test_carries_the_rows_level_whatever_is_given(token):
    given = torch.ones(ROWS, LENGTH, dtype=torch.bool)
    x = hidden()
    assert torch.equal(
        token.extend(x, token.signal(noisy_of(0.3, given=given))), token.extend(x, token.signal(noisy_of(0.3)))
    )


@torch.no_grad()
def test_carries_the_prompts_vector(token):
    prompt = torch.randn(ROWS, token.config.channels, generator=torch.Generator().manual_seed(1))
    told, untold = (token.extend(hidden(), token.signal(noisy_of(0.3), p))[:, 0] for p in (prompt, None))
    assert not torch.allclose(told, untold, atol=1e-3)
    zero = token.extend(hidden(), token.signal(noisy_of(0.3), torch.zeros_like(prompt)))[:, 0]
    torch.testing.assert_close(zero, untold)


@torch.no_grad()
@pytest.mark.parametrize(("denoiser", "mixer"), [("transformer", "attention"), ("mamba", "mamba2")])
def test_causal_trunks_hear_it_and_stay_causal(tools, denoiser, mixer):
    changes = {"causal": True} if mixer == "attention" else {}
    config = config_class("denoisers", denoiser)(
        n_layers=2, mixer=config_class("mixers", mixer)(**changes), conditioning=config_class("conditioning", "token")()
    )
    torch.manual_seed(0)
    trunk, x = tools.shaken(build(config, D_MODEL)), hidden()
    y = trunk(x, noisy_of(0.3))
    assert not torch.allclose(trunk(x, noisy_of(0.8)), y, atol=1e-3)
    later = torch.cat((x[:, :4], hidden(1)[:, 4:]), 1)
    torch.testing.assert_close(trunk(later, noisy_of(0.3))[:, :4], y[:, :4])


@torch.no_grad()
def test_a_reverse_scan_hears_it_from_the_second_layer_on(tools):
    """The last position of a layer that only scans backwards cannot know a token that stands before the first."""
    config = config_class("denoisers", "mamba")(n_layers=1, conditioning=config_class("conditioning", "token")())
    torch.manual_seed(0)
    trunk = tools.shaken(build(config, D_MODEL))
    mixer = trunk.stack.blocks[0].mixer.inner
    low, high = (trunk.conditioning.extend(hidden(), trunk.conditioning.signal(noisy_of(v))) for v in (0.3, 0.8))
    backwards, forwards = (lambda x: mixer.reverse_mixer(x.flip(1)).flip(1)), mixer.forward_mixer
    torch.testing.assert_close(backwards(low)[:, 1:], backwards(high)[:, 1:])
    assert not torch.allclose(forwards(low)[:, 1:], forwards(high)[:, 1:], atol=1e-4)


def test_no_channels_are_refused():
    with pytest.raises(ValueError, match="channels: got 0, expected at least 1"):
        config_class("conditioning", "token")(channels=0)
