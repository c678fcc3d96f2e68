"""A depthwise convolution over positions that stays within a document, as shifted products.

y_i = bias + sum_k weight_k x_{i + k - before}: faster than Conv1d on a CPU, and able to look only where it may.
"""

from typing import Any

import torch
from torch.nn import functional as F

from diffusion_lm.layers.slices import slices
from diffusion_lm.shapes import Float, Int, Segment, Tensor


def convolve(
    x: Float[Tensor, "B L K"],
    weight: Float[Tensor, "K 1 W"],
    bias: Float[Tensor, "K"] | None,
    before: int,
    segment: Segment | None = None,
    left: Float[Tensor, "B past K"] | None = None,
    mirrored: bool = False,
) -> Float[Tensor, "B L K"]:
    """The first tap reads `before` positions earlier, the last W - 1 - before later; `left` is what came before x.
    Mirrored, the taps are read from the last to the first."""
    length, taps = x.shape[1], _taps(weight, mirrored)
    if segment is None and left is None:
        if length < len(taps):  # the others read beyond the text
            taps, before = taps[max(0, before + 1 - length) : before + length], min(before, length - 1)
        if len(places := slices(x)) > 1:
            return _in_slices(x, taps, bias, before, places)
    after = len(taps) - 1 - before
    if left is None:
        padded = F.pad(x, (0, 0, before, after)) if before or after else x
    else:
        padded = torch.cat((left, x, x.new_zeros(len(x), after, x.shape[2])) if after else (left, x), 1)
    if segment is None:
        return _products(padded, taps, bias, length).to(x.dtype)
    ids = F.pad(segment + 1, (before, after))  # 0 is nobody's
    if left is not None:
        ids[:, :before] = ids[:, before : before + 1]
    y = None if bias is None else bias.to(torch.promote_types(x.dtype, bias.dtype))
    for k, tap in enumerate(taps):
        seen = padded[:, k : k + length]
        if k != before:
            seen = seen * (_same_run(ids, segment + 1, k, before)).unsqueeze(-1)
        y = seen * tap if y is None else torch.addcmul(y, seen, tap)
    return y.to(x.dtype)


def tails(rows: Float[Tensor, "R S K"], count: int, past: int) -> Float[Tensor, "R past K"]:
    """Of texts as rows of blocks, `count` to a text: the `past` positions before each block, 0 before the first."""
    texts, found = rows.unflatten(0, (-1, count)), []
    for back, place in _reach(rows.shape[1], past):
        block = texts[:, : max(0, count - back), place]
        found.append(F.pad(block, (0, 0, 0, 0, min(back, count), 0)))
    return torch.cat(found, 2).flatten(0, 1) if found else rows[:, :0]


