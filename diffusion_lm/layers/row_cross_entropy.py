"""Weighted cross-entropy of a linear head over rows, without the logits of all rows at once.

    loss = sum_r w_r c_r,   c_r = ln sum_v exp(a_rv) - a_{r, y_r},   a_r = W h_r + b, v below `vocabulary`

The weights are known before the head runs, so one pass over chunks of rows gives the loss and its gradient
w_r (softmax(a_r) - onehot(y_r)), whose products with W and h_r are kept; the backward pass only scales them. Nothing
of the size rows x vocabulary is ever held, the logits are not computed twice, and they are float32 or better whatever
the precision of the products. With `normalised` false the sum over v in the gradient gives way to the constant V:

    c_r = sum_v exp(a_rv) / V - a_{r, y_r} + ln V - 1,   gradient w_r (exp(a_r) / V - onehot(y_r)),

score entropy at a masked position (objectives/score_entropy.py).

torch.nn.functional.linear_cross_entropy (torch 2.13) works in chunks too, but weighs classes, not rows. Weights of rows
go through its reduction="none" alone, which computes the logits again in the backward pass and rounds the losses to
bfloat16 where the hidden states are that; and it does not leave ids out.
"""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from diffusion_lm.noisy import ROWS
from diffusion_lm.shapes import Float, Int, Tensor

AT_ONCE = 1 << 24
"""Logits in memory at a time (64 MiB in float32), as long as a chunk has at least `ROWS` rows."""

LOWEST = -60.0
"""Scores below exp of this are not told from 0; their reciprocal is still a float32."""


def row_cross_entropy(
    hidden: Float[Tensor, "R D"],
    head: nn.Module,
    tokens: Int[Tensor, "R"],
    weight: Float[Tensor, "R"],
    vocabulary: int,
    normalised: bool = True,
) -> tuple[Float[Tensor, ""], Float[Tensor, "R"]]:
    """(sum of weight * -ln p(token), -ln p(token) without gradient). Products run in `hidden`'s precision.

    normalised: take exp(logits) over their sum; else the loss is that of scores.
    """
    gradient = torch.is_grad_enabled()
    return RowCrossEntropy.apply(hidden, head.weight, head.bias, tokens, weight, vocabulary, gradient, normalised)


class RowCrossEntropy(torch.autograd.Function):
    """Loss and gradients in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "R D"],
        kernel: Float[Tensor, "V D"],
        bias: Float[Tensor, "V"],
        tokens: Int[Tensor, "R"],
        weight: Float[Tensor, "R"],
        vocabulary: int,
        gradient: bool,
        normalised: bool,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "R"]]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        losses, weight = hidden.new_empty(len(hidden), dtype=wide), weight.to(wide)
        narrow, offset = kernel.to(hidden.dtype), bias.to(wide)
        sums = [torch.zeros_like(x) for x in (hidden, kernel, bias)] if gradient else None
        size = max(ROWS, AT_ONCE // len(kernel) // ROWS * ROWS)
        buffer = hidden.new_empty(min(size, len(hidden)), len(kernel), dtype=wide)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), size):
                rows = slice(start, start + size)
                given = (tokens[rows], vocabulary, normalised, buffer, losses[rows])
                whole, logits = _losses(hidden[rows], narrow, offset, *given)
                if sums is not None:
                    # the rest of the gradient, weight / whole, goes to the smaller factor of each product
                    _add_gradients(logits, weight[rows] / whole, hidden[rows], narrow, (sums[0][rows], *sums[1:]))
            ctx.mark_non_differentiable(losses)
            ctx.gradients, ctx.losses = sums, losses.detach()
            return (weight * losses).sum(), losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Float[Tensor, ""], _: Any) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("backward ran twice through row_cross_entropy, which keeps its gradients for one run")
        gradients, ctx.gradients = ctx.gradients, None
        of_weight = upstream * ctx.losses if ctx.needs_input_grad[4] else None
        return *(gradient.mul_(upstream) for gradient in gradients), None, of_weight, None, None, None


def _losses(
    hidden: Float[Tensor, "R D"],
    kernel: Float[Tensor, "V D"],
    bias: Float[Tensor, "V"],
    tokens: Int[Tensor, "R"],
    vocabulary: int,
    normalised: bool,
    buffer: Float[Tensor, "N V"],
    losses: Float[Tensor, "R"],
) -> tuple[Float[Tensor, "R"], Float[Tensor, "R V"]]:
    """Write the losses; return `whole` and exp(logits) - whole * onehot, which stands in the buffer.

    The largest logit is taken out of a row. whole: the sum of the exp of the logits; of scores their V.
    """
    logits = buffer[: len(hidden)]
    if hidden.dtype == logits.dtype:
        torch.addmm(bias, hidden, kernel.T, out=logits)
    else:
        _product(hidden, kernel.T, logits.dtype, out=logits).add_(bias)
    logits[:, vocabulary:] = -torch.inf
    top = logits.amax(1, keepdim=True)
    top = top if normalised else top.clamp(min=LOWEST)
    logits.sub_(top)
    own = logits.gather(1, tokens.unsqueeze(1))
    total = logits.exp_().sum(1, keepdim=True)
    whole = total if normalised else vocabulary * torch.exp(-top)
    torch.sub(whole.log(), own, out=losses.unsqueeze(1))
    if not normalised:
        losses.add_((total / whole - 1).squeeze(1))
    logits.scatter_(1, tokens.unsqueeze(1), own.exp() - whole)
    return whole.squeeze(1), logits


def _add_gradients(
    logits: Float[Tensor, "R V"],
    scale: Float[Tensor, "R"],
    hidden: Float[Tensor, "R D"],
    kernel: Float[Tensor, "V D"],
    sums: tuple[Float[Tensor, "R D"], Float[Tensor, "V D"], Float[Tensor, "V"]],
) -> None:
    """Add a chunk's gradients to those of its hidden states, the kernel and the bias."""
    of_hidden, of_kernel, of_bias = sums
    of_bias.add_(scale @ logits)
    narrow, scaled = logits.to(hidden.dtype), (hidden * scale.unsqueeze(1)).to(hidden.dtype)
    torch.mul(_product(narrow, kernel, scale.dtype), scale.unsqueeze(1), out=of_hidden)
    if scaled.dtype == of_kernel.dtype:
        of_kernel.addmm_(narrow.T, scaled)
    else:
        of_kernel.add_(_product(narrow.T, scaled, of_kernel.dtype))


def _product(
    a: Float[Tensor, "N K"], b: Float[Tensor, "K M"], dtype: torch.dtype, out: Tensor | None = None
) -> Float[Tensor, "N M"]:
    """a @ b in `dtype`; on CUDA the sums of narrower factors come unrounded."""
    if a.dtype == dtype:
        return torch.mm(a, b, out=out)
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=dtype, out=out)
    return (a @ b).to(dtype) if out is None else out.copy_(a @ b)
