"""What blocks are told of the noise: clean rows the level 0, each noisy row its own, as rows of one batch would be."""

import pytest
import torch

from diffusion_lm.blocks import Blocks
from diffusion_lm.config import build, config_class, variants
from diffusion_lm.noisy import Noisy

ROWS, D_MODEL = 6, 16
NAMES = [n for n in variants("conditioning") if (c := config_class("conditioning", n)).positions == 0 and c.parts]


@pytest.mark.parametrize("prompted", [False, True], ids=["", "given"])
@pytest.mark.parametrize("size", [4, 1])
@pytest.mark.parametrize("name", NAMES)
def test_clean_rows_are_told_level_zero_and_told_it_once(name, size, prompted):
    torch.manual_seed(0)
    conditioning = build(config_class("conditioning", name)(), D_MODEL)
    branch = conditioning.branch()
    for parameter in branch.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2 * ROWS, size, D_MODEL)
    level = torch.cat((torch.zeros(ROWS, 1), torch.rand(ROWS, 1))).double()
    given = torch.cat((torch.zeros(ROWS, size), torch.rand(ROWS, size) < 0.5)).bool() if prompted else None
    ids = torch.zeros(2 * ROWS, size, dtype=torch.long)
    seen, found = [], []
    branch.modulation.linear.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[:-1]))
    for blocks in (None, Blocks(ids[:ROWS], 3)):
        signal = conditioning.signal(Noisy(ids, level, given, blocks=blocks))
        y = branch(torch.tanh, x, signal)
        parameters = list(conditioning.parameters()) + list(branch.parameters())
        found.append([y, *torch.autograd.grad(y.square().sum(), parameters)])
    for own, right in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(own, right, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[0][0][ROWS], found[0][0][0])
    told = [shape.numel() for shape in seen]
    assert told == ([12, 12, 6, 1, 1] if prompted else [12, 6, 1])