def _reach(size: int, past: int) -> list[tuple[int, slice]]:
    """How many blocks back, and where in them, the `past` positions before a block are, from the first on."""
    return [(back, slice(max(0, back * size - past), size)) for back in range(-(-past // size), 0, -1)]


class BesideClean(torch.autograd.Function):
    """Clean rows and then noisy ones, each after the `past` clean positions before its block and before `after` zeros.
    One buffer there, and one back: the gradient of a tail is added where it came from."""

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "T S K"], count: int, past: int, after: int) -> Float[Tensor, "T M K"]:
        ctx.count, ctx.past, ctx.size, (rows, size, width) = count, past, x.shape[1], x.shape
        left = tails(x[: rows // 2], count, past)
        padded = x.new_zeros(rows, past + size + after, width) if after else x.new_empty(rows, past + size, width)
        padded[:, past : past + size] = x
        padded.unflatten(0, (2, -1))[:, :, :past] = left
        return padded

    @staticmethod
    def backward(ctx: Any, grad: Float[Tensor, "T M K"]) -> tuple[Tensor | None, ...]:
        count, past, size = ctx.count, ctx.past, ctx.size
        dx = grad[:, past : past + size].clone(memory_format=torch.contiguous_format)
        texts, first = dx[: len(dx) // 2].unflatten(0, (-1, count)), 0
        left = grad.unflatten(0, (2, -1))[:, :, :past].sum(0).unflatten(0, (-1, count))
        for back, place in _reach(size, past):
            last = first + place.stop - place.start
            texts[:, : max(0, count - back), place] += left[:, min(back, count) :, first:last]
            first = last
        return dx, None, None, None


def convolve_blocks(
    x: Float[Tensor, "T S K"],
    weight: Float[Tensor, "K 1 W"],
    bias: Float[Tensor, "K"] | None,
    before: int,
    count: int,
) -> Float[Tensor, "T S K"]:
    """The same for clean rows of texts' blocks and then noisy ones: a block comes after the clean ones before it, and
    sees nothing after itself."""
    taps = _taps(weight, False)
    if x.shape[1] == 1:
        return _convolve_tokens(x, taps[: before + 1], bias, count)
    padded = BesideClean.apply(x, count, before, len(taps) - 1 - before)
    return _products(padded, taps, bias, x.shape[1]).to(x.dtype)


def _convolve_tokens(
    x: Float[Tensor, "T 1 K"], taps: Float[Tensor, "W K"], bias: Float[Tensor, "K"] | None, count: int
) -> Float[Tensor, "T 1 K"]:
    """Blocks of one token: a clean one and the noisy one in its place have the same before them, which is summed once
    over the text."""
    texts, past = x.view(2, -1, count, x.shape[2]), len(taps) - 1
    if not past:
        return _products(x, taps, bias, 1).to(x.dtype)
    earlier = _products(F.pad(texts[0, :, :-1], (0, 0, past, 0)), taps[:-1], bias, count)
    return torch.addcmul(earlier, texts, taps[-1]).view(x.shape).to(x.dtype)


def before(x: Float[Tensor, "B L K"], place: Int[Tensor, "B"], past: int) -> Float[Tensor, "B past K"]:
    """The `past` positions before that place of each row, 0 where there are none."""
    at = place.unsqueeze(1) + torch.arange(past, device=x.device)
    return F.pad(x, (0, 0, past, 0)).gather(1, at.unsqueeze(-1).expand(-1, -1, x.shape[2]))


def _in_slices(
    x: Float[Tensor, "B L K"],
    taps: Float[Tensor, "W K"],
    bias: Float[Tensor, "K"] | None,
    before: int,
    places: list[slice],
) -> Float[Tensor, "B L K"]:
    """The convolution slice by slice, each with the positions beside it that its taps reach."""
    length, after = x.shape[1], len(taps) - 1 - before
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    for place in places:
        first, last = max(place.start - before, 0), min(place.stop + after, length)
        missing = (first - (place.start - before), place.stop + after - last)
        seen = F.pad(x[:, first:last], (0, 0, *missing)) if any(missing) else x[:, first:last]
        out[:, place] = _products(seen, taps, bias, place.stop - place.start)
    return out


def _taps(weight: Float[Tensor, "K 1 W"], mirrored: bool) -> Float[Tensor, "W K"]:
    taps = weight.squeeze(1).T
    return taps.flip(0) if mirrored else taps


def _products(
    padded: Float[Tensor, "B M K"], taps: Float[Tensor, "W K"], bias: Float[Tensor, "K"] | None, length: int
) -> Float[Tensor, "B L K"]:
    """Sums of shifted products of a padded sequence."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return ShiftedProducts.apply(padded, taps, bias, length)
    return _sum_of_products(padded, taps, bias, length)


class ShiftedProducts(torch.autograd.Function):
    """sum_k taps_k padded_{i+k} + bias, in eager mode: the gradient of a shifted product is added in place to one
    buffer, where autograd would fill one with zeros for each."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, taps: Tensor, bias: Tensor | None, length: int) -> Tensor:
        ctx.save_for_backward(padded, taps)
        ctx.biased = bias is not None
        return _sum_of_products(padded, taps, bias, length)

    @staticmethod
    def backward(ctx: Any, dy: Float[Tensor, "B L K"]) -> tuple[Tensor | None, ...]:
        (padded, taps), length = ctx.saved_tensors, dy.shape[1]
        dpadded, dtaps = torch.zeros_like(padded, dtype=dy.dtype), []
        for k, tap in enumerate(taps):
            dpadded[:, k : k + length].addcmul_(dy, tap)
            dtaps.append((dy * padded[:, k : k + length]).sum((0, 1)))
        return dpadded.to(padded.dtype), torch.stack(dtaps), dy.sum((0, 1)) if ctx.biased else None, None


def _sum_of_products(
    padded: Float[Tensor, "B M K"], taps: Float[Tensor, "W K"], bias: Float[Tensor, "K"] | None, length: int
) -> Float[Tensor, "B L K"]:
    y = padded[:, :length] * taps[0] if bias is None else torch.addcmul(bias, padded[:, :length], taps[0])
    for k in range(1, len(taps)):
        y = torch.addcmul(y, padded[:, k : k + length], taps[k])
    return y


def _same_run(ids: Tensor, own: Tensor, k: int, before: int) -> Tensor:
    """Whether no boundary lies between every position and the one that tap k reads. [B, L]"""
    length, step = own.shape[1], 1 if k > before else -1
    same = torch.ones_like(own, dtype=torch.bool)
    for place in range(before + step, k + step, step):
        same = same & (ids[:, place : place + length] == own)
    return same
