"""Self-conditioning: the network is shown an estimate of x_0 of its own. Chen et al. (arXiv 2208.04202), section 3.

In training a share of the rows sees x_0_hat made from the same state in a first pass, without gradient; the others see
zeros, as that first pass does (Plaid, arXiv 2305.18619, a quarter of the rows). The bound always makes two passes: the
second is a function of x_t too, so it stays a bound. Samplers show the estimate of the step before instead.
"""

from dataclasses import replace

import torch

from diffusion_lm.model import DenoisingModel
from diffusion_lm.noisy import Noisy
from diffusion_lm.random import Noise, Stream
from diffusion_lm.shapes import Bool, Tensor


def with_own_estimate(model: DenoisingModel, noisy: Noisy, training: Noise | None = None) -> Noisy:
    """`noisy` with the model's first estimate: in every row, or in training in the rows that its noise chooses.

    Unchanged for a model without self-conditioning.
    """
    if not model.self_conditioning:
        return noisy
    rows = torch.ones(len(noisy.x), dtype=torch.bool, device=noisy.x.device)
    if training is not None:
        rows = training.uniform(Stream.SELF_CONDITION, 1).squeeze(1) < model.self_conditioning
    # with no row to show it to, one row all the same: devices that hold shares of a block gather it together; blocks of
    # texts come whole
    asked = rows if rows.any() else torch.arange(len(rows), device=rows.device) < 1
    asked = asked if noisy.blocks is None else torch.ones_like(rows)
    with torch.no_grad():
        said = model(_rows(noisy, asked)).estimate(model.table())
    estimate = torch.zeros_like(noisy.x)
    estimate[asked] = said.to(estimate.dtype)
    return replace(noisy, self_condition=estimate * rows[:, None, None])


def _rows(noisy: Noisy, rows: Bool[Tensor, "B"]) -> Noisy:
    given, segment = (None if value is None else value[rows] for value in (noisy.given, noisy.segment))
    return Noisy(noisy.x[rows], noisy.noise_level[rows], given, segment=segment, blocks=noisy.blocks)
