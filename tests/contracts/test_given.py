"""Given positions (prompts): drawn as the config says, and never noised, whatever the process."""

import pytest
import torch

from diffusion_lm.prompts import PromptConfig, draw_given


def test_the_share_of_prompted_rows_and_their_prefixes(tools):
    given = draw_given(PromptConfig(fraction=0.3), tools.rows_noise(20_000), 6)
    lengths = given.sum(1)
    assert (given == (torch.arange(6) < lengths[:, None])).all()
    counts = torch.bincount(lengths, minlength=7)
    expected = torch.tensor([0.7, *[0.3 / 5] * 5, 0.0])
    assert tools.chi_square(counts, expected) > 1e-4


def test_no_prompts_where_none_are_asked_for_or_none_can_be(tools):
    assert draw_given(PromptConfig(fraction=0.0), tools.rows_noise(3), 6) is None
    assert draw_given(PromptConfig(fraction=1.0), tools.rows_noise(3), 1) is None
    assert draw_given(PromptConfig(fraction=1.0), tools.rows_noise(50), 2).tolist() == [[True, False]] * 50


@pytest.mark.parametrize("fraction", [-0.1, 1.1])
def test_a_fraction_outside_0_to_1_is_refused(fraction):
    with pytest.raises(ValueError, match=f"fraction: got {fraction}, expected 0 to 1"):
        PromptConfig(fraction=fraction)
